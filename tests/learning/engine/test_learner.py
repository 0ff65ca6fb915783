"""The engine's learner beside RLlib's own: the same parameters after the same minibatches."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns as Names
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from platotk.learning.engine import compilation, plan
from platotk.learning.engine.acting import Actor
from platotk.learning.engine.columns import taken
from platotk.learning.engine.fragments import Fragment, FragmentBuilder
from platotk.learning.engine.learner import NUM_SKIPPED, EngineLearner
from platotk.learning.modules import rl_module_spec

pytestmark = pytest.mark.usefixtures("ray_session")

VECTOR = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
ACTIONS = {
    "discrete": gym.spaces.Discrete(3),
    "multi": gym.spaces.MultiDiscrete([2, 4]),
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
    "mixed": gym.spaces.Dict(
        {"continuous": gym.spaces.Box(-1, 1, (2,), np.float32), "discrete": gym.spaces.MultiDiscrete([3, 2])}
    ),
}
MODEL = {"fcnet_hiddens": [16, 16], "fcnet_activation": "tanh", "vf_share_layers": False}
TIMESTEPS = {"num_env_steps_sampled_lifetime": 500}


class Spaces:
    """What an adapter says of them."""

    def __init__(self, action: str, observation: gym.Space[Any]) -> None:
        self.encoded_observation_space, self.encoded_action_space = observation, ACTIONS[action]


class OwnModule(TorchRLModule, ValueFunctionAPI):
    """A network as a user would write one."""

    def setup(self) -> None:
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU())
        self.policy, self.value = torch.nn.Linear(16, 3), torch.nn.Linear(16, 1)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self.body(batch[Names.OBS])
        return {Names.ACTION_DIST_INPUTS: self.policy(features), Names.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        features = self.body(batch[Names.OBS]) if embeddings is None else embeddings
        return self.value(features).squeeze(-1)


class Sharp(TorchCategorical):
    """A distribution that only RLlib's code can handle."""

    @classmethod
    def from_logits(cls, logits: Any, **kwargs: Any) -> Any:
        return cls(logits=2.0 * logits)


class SharpModule(OwnModule):
    action_dist_cls = Sharp


@pytest.fixture(scope="module")
def compiled() -> None:
    compilation.kernel()


def build(
    kind: type,
    action: str,
    *,
    observation: Any = VECTOR,
    model: Any = None,
    module: Any = None,
    path: str = "torch",
    num_gpus: int = 0,
    **given: Any,
) -> Any:
    """A learner of one of the two kinds; the same seed, so the same first weights."""
    config = PPOConfig().debugging(seed=5).learners(learner_class=kind, num_gpus_per_learner=num_gpus)
    plan.apply(plan.EnginePlan(path), config)
    config.learners(learner_class=kind)
    config.training(**{"lr": 3e-3, "num_epochs": 3, "grad_clip": 0.5, "grad_clip_by": "global_norm", **given})
    model = {**MODEL, **(model or {})}
    config.rl_module(model_config=model)
    spec = RLModuleSpec(module_class=module) if module else rl_module_spec(Spaces(action, observation), "PPO", model)
    if spec is not None:
        config.rl_module(rl_module_spec=spec)
    spaces = (observation, ACTIONS[action])
    torch.manual_seed(5)
    return config.build_learner(spaces={"__env__": spaces, "__env_single__": spaces, DEFAULT_MODULE_ID: spaces})


def observed(rng: np.random.Generator, space: gym.Space[Any], num_sims: int) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: observed(rng, part, num_sims) for key, part in space.spaces.items()}
    if space.low.min() == 0:  # a mask: the first choices are always allowed
        mask = (rng.random((num_sims, *space.shape)) < 0.6).astype(np.float32)
        mask[:, 0] = mask[:, -1] = 1
        return mask
    return rng.normal(size=(num_sims, *space.shape)).astype(np.float32)


def sampled(learner: Any, *, num_steps: int = 41, observation: Any = VECTOR, seed: int = 0) -> Fragment:
    """Steps by the learner's own policy, with random rewards and endings."""
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    actor = Actor(learner.module[DEFAULT_MODULE_ID], "cpu", explore=True)
    obs = observed(rng, observation, 4)
    builder = FragmentBuilder(4, obs, num_steps, np.zeros(4, dtype=bool))
    for _ in range(num_steps):
        chosen = actor.act(obs, 0)
        chosen.pop(Names.EMBEDDINGS, None)
        # As if other weights had acted, so that ratios differ from 1 and some are clipped.
        chosen[Names.ACTION_DIST_INPUTS] += rng.normal(0, 0.2, chosen[Names.ACTION_DIST_INPUTS].shape).astype(
            np.float32
        )
        chosen[Names.ACTION_LOGP] += rng.normal(0, 0.2, 4).astype(np.float32)
        obs = observed(rng, observation, 4)
        builder.add(chosen, rng.normal(size=4), rng.random(4) < 0.05, rng.random(4) < 0.05, obs)
    return builder.fragment(0)


def update(learner: Any, **data: Any) -> dict[str, Any]:
    """Three epochs of minibatches of 32; 32 does not divide the batch."""
    learner.metrics.reset() if hasattr(learner.metrics, "reset") else None
    result = learner.update(**data, timesteps=TIMESTEPS, num_epochs=3, minibatch_size=32, shuffle_batch_per_epoch=False)
    return {name: float(stat) for name, stat in result[DEFAULT_MODULE_ID].items() if not name.startswith("num_trai")}


def for_rllib(ours: Any, fragment: Fragment) -> MultiAgentBatch:
    """The engine's batch in the form in which RLlib's learner takes one."""
    batch = ours._train_batch(fragment)
    observations = taken(fragment.observations, fragment.rows)
    is_dict = isinstance(observations, dict)
    obs = (
        {key: torch.from_numpy(part) for key, part in observations.items()}
        if is_dict
        else torch.from_numpy(observations)
    )
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch({Names.OBS: obs, **batch.columns})}, len(fragment))


def assert_same_parameters(ours: Any, rllibs: Any, tolerance: float = 1e-5) -> None:
    theirs = dict(rllibs.module[DEFAULT_MODULE_ID].named_parameters())
    for name, parameter in ours.module[DEFAULT_MODULE_ID].named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=tolerance, msg=lambda text, n=name: n + text)


MASKED = gym.spaces.Dict({"vector": VECTOR, "action_mask": gym.spaces.Box(0, 1, (3,), np.float32)})
CASES: dict[str, dict[str, Any]] = {
    "discrete": {"action": "discrete"},
    "multi, entropy": {"action": "multi", "entropy_coeff": 0.01},
    "box, no KL": {"action": "box", "use_kl_loss": False, "kl_coeff": 0.0},
    "box, values clipped": {"action": "box", "vf_clip_param": 0.3, "vf_loss_coeff": 0.7},
    "mixed, entropy": {"action": "mixed", "entropy_coeff": [[0, 0.02], [1000, 0.0]]},
    "shared network, relu": {"action": "mixed", "model": {"vf_share_layers": True, "fcnet_activation": "relu"}},
    "free deviations": {"action": "box", "model": {"free_log_std": True}},
    "masked": {"action": "discrete", "observation": MASKED, "entropy_coeff": 0.01},
    "own network": {"action": "discrete", "module": OwnModule},
    "own distribution": {"action": "discrete", "module": SharpModule},
    "clipped by norm": {"action": "discrete", "grad_clip": 0.05, "grad_clip_by": "norm"},
    "clipped by value": {"action": "discrete", "grad_clip": 0.01, "grad_clip_by": "value"},
    "not clipped": {"action": "discrete", "grad_clip": None},
    "a schedule": {"action": "discrete", "lr": [[0, 3e-3], [1000, 1e-4]]},
}


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name in CASES for path in ("torch", "kernel") if path == "torch" or "own" not in name],
)
def test_parameters_are_rllibs_after_the_same_minibatches(name: str, path: str, compiled: None) -> None:
    case = dict(CASES[name])
    observation = case.get("observation", VECTOR)
    ours, rllibs = build(EngineLearner, **case, path=path), build(PPOTorchLearner, **case)
    first = [parameter.detach().clone() for parameter in ours.module[DEFAULT_MODULE_ID].parameters()]
    for round_ in range(2):
        fragment = sampled(ours, observation=observation, seed=round_)
        theirs = for_rllib(ours, fragment)
        said, expected = update(ours, episodes=[fragment]), update(rllibs, batch=theirs)
        assert said.pop(NUM_SKIPPED) == 0, "only the engine's own loop counts these"
        assert_same_parameters(ours, rllibs)
        for key in ("policy_loss", "vf_loss", "vf_loss_unclipped", "entropy", "mean_kl_loss", "total_loss"):
            assert said[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), key
        for key in ("curr_kl_coeff", "curr_entropy_coeff", "default_optimizer_learning_rate"):
            assert said.get(key) == pytest.approx(expected.get(key)), key
        assert said.get("gradients_default_optimizer_global_norm", -1) == pytest.approx(
            expected.get("gradients_default_optimizer_global_norm", -1), rel=1e-3
        )
    assert (ours._kernel.native is not None) == (path == "kernel")
    moved = max(
        float((new - old).detach().abs().max())
        for new, old in zip(ours.module[DEFAULT_MODULE_ID].parameters(), first, strict=True)
    )
    assert moved > 1e-2


@pytest.mark.parametrize("path", ["torch", "kernel"])
def test_state_goes_from_rllib_to_the_engine_and_back(path: str, compiled: None) -> None:
    # Without a KL coefficient: RLlib's state lacks it (`left_out` keeps it in checkpoints).
    given: dict[str, Any] = {"action": "box", "use_kl_loss": False, "path": path}
    ours, rllibs = (build(kind, **given) for kind in (EngineLearner, PPOTorchLearner))
    later, rllibs_later = (build(kind, **given, lr=1.0) for kind in (EngineLearner, PPOTorchLearner))
    fragment = sampled(ours)
    update(rllibs, batch=for_rllib(ours, fragment))
    ours.set_state(rllibs.get_state())
    assert_same_parameters(ours, rllibs, 0)
    optimizer = ours.get_optimizer(DEFAULT_MODULE_ID)
    assert optimizer.param_groups[0]["fused"] is True
    fragment = sampled(ours, seed=1)
    batch = for_rllib(ours, fragment)
    update(ours, episodes=[fragment])
    update(rllibs, batch=batch)
    assert_same_parameters(ours, rllibs)  # Adam's moments came along
    state = ours.get_state()
    saved = state["optimizer"]["default_policy_default_optimizer"]["state"]
    theirs = rllibs.get_state()["optimizer"]["default_policy_default_optimizer"]["state"]
    assert saved["param_groups"][0] == theirs["param_groups"][0]
    assert saved["state"].keys() == theirs["state"].keys()
    for learner in (later, rllibs_later):
        learner.set_state(state)
        assert_same_parameters(learner, ours, 0)
        assert learner.get_optimizer(DEFAULT_MODULE_ID).param_groups[0]["lr"] == 3e-3


@pytest.mark.parametrize("path", ["torch", "kernel"])
def test_a_gradient_that_is_not_finite_is_left_out_and_counted(path: str, compiled: None) -> None:
    learner = build(EngineLearner, "discrete", path=path)
    fragment = sampled(learner)
    fragment.steps["action_logp"][:] = np.nan
    before = [parameter.detach().clone() for parameter in learner.module[DEFAULT_MODULE_ID].parameters()]
    said = update(learner, episodes=[fragment])
    assert said[NUM_SKIPPED] == -(-3 * len(fragment) // 32)
    for parameter, old in zip(learner.module[DEFAULT_MODULE_ID].parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=0, atol=0)
    assert not learner.get_optimizer(DEFAULT_MODULE_ID).state


def test_steps_are_counted() -> None:
    learner = build(EngineLearner, "discrete")
    fragment = sampled(learner)
    said = update(learner, episodes=[fragment[:50], fragment[50:]])
    num_rows = 32 * -(-3 * len(fragment) // 32)
    assert said["num_module_steps_trained"] == num_rows
    assert said["module_train_batch_size_mean"] == 32
    assert said["weights_seq_no"] == 1
    assert said["diff_num_grad_updates_vs_sampler_policy"] == 1
