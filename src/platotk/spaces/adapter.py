"""The adapter: one object that knows how a sim's spaces are learned from, and takes values both ways.

Given the two spaces of a sim, and for which algorithm, `adapt` gives an `Adapter`: `encode` turns an
observation into what the network sees, `decode` turns what the policy chose into the sim's own action. What
cannot be learned from is refused here, with a recipe, before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import ProjectError, SimError
from platotk.spaces.actions import Decoding
from platotk.spaces.columns import rows_of
from platotk.spaces.description import space_from_json, space_to_json
from platotk.spaces.features import MAX_ENTRIES
from platotk.spaces.frames import stacked_space
from platotk.spaces.leaves import Array, Space, describe_space, did_you_mean, short
from platotk.spaces.masks import Masks, mask_size
from platotk.spaces.observations import Encoding

ALGORITHMS = ("PPO", "APPO", "IMPALA", "BC", "MARWIL", "SAC", "DQN")
CHOOSY = ("SAC", "DQN", "CQL", "IQL")
"""Algorithms that do not take every action space."""
MASK_KEY = "action_mask"

Encoded = Array | dict[str, Array]


def adapt(
    observation_space: Space,
    action_space: Space,
    *,
    algorithm: str | None = "PPO",
    action_scale: float | Mapping[str, float] | None = None,
    action_mask: str | None = None,
    frame_stack: int = 1,
) -> Adapter:
    """Decide how a sim's spaces are learned from.

    Args:
        observation_space: Any Gymnasium space but Graph and Sequence.
        action_space: Any but Graph, Sequence and OneOf.
        algorithm: RLlib's name; SAC, DQN, CQL and IQL do not take every action space. Other names count as PPO.
        action_scale: How far an action without a bound reaches: one number, or one by leaf path `a.b[0]`.
        action_mask: "info", or a top-level key of the observation; None finds a key `action_mask` by itself.
        frame_stack: How many of the last observations the network sees.

    Raises:
        SimError: Something here cannot be learned from; the hint is the recipe.
        ProjectError: action_scale or action_mask names what is not there.
    """
    return Adapter(observation_space, action_space, algorithm or "PPO", action_scale, action_mask, frame_stack)


def refusal(
    observation_space: Space,
    action_space: Space,
    algorithm: str | None = "PPO",
    **given: Any,
) -> SimError | None:
    """Why this algorithm cannot learn from these spaces, or None when it can; takes what `adapt` takes."""
    try:
        adapt(observation_space, action_space, algorithm=algorithm, **given)
    except SimError as error:
        return error
    return None


def fitting(
    observation_space: Space,
    action_space: Space,
    *,
    action_scale: float | Mapping[str, float] | None = None,
) -> list[str]:
    """The algorithms, of those in ALGORITHMS, that can learn from these spaces."""
    return [
        name for name in ALGORITHMS if refusal(observation_space, action_space, name, action_scale=action_scale) is None
    ]


class Adapter:
    """How a sim's spaces are learned from; made by `adapt`, never changed. Goes through pickle and JSON.

    Attributes:
        observation_space: The sim's own.  action_space: The sim's own.
        frame_space: What `encode` gives: Box (n,) float32; with images or a mask a Dict of "vector", "image_0", ...
            and "action_mask", of which only those exist that the sim has.
        encoded_observation_space: What the network sees: `frame_stack` frames (see `spaces.frames`).
        encoded_action_space: Discrete, MultiDiscrete, Box (k,), or a Dict of "continuous" and "discrete".
        frame_stack: How many of the last observations the network sees; `encode` always gives one.
        numeric: Bool, the entries of the vector (of all frames) that a normalising filter may touch.
        mask_source: None, "info", or the key of the observation that holds the action mask.
        num_logits: Categorical logits of the encoded action space, the length of an encoded mask.
        nvec: How many values each encoded categorical choice has.
        num_continuous: How many continuous numbers the policy gives.
        algorithm: The algorithm that it was made for.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        algorithm: str = "PPO",
        action_scale: float | Mapping[str, float] | None = None,
        action_mask: str | None = None,
        frame_stack: int = 1,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.algorithm = str(algorithm)
        self._decoding = Decoding(action_space, algorithm=self.algorithm.upper(), action_scale=action_scale)
        self.action_scale: float | dict[str, float] | None
        if isinstance(action_scale, Mapping):
            self.action_scale = {str(path): float(scale) for path, scale in action_scale.items()}
        else:
            self.action_scale = None if action_scale is None else float(action_scale)
        self._masks = Masks(self._decoding)
        self.mask_source = self._find_mask(action_mask)
        self._mask_key = None if self.mask_source in (None, "info") else self.mask_source
        self._encoding = Encoding(observation_space, skip=self._mask_key)
        self.frame_stack = int(frame_stack)
        if self.frame_stack < 1:
            raise ProjectError(f"frame_stack is {frame_stack}; expected at least 1.")
        num_entries = self._encoding.size + sum(math.prod(image.encoded.shape) for image in self._encoding.images)
        if self.frame_stack > 1 and self.frame_stack * num_entries > MAX_ENTRIES:
            raise ProjectError(
                f"frame_stack is {frame_stack}: of {num_entries:,} numbers each, that is "
                f"{self.frame_stack * num_entries:,}; the most is {MAX_ENTRIES:,}."
            )
        self.numeric = np.tile(self._encoding.numeric, self.frame_stack)
        self.numeric.setflags(write=False)
        self.num_logits = self._masks.num_logits
        self.nvec = self._decoding.nvec
        self.num_continuous = self._decoding.num_continuous
        self.encoded_action_space: Space = self._decoding.encoded
        self._is_plain = self.mask_source is None and not self._encoding.images
        self.frame_space: Space = self._frame_space()
        self.encoded_observation_space: Space = stacked_space(self.frame_space, self.frame_stack)

    def encode(self, obs: Any, mask: Any = None) -> Encoded:
        """One observation as the network sees it; freshly allocated, so the sim may reuse its arrays.

        Args:
            obs: In the sim's own space; lists for arrays and other dtypes are taken too.
            mask: `info["action_mask"]` when mask_source is "info"; None allows everything.

        Raises:
            SimError: Missing or unknown key, wrong shape, NaN, a choice out of range; it names the leaf.
        """
        if self._is_plain and mask is None:
            return self._encoding.encode(obs)[0]
        mask = self._mask_of(obs, mask)
        return self._join(*self._encoding.encode(obs), self._masks.encode(mask))

    def encode_batch(self, observations: Sequence[Any], masks: Sequence[Any] | None = None) -> Encoded:
        """Many observations at once: the same with a leading axis B."""
        if self._is_plain and masks is None:
            return self._encoding.encode_batch(observations)[0]
        given = [None] * len(observations) if masks is None else list(masks)
        if len(given) != len(observations):
            raise SimError(f"{len(given)} action masks for {len(observations)} observations.")
        flat = self._masks.encode_batch([self._mask_of(obs, one) for obs, one in zip(observations, given, strict=True)])
        return self._join(*self._encoding.encode_batch(observations), flat)

    def encode_columns(self, columns: Any, num_rows: int, masks: Sequence[Any] | None = None) -> Encoded:
        """Many observations as columns (see `from_json_batch`): what encode_batch gives for their rows.

        Raises:
            SimError: As encode does, for the first leaf that is wrong.
        """
        if self._is_plain and masks is None:
            return self._encoding.encode_columns(columns, num_rows)[0]
        if masks is not None and len(masks) != num_rows:
            raise SimError(f"{len(masks)} action masks for {num_rows} observations.")
        given = self._mask_of(columns, masks)
        if given is None:
            given = [None] * num_rows
        elif masks is None:
            given = rows_of(self._mask_space(), given, num_rows)
        return self._join(*self._encoding.encode_columns(columns, num_rows), self._masks.encode_batch(given))

    def decode(self, action: Any) -> Any:
        """An action of the encoded space as one of the sim's own; the sim's space always contains it.

        Raises:
            SimError: NaN, or not an action of the encoded space.
        """
        return self._decoding.decode(action)

    def decode_batch(self, actions: Any) -> list[Any]:
        """Many actions: arrays with a leading axis B, or a list of encoded actions."""
        return self._decoding.decode_batch(actions)

    def decode_columns(self, actions: Any) -> tuple[Any, int]:
        """Many actions as columns of the sim's own action space, and how many rows they have."""
        return self._decoding.decode_columns(actions)

    def rounding_margins(self, numbers: Array) -> Array:
        """How decided rounded actions are, per row of encoded continuous numbers (B, k).

        The distance, in the sim's own units, to where an integer would flip; inf where nothing is rounded.
        """
        return self._decoding.rounding_margins(np.asarray(numbers, dtype=np.float64))

    def encode_mask(self, mask: Any) -> Array:
        """A mask in any form that a sim gives, as float32 (num_logits,); None allows everything.

        Raises:
            SimError: It does not fit the action space, or allows nothing at all for a choice.
        """
        return self._masks.encode(mask)

    def encode_masks(self, masks: Sequence[Any] | Array) -> Array:
        """Many masks at once: float32 (B, num_logits)."""
        return self._masks.encode_batch(masks)

    def allows(self, action: Any, obs: Any, mask: Any = None) -> bool:
        """Whether the action mask, wherever it comes from, allows an action of the sim's own space."""
        return self.mask_source is None or self._masks.allows(action, self._mask_of(obs, mask))

    def fits(self, algorithm: str) -> bool:
        """Whether this algorithm can learn from the same spaces."""
        own = (self.observation_space, self.action_space, algorithm)
        return refusal(*own, action_scale=self.action_scale) is None

    @property
    def is_blind(self) -> bool:
        """Whether the network sees nothing of the sim."""
        return self._encoding.is_empty and self.mask_source is None

    def describe(self) -> list[str]:
        """One line per leaf: its path, its space, and how it is learned from."""
        lines = list(self._encoding.lines)
        if self.mask_source is not None:
            where = "info.action_mask" if self._mask_key is None else f"observation.{self._mask_key}"
            space = "" if self._mask_key is None else f"{describe_space(self._mask_space())} "
            lines.append(f"{where}: {space}-> mask of the {self._masks.size} choices")
        if self.frame_stack > 1:
            lines.append(f"observation: the last {self.frame_stack} side by side, oldest first")
        return lines + self._decoding.lines

    def to_json(self) -> dict[str, Any]:
        """The spaces and the options: all that it takes to make the same adapter again."""
        return {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "algorithm": self.algorithm,
            "action_scale": self.action_scale,
            "action_mask": self.mask_source,
            # Left out where it is 1, as in what was written before there was one.
            **({"frame_stack": self.frame_stack} if self.frame_stack > 1 else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Adapter:
        """The adapter that `to_json` described.

        Raises:
            SimError: Not such a description.
        """
        if not isinstance(data, Mapping) or not {"observation_space", "action_space"} <= set(data):
            raise SimError(f"Not an adapter: {short(data)}.")
        return cls(
            space_from_json(data["observation_space"]),
            space_from_json(data["action_space"]),
            data.get("algorithm") or "PPO",
            data.get("action_scale"),
            data.get("action_mask"),
            data.get("frame_stack", 1),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.algorithm, self._encoding.size, self.nvec, self.num_continuous))

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self.algorithm, self.action_scale, self.mask_source, self.frame_stack)
        return (Adapter, (self.observation_space, self.action_space, *options))

    def __repr__(self) -> str:
        return f"Adapter({self.encoded_observation_space} -> {self.encoded_action_space})"

    def _find_mask(self, asked: str | None) -> str | None:
        """Where the mask comes from.

        Raises:
            ProjectError: The key that was asked for is not there, or there is nothing to mask.
        """
        space = self.observation_space
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
        if asked is None:
            is_found = MASK_KEY in keys and 0 < self._masks.size == mask_size(space[MASK_KEY])  # type: ignore[index]
            return MASK_KEY if is_found else None
        if not self._masks.size:
            raise ProjectError(
                f"action_mask: {asked!r} masks nothing, all actions are continuous.",
                hint="Remove action_mask from the project.",
            )
        if asked != "info" and asked not in keys:
            raise ProjectError(
                f"action_mask: the observation has no key {asked!r}.",
                hint=did_you_mean(asked, ["info", *keys]),
            )
        return asked

    def _mask_space(self) -> Space:
        space = self.observation_space
        return space.spaces[self._mask_key] if isinstance(space, spaces.Dict) and self._mask_key else space

    def _mask_of(self, obs: Any, mask: Any) -> Any:
        if self._mask_key is None:
            if mask is not None and self.mask_source is None:
                raise SimError(
                    "An action mask was given, but this adapter has none.", hint="Write `action_mask: info`."
                )
            return mask
        if mask is not None:
            return mask
        if not isinstance(obs, Mapping) or self._mask_key not in obs:
            raise SimError(f"observation.{self._mask_key}: missing, it holds the action mask.")
        return obs[self._mask_key]

    def _join(self, vector: Array, images: list[Array], mask: Array) -> Encoded:
        if self._is_plain:
            return vector
        joined: dict[str, Array] = {"vector": vector} if self._encoding.size else {}
        joined.update({f"image_{index}": image for index, image in enumerate(images)})
        if self.mask_source is not None:
            joined["action_mask"] = mask
        return joined

    def _frame_space(self) -> Space:
        vector = spaces.Box(-np.inf, np.inf, (self._encoding.size,), np.float32)
        if self._is_plain:
            return vector
        parts: dict[str, Space] = {"vector": vector} if self._encoding.size else {}
        parts.update({f"image_{index}": image.encoded for index, image in enumerate(self._encoding.images)})
        if self.mask_source is not None:
            parts["action_mask"] = spaces.Box(0.0, 1.0, (self.num_logits,), np.float32)
        return spaces.Dict(parts)
