"""A policy with guards around it: acts as the policy does, except where a guard says otherwise.

Given any policy that speaks the sim's own spaces, and its `Guards`, `GuardedPolicy` has the same methods, counts what
the guards did, and says it for each action. Where guards remember something (slew, hold), bare `act` is refused.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gymnasium import Space

from ..errors import AgentError, SimError
from ..spaces import from_json
from .guards import Controller, Did, Guards, Memory


class GuardedPolicy:
    """A policy and its guards.

    Attributes:
        unguarded: The policy alone.
        guards: What it may not do.
        counts: How often each guard did something, by guard and leaf, over all sessions.
        num_actions: How many actions were given.  num_guarded: In how many of them a guard did something.
    """

    def __init__(
        self,
        policy: Any,
        guards: Guards,
        *,
        controller: Controller | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.unguarded, self.guards, self._controller, self._clock = policy, guards, controller, clock
        self.counts: Counter[Did] = Counter()
        self.num_actions = self.num_guarded = 0

    @property
    def adapter(self) -> Any:
        """The policy's."""
        return self.unguarded.adapter

    @property
    def observation_space(self) -> Space[Any]:
        """The sim's own observation space."""
        space: Space[Any] = self.unguarded.observation_space
        return space

    @property
    def action_space(self) -> Space[Any]:
        """The sim's own action space."""
        space: Space[Any] = self.unguarded.action_space
        return space

    @property
    def has_memory(self) -> bool:
        """Whether an action depends on more than the last observation."""
        return bool(self.guards.has_memory or self.unguarded.has_memory)

    def act(self, obs: Any, *, mask: Any = None, observed_at: float | None = None) -> Any:
        """The best action that the guards allow.

        Raises:
            AgentError: The policy or a guard has memory, so that one observation is not enough.
            SimError: The observation does not fit, and no guard deals with that.
        """
        self._needs_no_memory("act")
        return self.session().act(obs, mask=mask, observed_at=observed_at)

    def act_batch(self, observations: Sequence[Any], *, masks: Sequence[Any] | None = None) -> list[Any]:
        """The same for several independent observations."""
        self._needs_no_memory("act_batch")
        given = None if masks is None else dict(enumerate(masks))
        actions = self.sessions(len(observations)).act(dict(enumerate(observations)), masks=given)
        return [actions[row] for row in range(len(observations))]

    def session(self) -> GuardedSession:
        """A conversation with one sim or plant."""
        return GuardedSession(self.sessions(1))

    def sessions(self, num_rows: int) -> GuardedSessions:
        """Several conversations, one forward pass for all."""
        return GuardedSessions(self, num_rows)

    def settle(self, memory: Memory, look: Any, action: Any, **given: Any) -> tuple[Any, list[Did]]:
        """What is sent for one row, counted."""
        sent, did = self.guards.settle(memory, look, action, controller=self._controller, **given)
        self.num_actions += 1
        self.num_guarded += bool(did)
        self.counts.update(did)
        return sent, did

    def anew(self) -> GuardedPolicy:
        """The same, with nothing counted yet."""
        return GuardedPolicy(self.unguarded, self.guards, controller=self._controller, clock=self._clock)

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def report(self) -> dict[str, Any]:
        """What the guards did, for an assessment."""
        return {
            "actions": self.num_actions,
            "guarded": self.num_guarded,
            "did": [{"guard": guard, "leaf": leaf, "count": n} for (guard, leaf), n in sorted(self.counts.items())],
        }

    def _needs_no_memory(self, call: str) -> None:
        if self.has_memory:
            raise AgentError(
                f"this agent has memory, so {call}() on a single observation would forget what came before.",
                hint="Use: session = agent.session(); session.act(obs); session.reset() at each new episode.",
            )


class GuardedSession:
    """One episode at a time.

    Attributes:
        guarded: What guards did to the last action: `[{"guard": "slew", "leaf": "valve"}]`; empty when nothing.
    """

    def __init__(self, rows: GuardedSessions) -> None:
        self._rows = rows
        self.guarded: list[dict[str, str]] = []

    def act(self, obs: Any, *, mask: Any = None, observed_at: float | None = None, is_live: bool = False) -> Any:
        """The action for the next observation.

        Args:
            obs: In the sim's own space; with `on_missing`, leaves may be missing or None.
            mask: As `info["action_mask"]`.
            observed_at: When it was observed, in seconds since 1970; None counts as just now.
            is_live: See `GuardedSessions.act`.
        """
        action = self._rows.act({0: obs}, masks={0: mask}, observed_at={0: observed_at}, is_live=is_live)[0]
        self.guarded = told(self._rows.did.get(0, []))
        return action

    def reset(self) -> None:
        """Begin a new episode."""
        self.guarded = []
        self._rows.reset(0)


class GuardedSessions:
    """Rows of episodes that act together.

    Attributes:
        did: What guards did to the last action of each row.
    """

    def __init__(self, policy: GuardedPolicy, num_rows: int) -> None:
        self._policy = policy
        self._inner = policy.unguarded.sessions(num_rows)
        self._memory = [Memory() for _ in range(num_rows)]
        self.did: dict[int, list[Did]] = {}

    def reset(self, row: int) -> None:
        """The row's next observation begins an episode."""
        self._inner.reset(row)
        self._memory[row] = Memory()
        self.did.pop(row, None)

    def act(
        self,
        observations: Mapping[int, Any],
        *,
        masks: Mapping[int, Any] | None = None,
        observed_at: Mapping[int, float | None] | None = None,
        is_live: bool = False,
    ) -> dict[int, Any]:
        """The action for each row that has an observation; a refused one leaves every row as it was.

        Args:
            observations: By row.
            masks: As `info["action_mask"]`, by row.
            observed_at: When each was observed, in seconds since 1970.
            is_live: The actions go to a plant now, and the times come from somebody else: no time that is said to have
                passed counts for more than has passed here.
        """
        policy, times, given = self._policy, observed_at or {}, masks or {}
        now = policy.now()
        looks = {row: policy.guards.look(obs, times.get(row), now) for row, obs in observations.items()}
        asked = {row: look.observation for row, look in looks.items() if look.outcome is None}
        answers = self._ask(asked, {row: given.get(row) for row in asked})
        actions = {}
        for row, look in looks.items():
            if row in asked and row not in answers:
                look.did.append(("policy_failed", "action"))
                look.outcome = "fallback"
            actions[row], self.did[row] = policy.settle(
                self._memory[row],
                look,
                answers.get(row),
                observed_at=times.get(row),
                now=now,
                is_live=is_live,
                mask=given.get(row),
            )
        return actions

    def _ask(self, asked: dict[int, Any], masks: dict[int, Any]) -> dict[int, Any]:
        """The policy's answers; none for a row where it fails on a sound observation, and there is a fallback."""
        if not asked:
            return {}
        try:
            return dict(self._inner.act(asked, masks=masks))
        except (SimError, AgentError):
            if not self._policy.guards.has_fallback:
                raise
            for row, obs in asked.items():
                self._policy.adapter.encode(obs, masks[row])  # raises where it is the observation that is wrong
        if len(asked) == 1:
            return {}
        return {key: value for row in asked for key, value in self._ask({row: asked[row]}, {row: masks[row]}).items()}


def told(did: Sequence[Did]) -> list[dict[str, str]]:
    """What guards did, as plain data."""
    return [{"guard": guard, "leaf": leaf} for guard, leaf in did]


def read_observation(policy: Any, data: Any, *, name: str = "observation") -> Any:
    """An observation from JSON for a policy with or without guards.

    Raises:
        SimError: It does not fit, and no guard deals with that.
    """
    guards = getattr(policy, "guards", None)
    if guards is None:
        return from_json(policy.observation_space, data, name=name)
    return guards.inputs.read(data, name=name)


def guards_of(project: Any, adapter: Any) -> Guards | None:
    """The guards of a project, checked against the sim's spaces; None when it has none.

    Raises:
        ProjectError: With file and line: a leaf that does not exist, a limit that does not fit.
    """
    data = project.guard.to_data(project.root)
    return Guards(data, adapter, where=project.where) if data else None


def guard_policy(policy: Any, project: Any) -> Any:
    """The policy within the guards of a project, or as it is when there are none.

    The fallback controller is imported: it is the project's own code, as its sim is.

    Raises:
        ProjectError: The guards do not fit the sim's spaces.
        SimError: There is no such controller.
    """
    guards = guards_of(project, policy.adapter)
    return policy if guards is None else GuardedPolicy(policy, guards, controller=controller_of(project))


def controller_of(project: Any) -> Controller | None:
    """The fallback controller of a project's guard, where it is one.

    Raises:
        SimError: It cannot be found, or is no function.
    """
    fallback = project.guard.fallback
    if callable(fallback):
        controller: Controller = fallback
        return controller
    if not isinstance(fallback, str):
        return None
    from ..sims.loading import load_attribute

    found = load_attribute(fallback, project.root)
    if not callable(found):
        raise SimError(f"{project.where('guard.fallback')}: {fallback} is {type(found).__name__}, not a function.")
    controller = found
    return controller
