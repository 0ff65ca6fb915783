"""Networks for images and action masks, inside RLlib's own modules, learners and env runners."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import _get_algorithm_class
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule

from platotk.errors import ProjectError
from platotk.learning.encoders import DictEncoderConfig, filters_for
from platotk.learning.filters import NumericFilter
from platotk.learning.masking import categorical_slice
from platotk.learning.modules import MODULES, rl_module_spec

DISCRETE = gym.spaces.Discrete(5)
MULTI = gym.spaces.MultiDiscrete([3, 4])
BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
MIXED = gym.spaces.Dict({"continuous": BOX, "discrete": MULTI})
VECTOR = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
SMALL = {
    "fcnet_hiddens": [16, 16],
    "fusionnet_hiddens": [16],
    "lstm_cell_size": 8,
    "max_seq_len": 5,
    "vf_share_layers": False,
}
DEFAULTS = DefaultModelConfig()


@dataclass
class Spaces:
    """The part of an adapter that a network depends on."""

    encoded_observation_space: gym.Space[Any]
    encoded_action_space: gym.Space[Any]


def categories(space: gym.Space[Any]) -> list[int]:
    """The number of choices of each discrete part of an action."""
    if isinstance(space, gym.spaces.Dict):
        return categories(space["discrete"])
    if isinstance(space, gym.spaces.MultiDiscrete):
        return [int(n) for n in space.nvec]
    return [int(space.n)] if isinstance(space, gym.spaces.Discrete) else []


def observation_space(action_space: gym.Space[Any], *, mask: bool = True, size: tuple[int, int, int] = (3, 9, 13)):
    spaces: dict[str, gym.Space[Any]] = {"vector": VECTOR, "image_0": gym.spaces.Box(0, 255, size, np.uint8)}
    if mask and categories(action_space):
        spaces["action_mask"] = gym.spaces.Box(0, 1, (sum(categories(action_space)),), np.float32)
    return gym.spaces.Dict(spaces)


class Turnstile(gym.Env[Any, Any]):
    """A sim whose allowed actions change at random every step, and which refuses all others."""

    def __init__(self, config: Any) -> None:
        self.action_space = config["action_space"]
        self.observation_space = observation_space(self.action_space)
        self.parts = categories(self.action_space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chosen = np.atleast_1d(action["discrete"] if isinstance(action, dict) else action)
        for allowed, choice in zip(self.allowed, chosen, strict=bool(self.parts)):
            if not allowed[int(choice)]:
                raise ValueError(f"{choice} is not among {np.flatnonzero(allowed)}")
        self.steps += 1
        return self._obs(), float(self.steps % 2), self.steps >= 7, False, {}

    def _obs(self) -> dict[str, Any]:
        self.allowed = []
        for n in self.parts:
            allowed = self.np_random.random(n) < 0.4
            allowed[self.np_random.integers(n)] = True
            self.allowed.append(allowed)
        obs = {
            "vector": self.np_random.normal(5, 3, 3).astype(np.float32),
            "image_0": self.np_random.integers(0, 256, (3, 9, 13), dtype=np.uint8),
        }
        return {**obs, "action_mask": np.concatenate(self.allowed).astype(np.float32)} if self.parts else obs


def config_for(algorithm: str, action_space: gym.Space[Any], **model: Any) -> AlgorithmConfig:
    """A tiny config of a real algorithm on the turnstile, with our network and filter."""
    config = _get_algorithm_class(algorithm).get_default_config()
    spaces = Spaces(observation_space(action_space), action_space)
    model_config = {**SMALL, **model}
    config.environment(Turnstile, env_config={"action_space": action_space})
    config.env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=4,
        env_to_module_connector=lambda *_, **__: NumericFilter(numeric=[True, False, True]),
    )
    config.rl_module(model_config=model_config, rl_module_spec=rl_module_spec(spaces, algorithm, model_config))
    config.learners(num_learners=0)
    config.training(train_batch_size_per_learner=80)
    if algorithm == "PPO":
        config.training(minibatch_size=40, num_epochs=2)
    if algorithm in ("SAC", "DQN"):
        config.training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=16)
        config.reporting(min_sample_timesteps_per_iteration=40, min_time_s_per_iteration=None)
    if algorithm == "DQN" and model.get("use_lstm"):
        # RLlib's default, prioritised buffer knows single steps only.
        config.training(replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 1000})
    if algorithm in ("APPO", "IMPALA"):
        config.env_runners(rollout_fragment_length=20).reporting(min_time_s_per_iteration=0.2)
    return config.debugging(seed=1, log_level="ERROR")


def module_for(algorithm: str, spaces: Spaces, **model: Any) -> RLModule:
    """A module as a learner builds it, with what RLlib adds to the model config of DQN and SAC."""
    extras = {"double_q": True, "dueling": True, "num_atoms": 1, "epsilon": 1.0, "twin_q": True}
    torch.manual_seed(0)
    spec = rl_module_spec(spaces, algorithm, {**SMALL, **extras, **model})
    assert spec is not None
    spec.observation_space = spaces.encoded_observation_space
    spec.action_space = spaces.encoded_action_space
    return spec.build()


def batch_for(space: gym.spaces.Dict, action_space: gym.Space[Any], size: int = 64) -> dict[str, Any]:
    """Random observations as tensors, as RLlib batches them; one action at least of each part is allowed."""
    rng = np.random.default_rng(0)
    masks = []
    for n in categories(action_space):
        mask = rng.random((size, n)) < 0.4
        mask[np.arange(size), rng.integers(n, size=size)] = True
        masks.append(mask)
    obs: dict[str, Any] = {
        "vector": torch.as_tensor(rng.normal(size=(size, 3)), dtype=torch.float32),
        "image_0": torch.as_tensor(rng.integers(0, 256, (size, *space["image_0"].shape)), dtype=torch.uint8),
    }
    if masks:
        obs["action_mask"] = torch.as_tensor(np.concatenate(masks, axis=1), dtype=torch.float32)
    return {Columns.OBS: obs}


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> None:
    torch.set_num_threads(1)
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@pytest.mark.parametrize("algorithm", ["PPO", "APPO", "IMPALA", "SAC", "DQN", "BC", "MARWIL", "CQL"])
def test_a_vector_is_left_to_rllibs_own_network(algorithm: str) -> None:
    assert rl_module_spec(Spaces(VECTOR, DISCRETE), algorithm) is None


def test_what_cannot_be_learned_is_refused_with_what_can() -> None:
    with pytest.raises(ProjectError, match="CQL cannot learn from images or action masks") as refused:
        rl_module_spec(Spaces(observation_space(BOX), BOX), "CQL")
    assert "PPO" in str(refused.value)
    with pytest.raises(ProjectError, match="SAC cannot learn with use_lstm"):
        rl_module_spec(Spaces(VECTOR, BOX), "SAC", {"use_lstm": True})
    with pytest.raises(ProjectError, match=r"shape \(5,\), but PPO chooses among 7"):
        rl_module_spec(Spaces(observation_space(DISCRETE), MULTI), "PPO")
    only_mask = gym.spaces.Dict({"action_mask": gym.spaces.Box(0, 1, (5,), np.float32)})
    with pytest.raises(ProjectError, match="the observation is empty"):
        rl_module_spec(Spaces(only_mask, DISCRETE), "PPO")


@pytest.mark.parametrize(
    ("size", "channels"),
    [
        ((8, 8), 1),
        ((8, 8), 4),
        ((9, 13), 1),
        ((9, 13), 3),
        ((84, 84), 1),
        ((84, 84), 4),
        ((100, 37), 3),
        ((210, 160), 3),
        ((5, 200), 4),
    ],
)
def test_an_image_of_any_size_is_encoded(size: tuple[int, int], channels: int) -> None:
    space = gym.spaces.Dict({"image_0": gym.spaces.Box(0, 255, (channels, *size), np.uint8)})
    encoder = DictEncoderConfig(observation_space=space, model=dataclasses.asdict(DEFAULTS)).build()
    image = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)

    assert max(encoder.images["image_0"].cnn(image.float()).shape[-2:]) <= 8
    latent = encoder({Columns.OBS: {"image_0": image}})["encoder_out"]
    assert latent.shape == (2, 256)
    latent.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_bytes_are_scaled_and_floats_are_not() -> None:
    def encoder_of(dtype: Any, high: float) -> Any:
        torch.manual_seed(0)
        space = gym.spaces.Dict({"image_0": gym.spaces.Box(0, high, (1, 8, 8), dtype)})
        return DictEncoderConfig(observation_space=space, model=dataclasses.asdict(DEFAULTS)).build()

    image = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    of_bytes, of_floats = encoder_of(np.uint8, 255), encoder_of(np.float32, 1)
    expected = of_floats({Columns.OBS: {"image_0": image / 255}})["encoder_out"]
    assert torch.allclose(of_bytes({Columns.OBS: {"image_0": image}})["encoder_out"], expected, atol=1e-6)
    # RLlib casts without scaling on some of its ways to the learner.
    assert torch.allclose(of_bytes({Columns.OBS: {"image_0": image.float()}})["encoder_out"], expected, atol=1e-6)


def test_the_convolutions_fit_the_image_and_can_be_named() -> None:
    assert filters_for(84, 84) == [[32, [8, 8], [4, 4]], [64, [4, 4], [2, 2]], [64, [4, 4], [2, 2]]]
    assert filters_for(8, 8) == [[32, [3, 3], [1, 1]]]
    module = module_for("PPO", Spaces(observation_space(DISCRETE), DISCRETE), conv_filters=[[7, 3, 2]])
    convolutions = [m for m in module.encoder.actor_encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [7]


def test_rllibs_model_config_keeps_its_words() -> None:
    spaces = Spaces(observation_space(DISCRETE), DISCRETE)
    apart = module_for("PPO", spaces, fcnet_hiddens=[24, 12], fcnet_activation="relu", head_fcnet_hiddens=[10])
    fusion = apart.encoder.actor_encoder.fusion
    assert [m.out_features for m in fusion.modules() if isinstance(m, torch.nn.Linear)] == [24, 12]
    assert any(isinstance(m, torch.nn.ReLU) for m in fusion.modules())
    assert [m.out_features for m in apart.pi.modules() if isinstance(m, torch.nn.Linear)] == [10, 5]
    assert apart.encoder.critic_encoder is not None
    together = module_for("PPO", spaces, vf_share_layers=True)
    assert not hasattr(together.encoder, "critic_encoder")


def test_the_mask_of_a_mixed_action_falls_on_its_discrete_logits() -> None:
    # RLlib puts "continuous" first: two elements, a mean and a log standard deviation each.
    assert categorical_slice(MIXED) == slice(4, 11)
    spaces = Spaces(observation_space(MIXED), MIXED)
    module = module_for("PPO", spaces)
    batch = batch_for(spaces.encoded_observation_space, MIXED)
    masked = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    batch[Columns.OBS]["action_mask"] = torch.ones(64, 7)
    free = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(masked[:, :4], free[:, :4])
    changed = (masked != free).any(dim=0)
    assert changed.tolist() == [False] * 4 + [True] * 7


@pytest.mark.parametrize("action_space", [DISCRETE, MULTI, MIXED])
def test_the_masked_distribution_is_the_one_over_allowed_actions_alone(action_space: gym.Space[Any]) -> None:
    spaces = Spaces(observation_space(action_space), action_space)
    module = module_for("PPO", spaces)
    batch = batch_for(spaces.encoded_observation_space, action_space)
    inputs = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
    ours = module.get_train_action_dist_cls().from_logits(inputs)
    actions = ours.sample()
    logp, entropy = ours.logp(actions), ours.entropy()
    given = (logp.detach(), entropy.detach())

    # By hand: a softmax over the allowed logits of each part; the network gives them when all is allowed.
    mask = batch[Columns.OBS]["action_mask"]
    logits = module.forward_train({Columns.OBS: {**batch[Columns.OBS], "action_mask": torch.ones_like(mask)}})[
        Columns.ACTION_DIST_INPUTS
    ].detach()
    for row in range(len(mask)):
        expected_logp = expected_entropy = 0.0
        at = 0
        discrete = actions["discrete"] if isinstance(actions, dict) else actions
        if isinstance(actions, dict):
            mean, log_std = logits[row, :2], logits[row, 2:4]
            normal = torch.distributions.Normal(mean, log_std.exp())
            expected_logp += float(normal.log_prob(actions["continuous"][row]).sum())
            expected_entropy += float(normal.entropy().sum())
        start = categorical_slice(action_space).start
        for part, n in enumerate(categories(action_space)):
            allowed = mask[row, at : at + n] > 0
            probs = torch.softmax(logits[row, start + at : start + at + n][allowed], dim=-1)
            choice = int(torch.atleast_1d(discrete[row])[part])
            assert allowed[choice]
            expected_logp += float(probs[int(allowed[:choice].sum())].log())
            expected_entropy -= float((probs * probs.log()).sum())
            at += n
        assert float(given[0][row]) == pytest.approx(expected_logp, abs=1e-4)
        assert float(given[1][row]) == pytest.approx(expected_entropy, abs=1e-4)

    # The divergence from another policy under the same mask is finite, and so are all gradients.
    other = module.get_train_action_dist_cls().from_logits(
        (inputs * 0.5).detach().where(inputs > -1e8, inputs.detach())
    )
    loss = (logp + entropy + ours.kl(other)).sum()
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_one_allowed_action_is_certain_and_free_of_nan() -> None:
    spaces = Spaces(observation_space(DISCRETE), DISCRETE)
    module = module_for("PPO", spaces)
    batch = batch_for(spaces.encoded_observation_space, DISCRETE)
    batch[Columns.OBS]["action_mask"] = torch.nn.functional.one_hot(torch.full((64,), 3), 5).float()
    inputs = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
    policy = module.get_train_action_dist_cls().from_logits(inputs)
    assert (policy.sample() == 3).all()
    assert torch.equal(policy.logp(torch.full((64,), 3)), torch.zeros(64))
    assert torch.equal(policy.entropy(), torch.zeros(64))
    assert torch.equal(policy.kl(policy), torch.zeros(64))
    (policy.entropy().sum() + policy.logp(torch.full((64,), 3)).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "DQN"])
def test_no_forbidden_action_in_two_thousand_steps_of_sampling_or_greedily(algorithm: str) -> None:
    # DQN begins with epsilon 1: all of its actions are random ones.
    config = config_for(algorithm, DISCRETE)
    if algorithm == "DQN":
        config.training(epsilon=[(0, 1.0), (1000, 1.0), (2000, 0.0)])
    algo = config.env_runners(num_envs_per_env_runner=20).build_algo()
    for explore in (True, False):
        episodes = algo.env_runner.sample(num_timesteps=2000, explore=explore)
        assert sum(len(episode) for episode in episodes) >= 2000
        # What was stored is what was masked: the learner can check it against the same mask.
        for episode in episodes:
            masks = episode.get_observations()["action_mask"][:-1]
            assert masks[np.arange(len(masks)), episode.get_actions()].all()
    algo.stop()


@pytest.mark.parametrize(("double_q", "dueling"), [(True, True), (False, False)])
def test_dqns_target_never_uses_a_forbidden_next_action(double_q: bool, dueling: bool) -> None:
    config = config_for("DQN", DISCRETE).training(double_q=double_q, dueling=dueling, gamma=0.9)
    learner = config.build_learner(env=Turnstile({"action_space": DISCRETE}))
    learner.build()
    module = learner.module["default_policy"]
    with torch.no_grad():  # action 2 looks best by far, online and in the target
        for head in (module.af, module._target_af):
            list(head.parameters())[-1][2] += 1000.0
    space = observation_space(DISCRETE)
    batch = {**batch_for(space, DISCRETE), Columns.REWARDS: torch.arange(64.0), "weights": torch.ones(64)}
    later = {key: value.flip(0).clone() for key, value in batch[Columns.OBS].items()}
    later["action_mask"][:, 2] = 0.0
    later["action_mask"][:, 4] = 1.0
    batch[Columns.NEXT_OBS] = later
    batch[Columns.ACTIONS] = batch[Columns.OBS]["action_mask"].argmax(dim=-1)
    batch[Columns.TERMINATEDS] = torch.arange(64) % 5 == 0
    batch["n_step"] = torch.ones(64)

    output = module.forward_train(batch)
    loss = learner.compute_loss_for_module(
        module_id="default_policy", config=learner.config, batch=batch, fwd_out=output
    )
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)

    # By hand, from what RLlib's module says when everything is allowed.
    everything = torch.ones(64, 5)
    q_next = module.compute_q_values({Columns.OBS: {**later, "action_mask": everything}})["qf_preds"].detach()
    q_target = module.forward_target({Columns.OBS: {**later, "action_mask": everything}})["qf_preds"].detach()
    q_now = module.compute_q_values({Columns.OBS: {**batch[Columns.OBS], "action_mask": everything}})["qf_preds"]
    q_now = q_now.detach()
    expected = 0.0
    for row in range(64):
        allowed = np.flatnonzero(later["action_mask"][row]).tolist()
        best = max(allowed, key=lambda a, r=row: float((q_next if double_q else q_target)[r, a]))
        assert best != 2
        value = 0.0 if batch[Columns.TERMINATEDS][row] else float(q_target[row, best])
        error = float(q_now[row, batch[Columns.ACTIONS][row]]) - (row + 0.9 * value)
        expected += (0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5) / 64
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_dqn_explores_among_allowed_actions_evenly() -> None:
    module = module_for("DQN", Spaces(observation_space(DISCRETE), DISCRETE))
    batch = batch_for(observation_space(DISCRETE), DISCRETE, size=4000)
    batch[Columns.OBS]["action_mask"] = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]).repeat(4000, 1)
    with torch.no_grad():
        counts = torch.bincount(module.forward_exploration(batch, t=0)[Columns.ACTIONS], minlength=5)
    assert counts[1] == counts[3] == 0
    assert all(abs(int(counts[a]) - 4000 / 3) < 150 for a in (0, 2, 4))


def test_discrete_sac_expects_over_allowed_actions_alone() -> None:
    config = config_for("SAC", DISCRETE)
    learner = config.build_learner(env=Turnstile({"action_space": DISCRETE}))
    learner.build()
    module = learner.module["default_policy"]
    batch = batch_for(observation_space(DISCRETE), DISCRETE)
    later = {key: value.flip(0).clone() for key, value in batch[Columns.OBS].items()}
    later["action_mask"][:8] = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    batch = {
        **batch,
        Columns.NEXT_OBS: later,
        Columns.ACTIONS: batch[Columns.OBS]["action_mask"].argmax(dim=-1),
        Columns.REWARDS: torch.zeros(64),
        Columns.TERMINATEDS: torch.zeros(64),
        "n_step": torch.ones(64),
        "weights": torch.ones(64),
    }
    output = module.forward_train(batch)
    for key, obs in (("action_probs", batch[Columns.OBS]), ("action_probs_next", later)):
        probs = output[key].detach()
        assert (probs[obs["action_mask"] == 0] == 0).all()
        assert torch.allclose(probs.sum(dim=-1), torch.ones(64), atol=1e-6)
    loss = learner.compute_loss_for_module(
        module_id="default_policy", config=learner.config, batch=batch, fwd_out=output
    )
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("algorithm", "action_space", "use_lstm"),
    [
        ("PPO", MULTI, False),
        ("PPO", MIXED, False),
        ("PPO", BOX, False),
        ("PPO", MIXED, True),
        ("APPO", DISCRETE, False),
        ("APPO", MULTI, True),
        ("IMPALA", MULTI, False),
        ("IMPALA", DISCRETE, True),
        ("SAC", DISCRETE, False),
        ("SAC", BOX, False),
        ("DQN", DISCRETE, False),
        ("DQN", DISCRETE, True),
    ],
)
def test_an_algorithm_trains_on_images_numbers_and_masks(
    algorithm: str, action_space: gym.Space[Any], use_lstm: bool
) -> None:
    algo = config_for(algorithm, action_space, use_lstm=use_lstm).build_algo()
    before = algo.get_module().get_state()
    for iteration in range(20):
        result = algo.train()
        learned = (result.get("learners") or {}).get("default_policy") or {}
        if iteration >= 1 and "total_loss" in learned:
            break
    assert np.isfinite(float(learned["total_loss"]))
    after = algo.get_module().get_state()
    assert any(not np.array_equal(before[key], after[key]) for key in before if "image_0" in key)
    algo.stop()


@pytest.mark.parametrize("algorithm", ["BC", "MARWIL"])
def test_cloning_learns_the_allowed_choice(algorithm: str) -> None:
    config = config_for(algorithm, DISCRETE)
    learner = config.build_learner(env=Turnstile({"action_space": DISCRETE}))
    learner.build()
    batch = batch_for(observation_space(DISCRETE), DISCRETE)
    batch[Columns.ACTIONS] = batch[Columns.OBS]["action_mask"].argmax(dim=-1)
    batch[Columns.ADVANTAGES] = batch["value_targets"] = torch.ones(64)
    module = learner.module["default_policy"]
    output = module.forward_train(batch)
    loss = learner.compute_loss_for_module(
        module_id="default_policy", config=learner.config, batch=batch, fwd_out=output
    )
    assert 0.0 < float(loss.detach()) < 100.0
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("algorithm", ["PPO", "APPO", "IMPALA"])
def test_memory_gives_the_same_step_by_step_as_over_a_whole_sequence(algorithm: str) -> None:
    spaces = Spaces(observation_space(MULTI), MULTI)
    module = module_for(algorithm, spaces, use_lstm=True)
    assert module.is_stateful()
    initial = module.get_initial_state()
    assert {side: {k: tuple(v.shape) for k, v in state.items()} for side, state in initial.items()} == {
        "actor": {"h": (1, 8), "c": (1, 8)},
        "critic": {"h": (1, 8), "c": (1, 8)},
    }
    flat = batch_for(spaces.encoded_observation_space, MULTI, size=12)[Columns.OBS]
    sequences = {key: value.reshape(3, 4, *value.shape[1:]) for key, value in flat.items()}

    def states(state: Any) -> Any:
        return {k: states(v) if isinstance(v, dict) else v[None].repeat(3, 1, 1) for k, v in state.items()}

    whole = module.forward_train({Columns.OBS: sequences, Columns.STATE_IN: states(initial)})
    state, steps = states(initial), []
    for t in range(4):
        now = {key: value[:, t : t + 1] for key, value in sequences.items()}
        out = module.forward_exploration({Columns.OBS: now, Columns.STATE_IN: state})
        state = out[Columns.STATE_OUT]
        steps.append(out[Columns.ACTION_DIST_INPUTS])
    assert state["actor"]["h"].shape == (3, 1, 8)
    assert whole[Columns.ACTION_DIST_INPUTS].shape == (3, 4, 7)
    assert torch.allclose(whole[Columns.ACTION_DIST_INPUTS], torch.cat(steps, dim=1), atol=1e-5)


@pytest.mark.parametrize("observations", ["vector", "images"])
def test_an_env_runner_has_the_whole_critic_when_it_has_memory(observations: str) -> None:
    """RLlib 2.60 leaves the env runner's critic as it was at the start; its states go to the learner."""
    config = config_for("PPO", DISCRETE, use_lstm=True)
    if observations == "vector":
        spec = rl_module_spec(Spaces(VECTOR, gym.spaces.Discrete(2)), "PPO", {**SMALL, "use_lstm": True})
        config.env_config = {}
        config.environment("CartPole-v1").rl_module(rl_module_spec=spec)
        config.env_runners(env_to_module_connector=lambda *_, **__: NumericFilter(numeric=[True] * 4))
    algo = config.build_algo()
    algo.train()
    learned, acting = algo.learner_group.get_weights()["default_policy"], algo.env_runner.module.get_state()
    critic = [key for key in acting if key.startswith("encoder.critic_encoder")]
    assert critic
    assert all(np.array_equal(learned[key], acting[key]) for key in critic)
    algo.stop()


@pytest.mark.parametrize("algorithm", sorted(MODULES))
def test_a_module_comes_back_from_its_checkpoint(algorithm: str, tmp_path: Any) -> None:
    spaces = Spaces(observation_space(DISCRETE), DISCRETE)
    module = module_for(algorithm, spaces)
    module.save_to_path(tmp_path / "module")
    again = RLModule.from_checkpoint(tmp_path / "module")
    batch = batch_for(spaces.encoded_observation_space, DISCRETE)
    for key, value in module.forward_inference(batch).items():
        assert torch.equal(value, again.forward_inference(batch)[key])


def test_an_env_runners_module_is_the_smaller_one() -> None:
    algo = config_for("PPO", DISCRETE).build_algo()
    names = set(algo.env_runner.module.get_state())
    assert not any(name.startswith(("vf", "encoder.critic_encoder")) for name in names)
    assert any("image_0" in name for name in names)
    algo.stop()
