"""Guards: what an agent may never do, and what it does when it cannot see.

Given the section `guard` of a project as plain data, and the sim's spaces, `Guards` checks every leaf and limit; then
it decides, step by step, what is really sent: `look` judges an observation before the policy sees it, `settle` turns
what the policy chose into what may be. Numpy and the spaces alone; `guarded` puts it around a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import AgentError, ProjectError, SimError
from ..spaces import Adapter, from_json
from ..spaces.leaves import dtype_of
from .guard_data import require_guard
from .guard_inputs import Inputs
from .guard_leaves import Leaf, Leaves
from .guard_rules import Rule

Did = tuple[str, str]
"""What a guard did: its name and the leaf; ("slew", "valve")."""
Controller = Callable[[Any], Any]
MAX_AHEAD_S = 60.0
"""How far an observation may come from the future; beyond that its time is no time, and it counts as just now."""


@dataclass
class Memory:
    """What guards remember of one episode.

    Attributes:
        action: The last one sent.
        observed_at: When that was, by the clock of the observations.
        sent_at: When that was, by the clock of this process.
        num_holds: Inputs held in a row.
    """

    action: Any = None
    observed_at: float | None = None
    sent_at: float | None = None
    num_holds: int = 0


@dataclass
class Look:
    """What was made of an observation: the one to act on, or else `hold` or `fallback`, and why."""

    observation: Any
    outcome: str | None = None
    did: list[Did] = field(default_factory=list)

    @property
    def is_stale(self) -> bool:
        """Whether its time says nothing about now."""
        return any(guard == "stale" for guard, _ in self.did)


@dataclass(frozen=True)
class _Limit:
    """The range and the speed of one leaf of the action."""

    leaf: Leaf
    low: float = -np.inf
    high: float = np.inf
    per_step: float = np.inf
    per_second: float = np.inf

    def is_left_by(self, value: Any) -> bool:
        """Whether a value that somebody wrote down lies outside the range, as the leaf's dtype writes both."""
        dtype = dtype_of(self.leaf.space)
        low, high = (self.low, self.high) if self.leaf.is_integer else np.array((self.low, self.high)).astype(dtype)
        given = np.asarray(value, None if self.leaf.is_integer else dtype)
        return bool(((given < low) | (given > high)).any())


class Guards:
    """The guards of one agent, checked against its spaces.

    Args:
        data: As `Guard.to_data` gives it, or a manifest holds it.
        adapter: For the spaces and the action mask.
        where: Names the place of a key for messages; gets `guard.clamp.valve`.

    Raises:
        ProjectError: A key or value that is none of a guard, a leaf that does not exist, a limit outside its space, a
            fallback that is no action.
    """

    def __init__(self, data: Mapping[str, Any], adapter: Adapter, *, where: Callable[[str], str] = str) -> None:
        require_guard(data, where)
        self.data = dict(data)
        self._adapter = adapter
        self._where = where
        leaves = Leaves(adapter.observation_space, adapter.action_space)
        self.inputs = Inputs(adapter.observation_space, leaves, data)
        self._clamps = [self._clamp(name, one, leaves) for name, one in data.get("clamp", {}).items()]
        self._slews = [self._slew(name, one, leaves) for name, one in data.get("slew", {}).items()]
        self._rules = [
            Rule(one, index, leaves, adapter.action_space, where) for index, one in enumerate(data.get("forbid", []))
        ]
        self._require_within_clamps()
        self._step_s = float(data.get("step_s", 0.0))
        self._max_holds = data.get("max_holds")
        self.controller = data["fallback"] if isinstance(data.get("fallback"), str) else None
        self._fallback = self._literal(data.get("fallback"))
        self._require_fallback_for_masks(leaves)
        holds = "hold" in self.inputs.outcomes or any(rule.then == "hold" for rule in self._rules)
        self.has_memory = holds or bool(self._slews)
        self.needs_clock = any(np.isfinite(one.per_second) for one in self._slews)

    def look(self, observation: Any, observed_at: float | None, now: float) -> Look:
        """Judge an observation.

        Args:
            observation: In the sim's own space, as far as it goes.
            observed_at: Seconds since 1970, or None.
            now: Likewise.
        """
        return Look(*self.inputs.judge(observation, observed_at, now))

    def settle(
        self,
        memory: Memory,
        look: Look,
        action: Any,
        *,
        observed_at: float | None = None,
        now: float | None = None,
        is_live: bool = False,
        mask: Any = None,
        controller: Controller | None = None,
    ) -> tuple[Any, list[Did]]:
        """What is sent, and what the guards did; the memory is brought up to date.

        Args:
            memory: Of the episode.
            look: What `look` made of the observation.
            action: The policy's, where it was asked.
            observed_at: Seconds since 1970, or None.
            now: Likewise, by this process's own clock.
            is_live: The action goes out now, so that no `observed_at` makes `per_second` faster than the own clock.
            mask: Action mask, where it comes from `info`.
            controller: The fallback, where that is one.

        Raises:
            AgentError: The fallback controller failed, and there is no last action to hold.
        """
        did, outcome, sent = list(look.did), look.outcome, action
        if observed_at is not None and now is not None and observed_at > now + MAX_AHEAD_S:
            observed_at = now
        memory.num_holds = memory.num_holds + 1 if outcome == "hold" else 0
        if outcome == "hold":
            if self._max_holds is not None and memory.num_holds > self._max_holds:
                outcome = "fallback"
                did.append(("max_holds", "observation"))
            sent = memory.action
        elif outcome is None:
            sent = self._limited(action, memory, self._elapsed_s(memory, observed_at, now if is_live else None), did)
        if outcome != "fallback":
            outcome, sent = self._ruled(outcome, sent, look.observation, memory, did)
        if outcome is None and sent is not action:
            for limit in self._clamps:  # what a rule wrote is 0.98, too
                sent = _clipped(sent, limit.leaf, limit.low, limit.high, "clamp", [])
        if outcome != "fallback" and did and not self._is_allowed(sent, look.observation, mask):
            outcome = "fallback"
            did.append(("mask", "action"))
        if outcome == "hold":
            did.append(("hold", "action"))
        if outcome == "fallback":
            sent = self._last_resort(look.observation, memory, controller, did)
        memory.action, memory.sent_at = sent, now
        if not look.is_stale:
            memory.observed_at = observed_at if is_live else _latest(memory.observed_at, observed_at)
        elif not is_live and memory.observed_at is not None and now is not None:
            memory.observed_at = max(memory.observed_at, now)
        return sent, did

    def _elapsed_s(self, memory: Memory, observed_at: float | None, now: float | None) -> float:
        """How long ago the last action was sent; with `now` never longer than by the own clock."""
        own_s = np.inf if now is None or memory.sent_at is None else max(0.0, now - memory.sent_at)
        if observed_at is None or memory.observed_at is None:
            return min(self._step_s, own_s)
        elapsed_s = observed_at - memory.observed_at
        if elapsed_s >= 0:
            return min(elapsed_s, own_s)
        return own_s if np.isfinite(own_s) else 0.0  # an earlier one that comes late, or the last was from the future

    def _limited(self, action: Any, memory: Memory, elapsed_s: float, did: list[Did]) -> Any:
        """The policy's action within range and speed."""
        for limit in self._clamps:
            action = _clipped(action, limit.leaf, limit.low, limit.high, "clamp", did)
        if memory.action is None:
            return action
        for limit in self._slews:
            before = np.asarray(limit.leaf.read(memory.action), np.float64)
            reach = min(limit.per_step, limit.per_second * elapsed_s if np.isfinite(limit.per_second) else np.inf)
            action = _clipped(action, limit.leaf, before - reach, before + reach, "slew", did)
        return action

    def _ruled(
        self, outcome: str | None, action: Any, observation: Any, memory: Memory, did: list[Did]
    ) -> tuple[str | None, Any]:
        """What the rules leave of an action: tried in order until none of them changes it any more."""
        if action is None:  # held, and nothing was ever sent
            return "fallback", None
        for _ in range(len(self._rules) + 1):
            is_changed = False
            for rule in self._rules:
                if not rule.holds(action, observation):
                    continue
                if rule.then == "fallback":
                    did.append(("forbid", rule.name))
                    return "fallback", None
                if rule.then == "hold":
                    if outcome == "hold":  # it is the last action that may not be
                        if rule.has_action:
                            did.append(("forbid", rule.name))
                            return "fallback", None
                        continue
                    did.append(("forbid", rule.name))
                    if memory.action is None:
                        return "fallback", None
                    outcome, action, is_changed = "hold", memory.action, True
                    continue
                replacement = rule.replace(action)
                if not rule.is_same(action, replacement):
                    did.append(("forbid", rule.name))
                    outcome = None if outcome == "hold" else outcome
                    action, is_changed = replacement, True
            if not is_changed:
                return outcome, action
        # Rules that undo each other: nothing satisfies them all.
        return ("fallback" if self.has_fallback else outcome), action

    def _last_resort(self, observation: Any, memory: Memory, controller: Controller | None, did: list[Did]) -> Any:
        did.append(("fallback", "action"))
        if self.controller is None:
            return self._fallback
        reason: Exception | None = None
        try:
            action = None if controller is None else self._as_action(controller(observation))
        except Exception as error:  # the user's own code; whatever it does, the plant needs an action
            action, reason = None, error
        if action is not None:
            for limit in self._clamps:
                action = _clipped(action, limit.leaf, limit.low, limit.high, "clamp", did)
            return action
        did.append(("controller_failed", "action"))
        if memory.action is None:
            raise AgentError(
                f"the fallback controller {self.controller} gave no action: {reason!r}",
                hint="It must return an action of the sim's own space, for whatever observation it is given.",
            ) from reason
        return memory.action

    def _as_action(self, value: Any) -> Any:
        """An action from a controller: arrays or plain numbers, as strictly read as JSON."""
        return from_json(self._adapter.action_space, value, name="action")

    def _is_allowed(self, action: Any, observation: Any, mask: Any) -> bool:
        try:
            return self._adapter.allows(action, observation, mask)
        except (SimError, KeyError, TypeError, ValueError):
            return True  # there is no mask to be read: the input was missing

    @property
    def has_fallback(self) -> bool:
        """Whether there is an action, or a controller, for when nothing else may be sent."""
        return self.controller is not None or self._fallback is not None

    def _clamp(self, name: str, given: Mapping[str, Any], leaves: Leaves) -> _Limit:
        key = f"guard.clamp.{name}"
        leaf = self._ordered(name, key, leaves)
        low, high = leaf.bounds()
        for side, bound in given.items():
            is_outside = (bound < low).any() if side == "low" else (bound > high).any()
            is_beyond = (bound > high).any() if side == "low" else (bound < low).any()
            if is_outside or is_beyond:
                raise ProjectError(
                    f"{self._where(key)}: {side} is {bound:g}, outside {leaf.name}'s own range of "
                    f"{low.min():g} to {high.max():g}.",
                    hint="A clamp is narrower than the space.",
                )
        low_, high_ = float(given.get("low", -np.inf)), float(given.get("high", np.inf))
        if leaf.is_integer:
            low_, high_ = np.ceil(low_), np.floor(high_)
            if low_ > high_:
                raise ProjectError(f"{self._where(key)}: no whole number lies between low and high.")
        return _Limit(leaf, low_, high_)

    def _slew(self, name: str, given: Mapping[str, Any], leaves: Leaves) -> _Limit:
        key = f"guard.slew.{name}"
        leaf = self._ordered(name, key, leaves)
        per_step, per_second = given.get("per_step", np.inf), given.get("per_second", np.inf)
        if leaf.is_integer:
            if np.isfinite(per_second) or per_step < 1:
                raise ProjectError(
                    f"{self._where(key)}: {leaf.name} is a whole number and moves by 1 at least.",
                    hint=f"Say slew: {{{name}: {{per_step: 1}}}}",
                )
            per_step = np.floor(per_step)
        return _Limit(leaf, per_step=float(per_step), per_second=float(per_second))

    def _ordered(self, name: str, key: str, leaves: Leaves) -> Leaf:
        leaf = leaves.find(name, self._where(key), sides=("action",))
        if not leaf.is_ordered:
            raise ProjectError(
                f"{self._where(key)}: the values of {leaf.name} have no order.",
                hint="Use forbid for it: when: {...}, then: hold, fallback, or another value.",
            )
        return leaf

    def _literal(self, fallback: Any) -> Any:
        """The fallback action, checked: of the space, within the clamps, and breaking no rule by itself."""
        if fallback is None or isinstance(fallback, str):
            return None
        where = self._where("guard.fallback")
        try:
            action = from_json(self._adapter.action_space, fallback, name="fallback")
        except SimError as error:
            raise ProjectError(f"{where}: {error.message}", hint=error.hint) from None
        for limit in self._clamps:
            if limit.is_left_by(limit.leaf.read(action)):
                raise ProjectError(f"{where}: {limit.leaf.name} lies outside its clamp.")
            action = _clipped(action, limit.leaf, limit.low, limit.high, "clamp", [])
        for rule in self._rules:
            if not rule.has_observation and rule.holds(action, None):
                raise ProjectError(f"{where}: the fallback is itself what {rule.name} forbids.")
        return action

    def _require_within_clamps(self) -> None:
        """What rules write is sent, so it lies within the clamps too."""
        for index, rule in enumerate(self._rules):
            for leaf, value in rule.values:
                for limit in self._clamps:
                    one, other = leaf.index, limit.leaf.index
                    if limit.leaf.path != leaf.path or not (one is None or other is None or one == other):
                        continue
                    given = np.asarray(value)
                    if one is None and other is not None:
                        given = given[other]
                    if limit.is_left_by(given):
                        where = self._where(f"guard.forbid.{index}.then")
                        raise ProjectError(f"{where}: what {rule.name} writes to {leaf.name} lies outside its clamp.")

    def _require_fallback_for_masks(self, leaves: Leaves) -> None:
        if self._adapter.mask_source is None or self.has_fallback:
            return
        numbers = {leaf.path for leaf in leaves.of("action") if not leaf.is_integer}
        changing = [one.leaf for one in (*self._clamps, *self._slews)]
        changing += [leaf for rule in self._rules for leaf in rule.written]
        choices = sorted({leaf.name for leaf in changing if leaf.path not in numbers})
        if choices:
            raise ProjectError(
                f"{self._where('guard')}: what is done to {choices[0]} may not be allowed by the action mask, "
                "and there is no fallback for that.",
                hint="Add guard.fallback, an action that is always safe.",
            )


def _latest(one: float | None, other: float | None) -> float | None:
    return other if one is None or other is None else max(one, other)


def _clipped(action: Any, leaf: Leaf, low: Any, high: Any, guard: str, did: list[Did]) -> Any:
    """The action with a leaf between two limits, which hold as the leaf's own dtype writes numbers, too."""
    value = np.asarray(leaf.read(action), np.float64)
    within = np.clip(value, _inward(leaf, low, 1), _inward(leaf, high, -1))
    if (within == value).all():
        return action
    did.append((guard, leaf.name))
    return leaf.written(action, within)


def _inward(leaf: Leaf, bound: Any, towards: int) -> Any:
    """The number of the leaf's dtype next to a limit that does not exceed it: 0.98 is 0.98000002 in float32."""
    if leaf.is_integer:
        return bound
    with np.errstate(over="ignore"):
        near = np.asarray(bound, np.float64).astype(dtype_of(leaf.space))
    written = near.astype(np.float64)
    is_beyond = written < bound if towards > 0 else written > bound
    inner = np.where(is_beyond, np.nextafter(near, near.dtype.type(towards * np.inf)), near)
    return inner.astype(np.float64)
