"""The engine's learners of SAC and DQN beside RLlib's own: the same parameters after the same batches."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from tests.learning.engine.test_learner import MASKED, VECTOR, Spaces, observed

from platotk.learning.engine.learner import NUM_SKIPPED
from platotk.learning.engine.off_policy_learner import EngineDQNLearner, EngineSACLearner
from platotk.learning.modules import rl_module_spec

pytestmark = pytest.mark.usefixtures("ray_session")

ROWS = 64
MODEL = {"fcnet_hiddens": [16, 16], "head_fcnet_hiddens": [16]}
KINDS: dict[str, Any] = {
    "SAC": (SACConfig, EngineSACLearner, SACTorchLearner),
    "DQN": (DQNConfig, EngineDQNLearner, DQNTorchLearner),
}
IMAGES = gym.spaces.Dict({"vector": VECTOR, "image_0": gym.spaces.Box(-1, 1, (1, 12, 12), np.float32)})
CASES: dict[str, dict[str, Any]] = {
    "SAC": {"name": "SAC", "action": "box"},
    "SAC, single critic": {"name": "SAC", "action": "box", "twin_q": False},
    "SAC, discrete": {"name": "SAC", "action": "discrete"},
    "SAC, images": {"name": "SAC", "action": "box", "observation": IMAGES},
    "SAC, clipped": {"name": "SAC", "action": "box", "grad_clip": 0.1},
    "SAC, clipped by value": {"name": "SAC", "action": "box", "grad_clip": 0.01, "grad_clip_by": "value"},
    "SAC, rarely followed": {"name": "SAC", "action": "box", "target_network_update_freq": 50, "tau": 0.5},
    "DQN": {"name": "DQN", "action": "discrete"},
    "DQN, plain": {"name": "DQN", "action": "discrete", "double_q": False, "dueling": False},
    "DQN, Rainbow": {"name": "DQN", "action": "discrete", "num_atoms": 7, "v_min": -3.0, "v_max": 3.0, "noisy": True},
    "DQN, masked": {"name": "DQN", "action": "discrete", "observation": MASKED},
    "DQN, Huber": {"name": "DQN", "action": "discrete", "td_error_loss_fn": "huber", "grad_clip": 0.05},
}


def build(kind: type, name: str, action: str, *, observation: Any = VECTOR, num_gpus: int = 0, **given: Any) -> Any:
    """A learner of one of the two kinds; the same seed, so the same first weights."""
    config = KINDS[name][0]().debugging(seed=5).learners(learner_class=kind, num_gpus_per_learner=num_gpus)
    rates = {"actor_lr": 3e-3, "critic_lr": 3e-3, "alpha_lr": 3e-3} if name == "SAC" else {"lr": 3e-3}
    config.training(**{**rates, "gamma": 0.9, **given})
    config.rl_module(model_config=MODEL)
    spaces_ = Spaces(action, observation)
    spec = rl_module_spec(spaces_, name, MODEL)  # type: ignore[arg-type]
    if spec is not None:
        config.rl_module(rl_module_spec=spec)
    spaces = (observation, spaces_.encoded_action_space)
    torch.manual_seed(5)
    learner = config.build_learner(spaces={"__env__": spaces, "__env_single__": spaces, DEFAULT_MODULE_ID: spaces})
    for optimizer in learner._named_optimizers.values():
        for group in optimizer.param_groups:
            # Adam's own 1e-8 makes whole steps of gradients that are rounding alone: RLlib beside itself with weights
            # changed by 1e-7 is 2e-4 apart after one update of Rainbow's.
            group["eps"] = 1e-5
    return learner


def drawn(observation: Any, action: Any, seed: int) -> dict[str, Any]:
    """A batch as the replay buffer gives one."""
    rng = np.random.default_rng(seed)
    action.seed(seed)
    return {
        "obs": observed(rng, observation, ROWS),
        "new_obs": observed(rng, observation, ROWS),
        "actions": np.stack([action.sample() for _ in range(ROWS)]),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "terminateds": rng.random(ROWS) < 0.1,
        "truncateds": rng.random(ROWS) < 0.1,
        "n_step": rng.integers(1, 4, ROWS),
        "weights": rng.random(ROWS).astype(np.float32),
    }


def tensors(columns: Any) -> Any:
    if isinstance(columns, dict):
        return {name: tensors(part) for name, part in columns.items()}
    return torch.from_numpy(np.ascontiguousarray(columns))


def updated_by_rllib(learner: Any, columns: dict[str, Any], steps: int, seed: int) -> Any:
    torch.manual_seed(seed)
    batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(tensors(columns))}, ROWS)
    return learner.update(batch=batch, timesteps={"num_env_steps_sampled_lifetime": steps})[DEFAULT_MODULE_ID]


def updated(learner: Any, batches: list[dict[str, Any]], steps: list[int], seeds: list[int]) -> Any:
    learner.begin_updates(steps[0])
    for columns, num_steps, seed in zip(batches, steps, seeds, strict=True):
        torch.manual_seed(seed)
        errors = learner.update_from(columns, num_steps, needs_errors=True)
        assert errors.shape == (ROWS,)
    return learner.end_updates(steps[-1])[DEFAULT_MODULE_ID]


def assert_same(ours: Any, rllibs: Any) -> None:
    """All that is learned, and the networks that follow."""
    theirs = rllibs.module[DEFAULT_MODULE_ID].state_dict()
    for name, tensor in ours.module[DEFAULT_MODULE_ID].state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5, msg=lambda text, n=name: n + text)
    for one, other in zip(
        getattr(ours, "curr_log_alpha", {}).values(), getattr(rllibs, "curr_log_alpha", {}).values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_rllibs_after_the_same_batches(name: str) -> None:
    case = CASES[name]
    _, engine, stock = KINDS[case["name"]]
    ours, rllibs = build(engine, **case), build(stock, **case)
    before = {key: value.clone() for key, value in ours.module[DEFAULT_MODULE_ID].state_dict().items()}
    observation, action = case.get("observation", VECTOR), Spaces(case["action"], VECTOR).encoded_action_space
    batches = [drawn(observation, action, seed) for seed in range(6)]
    steps = [600 + 30 * index for index in range(6)]
    for first in (0, 3):  # two calls of what is one training step
        part = slice(first, first + 3)
        said = updated(ours, batches[part], steps[part], list(range(6))[part])
        for index in range(first, first + 3):
            expected = updated_by_rllib(rllibs, batches[index], steps[index], index)
        assert_same(ours, rllibs)
        assert float(said.pop(NUM_SKIPPED)) == 0
        assert said.keys() == expected.keys() - {"td_error"}  # which RLlib keeps for its buffer
        for key, value in expected.items():
            if "loss" in key or key.startswith(("qf_", "alpha", "default_optimizer")):
                np.testing.assert_allclose(float(said[key]), float(value), rtol=1e-3, atol=1e-4, err_msg=key)
    after = ours.module[DEFAULT_MODULE_ID].state_dict()
    assert max(float((after[key] - value).abs().max()) for key, value in before.items()) > 5e-3


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_state_goes_from_rllib_to_the_engine_and_back(name: str) -> None:
    case = CASES[name]
    _, engine, stock = KINDS[name]
    ours, rllibs = build(engine, **case), build(stock, **case)
    action = Spaces(case["action"], VECTOR).encoded_action_space
    batches = [drawn(VECTOR, action, seed) for seed in range(4)]
    # At once followed by the target networks, whose last step RLlib's state lacks (`left_out` keeps it).
    updated_by_rllib(rllibs, batches[0], 10_000, 0)
    ours.set_state(rllibs.get_state())
    for index in (1, 2):
        updated(ours, [batches[index]], [20_000 * index], [index])
        updated_by_rllib(rllibs, batches[index], 20_000 * index, index)
    if name == "DQN":
        assert_same(ours, rllibs)  # SAC's alpha is not in RLlib's state either
    later = build(stock, **case)
    later.set_state(ours.get_state())
    theirs = later.module[DEFAULT_MODULE_ID].state_dict()
    for key, value in ours.module[DEFAULT_MODULE_ID].state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0, msg=lambda text, n=key: n + text)


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_a_gradient_that_is_not_finite_is_left_out_and_counted(name: str) -> None:
    case = CASES[name]
    learner = build(KINDS[name][1], **case)
    batch = drawn(VECTOR, Spaces(case["action"], VECTOR).encoded_action_space, 0)
    batch["rewards"][:] = np.nan
    before = {key: value.clone() for key, value in learner.module[DEFAULT_MODULE_ID].named_parameters()}
    assert float(updated(learner, [batch, batch], [600, 700], [0, 1])[NUM_SKIPPED]) == 2
    critics = ("qf", "qf_twin", "encoder", "af", "vf") if name == "DQN" else ("qf",)
    for key, value in learner.module[DEFAULT_MODULE_ID].named_parameters():
        if key.startswith(critics):
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)
