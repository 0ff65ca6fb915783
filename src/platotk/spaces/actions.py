"""Actions on their way out: what a policy chose becomes an action in the sim's own space, dtype and shape.

Given an action space, `Decoding` turns every leaf into categorical choices (Discrete, MultiDiscrete,
MultiBinary, Text, small integer Boxes) or continuous numbers (float Boxes, large integer Boxes), joins them
into one space that RLlib can learn, and undoes all that for each action. Whatever comes out is contained in
the sim's space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.choices import Choices, categorical
from platotk.spaces.columns import rows_of
from platotk.spaces.continuous import Continuous, needs_scale, resolve_scales
from platotk.spaces.leaves import Array, Space, element, label, short, under_index, under_key

MAX_JOINT = 1024  # joint actions that DQN enumerates
MAX_PLAIN = 16  # parts of an action up to which plain numbers are decoded faster than arrays


class Decoding:
    """How one action space is decoded.

    Attributes:
        choices: The categorical leaves, in leaf order.
        sizes: How many values each categorical choice has, before any joining.
        nvec: The same as the policy sees it: joined into one number for DQN.
        num_continuous: How many continuous numbers the policy gives.
        encoded: The space that RLlib learns.
        lines: One line per leaf, for people.
    """

    def __init__(
        self,
        space: Space,
        *,
        algorithm: str = "PPO",
        action_scale: float | Mapping[str, float] | None = None,
    ) -> None:
        """Plan the mapping.

        Raises:
            SimError: An action space that no algorithm, or not this algorithm, can learn.
            ProjectError: An action_scale that names no leaf, or is not a positive number.
        """
        self.space = space
        found = _leaves(space, "")
        if not found:
            raise SimError("action: the space is empty, there is nothing to decide.")
        alike = [path for path, times in Counter(path for path, _ in found).items() if times > 1]
        if alike:
            raise SimError(
                f"{label('action', alike[0])}: two leaves have this name.", hint="Rename a key of the space."
            )
        chosen = categorical(found)
        boxes = {path: leaf for path, leaf in found if path not in chosen}
        scales = resolve_scales(action_scale, boxes, [path for path, _ in found])
        self.choices = list(chosen.values())
        self.sizes = tuple(n for leaf in self.choices for n in leaf.nvec)
        self.num_continuous = sum(_size(leaf) for leaf in boxes.values())
        if not self.sizes and not self.num_continuous:
            raise SimError("action: the space has no elements, there is nothing to decide.")
        self.nvec = self._fit(algorithm, boxes)
        self.is_joint = len(self.nvec) < len(self.sizes)
        is_bounded = algorithm in ("SAC", "CQL")  # their policies give [-1, 1] and nothing else
        self._is_squashed = is_bounded or not any(needs_scale(leaf) for leaf in boxes.values())
        self._columns: list[tuple[Choices | Continuous, slice]] = []
        at_choice = at_number = 0
        for path, leaf in found:
            if path in chosen:
                self._columns.append((chosen[path], slice(at_choice, at_choice + len(chosen[path].nvec))))
                at_choice += len(chosen[path].nvec)
            else:
                numbers = Continuous(
                    leaf,
                    path,
                    scales.get(path),
                    squashed=self._is_squashed,
                    needed_by=algorithm if is_bounded else None,
                )
                self._columns.append((numbers, slice(at_number, at_number + numbers.size)))
                at_number += numbers.size
        self.encoded = self._encoded_space()
        self.lines = [column.line for column, _ in self._columns]
        if self.is_joint:
            self.lines.append(f"action: all choices joined into one of {self.nvec[0]:,}")
        self._nvec = np.array(self.nvec, dtype=np.int64)
        self._is_mixed = bool(self.nvec) and self.num_continuous > 0
        only = self._columns[0][0] if len(self._columns) == 1 else None
        self._is_small = not self.is_joint and self.num_continuous + len(self.sizes) <= MAX_PLAIN
        self._scalar = only if isinstance(only, Choices) and not self.is_joint else None

    def decode(self, action: Any) -> Any:
        """One action of the encoded space, as the sim's own."""
        if self._scalar is not None:
            simple = self._scalar.scalar(action)
            if simple is not None:
                return simple
        if self._is_small:
            small = self._plain(action)
            if small is not None:
                parts = (column.value(small[column.kind][part]) for column, part in self._columns)
                return _build(self.space, parts)
        columns, _ = self.decode_columns([action])
        return rows_of(self.space, columns, 1)[0]

    def decode_batch(self, actions: Any) -> list[Any]:
        """Many: arrays with a leading axis B (mixed: a dict of them), or a list of encoded actions."""
        columns, num_rows = self.decode_columns(actions)
        return rows_of(self.space, columns, num_rows)

    def decode_columns(self, actions: Any) -> tuple[Any, int]:
        """The same as columns (see `spaces.columns`), and how many rows they have."""
        if isinstance(actions, (list, tuple)):
            if not actions:
                return self._assemble(np.empty((0, self.num_continuous)), np.empty((0, len(self.sizes)), np.int64)), 0
            if isinstance(actions[0], Mapping):
                keys = ("continuous", "discrete")
                _require_mixed(actions[0])
                actions = {key: np.stack([np.asarray(one[key]) for one in actions]) for key in keys}
            else:
                actions = np.stack([np.asarray(one) for one in actions])
        if isinstance(actions, Mapping):
            _require_mixed(actions)
            batch = len(actions["discrete"])
        else:
            batch = len(actions)
        return self._assemble(*self._parts(actions, batch)), batch

    def rounding_margins(self, numbers: Array) -> Array:
        """Per row of the encoded continuous numbers (B, k), how far the nearest rounding edge is."""
        margins = np.full(len(numbers), np.inf)
        for column, part in self._columns:
            if isinstance(column, Continuous):
                margins = np.minimum(margins, column.rounding_margins(numbers[:, part]))
        return margins

    def _fit(self, algorithm: str, boxes: Mapping[str, Space]) -> tuple[int, ...]:
        """The choices as this algorithm takes them.

        Raises:
            SimError: It does not take them; the hint names one that does.
        """
        if algorithm == "SAC":
            if self.sizes and (self.num_continuous or len(self.sizes) > 1):
                joint = "" if self.num_continuous or _product(self.sizes) > MAX_JOINT else " or DQN"
                raise SimError(
                    f"SAC cannot learn this action space: {self._mixture()}; "
                    "it takes either continuous numbers, or one choice.",
                    hint=f"Use `algorithm: PPO`{joint}.",
                )
        elif algorithm in ("CQL", "IQL"):
            if self.sizes:
                raise SimError(
                    f"{algorithm} cannot learn this action space: {self._mixture()}; it takes continuous numbers only.",
                    hint="Use `algorithm: MARWIL` or BC for recorded episodes, PPO otherwise.",
                )
        elif algorithm == "DQN":
            if self.num_continuous:
                which = ", ".join(label("action", path) for path in list(boxes)[:3])
                other = "`algorithm: PPO`" if self.sizes else "`algorithm: SAC` or PPO"
                raise SimError(f"DQN cannot learn continuous actions, such as {which}.", hint=f"Use {other}.")
            if len(self.sizes) > 1:
                joint_size = _product(self.sizes)
                if joint_size > MAX_JOINT:
                    raise SimError(
                        f"DQN cannot learn this action space: its {len(self.sizes)} choices make "
                        f"{joint_size:,} joint actions, at most {MAX_JOINT:,} are enumerated.",
                        hint="Use `algorithm: PPO`.",
                    )
                return (joint_size,)
        return self.sizes

    def _mixture(self) -> str:
        choices = f"{len(self.sizes)} choice{'' if len(self.sizes) == 1 else 's'}"
        return f"{choices} and {self.num_continuous} continuous" if self.num_continuous else choices

    def _encoded_space(self) -> Space:
        bound = 1.0 if self._is_squashed else np.inf
        box = spaces.Box(-bound, bound, (self.num_continuous,), np.float32)
        if not self.nvec:
            return box
        if self.num_continuous:
            return spaces.Dict({"continuous": box, "discrete": spaces.MultiDiscrete(list(self.nvec))})
        return spaces.Discrete(self.nvec[0]) if len(self.nvec) == 1 else spaces.MultiDiscrete(list(self.nvec))

    def _parts(self, action: Any, batch: int) -> tuple[Array, Array]:
        """The encoded actions as numbers (B, num_continuous) float64 and choices (B, len(sizes)) int64."""
        if self._is_mixed:
            _require_mixed(action)
        numbers, chosen = np.empty((batch, 0)), np.empty((batch, 0), np.int64)
        if self.num_continuous:
            given = np.asarray(action["continuous"] if self._is_mixed else action)
            numbers = _shaped(given, batch, self.num_continuous, "fiub").astype(np.float64)
            if not np.isfinite(numbers).all():
                raise self._not_finite(numbers)
        if self.nvec:
            given = np.asarray(action["discrete"] if self._is_mixed else action)
            chosen = _shaped(given, batch, len(self.nvec), "iub").astype(np.int64)
            if ((chosen < 0) | (chosen >= self._nvec)).any():
                raise SimError(f"The policy chose {short(chosen.tolist())}, it has {short(list(self.nvec))} choices.")
            if self.is_joint:
                chosen = np.stack(np.unravel_index(chosen[:, 0], self.sizes), axis=1)
        return numbers, chosen

    def _not_finite(self, numbers: Array) -> SimError:
        at = int(np.argwhere(~np.isfinite(numbers))[0][1])
        for column, part in self._columns:
            if isinstance(column, Continuous) and part.start <= at < part.stop:
                what = "NaN" if np.isnan(numbers[:, at]).any() else "an infinite number"
                where = element(column.label, column.shape, at - part.start)
                return SimError(
                    f"The policy produced {what} for action leaf {where}.",
                    hint="Training has diverged: lower the learning rate, or normalise rewards.",
                )
        return SimError("The policy produced a number that is not finite.")

    def _plain(self, action: Any) -> tuple[list[Any], list[Any]] | None:
        """One encoded action as plain numbers and choices; None when it is not what the policy's space says."""
        numbers: list[float] = []
        chosen: list[int] = []
        if self._is_mixed and (type(action) is not dict or len(action) != 2):
            return None
        if self.num_continuous:
            given = action.get("continuous") if self._is_mixed else action
            if type(given) is not np.ndarray or given.shape != (self.num_continuous,) or given.dtype.kind != "f":
                return None
            numbers = given.tolist()
            if not all(map(math.isfinite, numbers)):
                return None
        if self.nvec:
            given = action.get("discrete") if self._is_mixed else action
            if isinstance(given, np.ndarray) and given.shape == (len(self.nvec),) and given.dtype.kind in "iu":
                chosen = given.tolist()
            elif isinstance(given, np.integer) and len(self.nvec) == 1:
                chosen = [int(given)]
            else:
                return None
            if not all(0 <= index < size for index, size in zip(chosen, self.nvec, strict=True)):
                return None
        return numbers, chosen

    def _assemble(self, numbers: Array, chosen: Array) -> Any:
        parts = (numbers, chosen)
        return _build(self.space, (column.column(parts[column.kind][:, part]) for column, part in self._columns))


def _leaves(space: Space, path: str) -> list[tuple[str, Space]]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, child in space.spaces.items() for leaf in _leaves(child, under_key(path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, child in enumerate(space.spaces) for leaf in _leaves(child, under_index(path, i))]
    return [(path, space)]


def _size(space: Space) -> int:
    return int(np.prod(space.shape)) if space.shape is not None else 0


def _shaped(given: Array, batch: int, width: int, kinds: str) -> Array:
    if given.size != batch * width:
        raise SimError(f"The policy gave {given.size} numbers for {batch} action(s), expected {width} each.")
    if given.dtype.kind not in kinds:
        whole = "" if "f" in kinds else "whole "
        raise SimError(f"The policy gave {short(given.tolist())}, expected {whole}numbers.")
    return given.reshape(batch, width)


def _require_mixed(action: Any) -> None:
    if not isinstance(action, Mapping) or set(action) != {"continuous", "discrete"}:
        raise SimError(f"The policy gave {short(action)}, expected a dict with 'continuous' and 'discrete'.")


def _build(space: Space, values: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _build(child, values) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_build(child, values) for child in space.spaces)
    return next(values)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
