"""Runs with one real, tiny iteration of RLlib, and how an exported agent compares with RLlib on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tests.agents.served import request

from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.agents.export import add_margins
from platotk.agents.parity import Verification, compare
from platotk.learning import checkpoints
from platotk.learning.algorithm import algorithm_name, build_config
from platotk.learning.policies import RLlibPolicy
from platotk.learning.tracing import PolicyNetwork
from platotk.project import Project
from platotk.run import Run, create_run
from platotk.sims.loading import sim_spec
from platotk.spaces import Adapter, adapt, from_json

MAX_CALLS = 20


class Plant(gym.Env):
    """Any two spaces; rewards nothing in particular. `choices`: the sizes of masked choices."""

    def __init__(self, observation_space, action_space, choices=()):
        self.observation_space, self.action_space, self.choices = observation_space, action_space, choices

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), self._info()

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t >= 20, self._info()

    def _info(self):
        if not self.choices:
            return {}
        masks = [(self.np_random.random(num) < 0.5).astype(np.int8) for num in self.choices]
        for mask in masks:
            mask[self.np_random.integers(len(mask))] = 1
        return {"action_mask": np.concatenate(masks)}


def quick_run(project: Project, path: Path, *, adapter: Adapter | None = None) -> Run:
    """A run whose policy has learned once: RLlib's own components and checkpoint, without the trial of the sim."""
    spec = sim_spec(project)
    if adapter is None:
        sim = spec.make()
        mask = "info" if "action_mask" in sim.reset(seed=0)[1] else None
        name = project.algorithm if project.algorithm in ("SAC", "DQN") else "PPO"
        adapter = adapt(sim.observation_space, sim.action_space, algorithm=name, action_mask=mask)
    config = build_config(project, adapter, spec, num_cpus=1)
    name = algorithm_name(config)
    run = create_run(project, run=path, algorithm=name)
    run.project = project
    run.update(adapter=adapter.to_json(), algorithm=name, mapping=adapter.describe(), own_process=False, seed=0)
    torch.set_num_threads(1)  # beside other tests, two threads wait for each other
    algo = config.build_algo()
    try:
        before = _weights(algo)
        for _ in range(MAX_CALLS):
            algo.train()
            now = _weights(algo)
            if any(not np.array_equal(before[key], now[key]) for key in before):
                break
        else:
            raise RuntimeError("nothing was learned")
        checkpoints.save(algo, run.path, 1, extra={"iteration": 1})
    finally:
        algo.stop()
    return run


def compared(
    ours: Agent | RLlibPolicy, policy: RLlibPolicy, observations: Sequence[Any], masks: Sequence[Any]
) -> Verification:
    """Both on the same observations, each the first of an episode."""
    rows: list[dict[str, Any]] = [{"is_first": True} for _ in observations]
    encoded = [policy.adapter.encode(obs, mask) for obs, mask in zip(observations, masks, strict=True)]
    add_margins(policy, PolicyNetwork(policy).eval(), {"rows": rows, "encoded": encoded})
    expected, actual = [
        [who.session().act(obs, mask=mask) for obs, mask in zip(observations, masks, strict=True)]
        for who in (policy, ours)
    ]
    return compare(ours.action_space, expected, actual, [row["margin"] for row in rows])


def require_served(agent: Agent) -> None:
    """It is ready as a server, shows its page, and answers its first recorded row as recorded."""
    server = Server(agent)
    assert request(server, "/readyz") == (200, {"status": "ready"})
    shown, (row, *_) = request(server, "/form.json")[1], agent.recorded(limit=1)
    body = {"observation": shown["observation"], **({} if row.mask is None else {"action_mask": row.mask})}
    status, answer = request(server, "/act", body)
    assert status == 200, answer
    action = from_json(agent.action_space, answer["action"])
    assert compare(agent.action_space, [row.action], [action], [row.margin]).is_equal


def _weights(algo: Any) -> dict[str, np.ndarray]:
    module = algo.learner_group._learner.module["default_policy"]
    return {name: value.detach().cpu().numpy().copy() for name, value in module.named_parameters()}
