"""The compiled kernel does what RLlib's own learner and modules do: same steps, same actions, same statistics."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import SampleBatch

from platotk.learning.engine import compilation
from platotk.learning.engine.compiled import _native
from platotk.learning.engine.native import Native, refusal
from platotk.learning.modules import PPODictCatalog, PPOModule

MODULE = "default_policy"
SPACES: dict[str, gym.Space[Any]] = {
    "discrete": gym.spaces.Discrete(3),
    "multi_discrete": gym.spaces.MultiDiscrete([2, 5]),
    "box": gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
    "dict": gym.spaces.Dict(
        {"continuous": gym.spaces.Box(-1.0, 1.0, (2,), np.float32), "discrete": gym.spaces.MultiDiscrete([3, 2])}
    ),
}
TRAINING: dict[str, Any] = {
    "lr": 3e-3,
    "vf_clip_param": float("inf"),
    "vf_loss_coeff": 0.5,
    "entropy_coeff": 0.01,
    "clip_param": 0.2,
    "grad_clip": 0.5,
    "grad_clip_by": "global_norm",
}


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    compilation.kernel()


def make_learner(
    action_space: gym.Space[Any], *, num_observations: int = 5, mask: int = 0, model: Any = None, training: Any = None
) -> Any:
    """RLlib's own PPO learner with its module and optimiser; no Ray needed."""
    vector = gym.spaces.Box(-9.0, 9.0, (num_observations,), np.float32)
    config = PPOConfig().training(**{**TRAINING, **(training or {})})
    settings = dataclasses.asdict(
        DefaultModelConfig(**{"fcnet_hiddens": [20, 16], "vf_share_layers": False, **(model or {})})
    )
    space: gym.Space[Any] = vector
    spec = RLModuleSpec(model_config=settings)
    if mask:
        space = gym.spaces.Dict({"vector": vector, "action_mask": gym.spaces.Box(0.0, 1.0, (mask,), np.float32)})
        spec = RLModuleSpec(module_class=PPOModule, catalog_class=PPODictCatalog, model_config=settings)
    config.environment(observation_space=space, action_space=action_space).rl_module(rl_module_spec=spec)
    torch.manual_seed(3)
    specs = config.get_multi_rl_module_spec(spaces={MODULE: (space, action_space)})
    learner = config.get_default_learner_class()(config=config, module_spec=specs)
    learner.build()
    return learner


def native_of(learner: Any) -> Native:
    return Native(learner.module[MODULE], learner.config, learner.get_optimizer(MODULE))


def make_batch(learner: Any, native: Native, rows: int, seed: int = 0) -> dict[str, Any]:
    """Actions that the module itself has chosen, learned from as if the policy had moved a little since."""
    rng = np.random.default_rng(seed)
    module = learner.module[MODULE]
    space = module.observation_space
    masks = None
    vector = rng.standard_normal((rows, (space["vector"] if isinstance(space, gym.spaces.Dict) else space).shape[0]))
    obs: Any = vector.astype(np.float32)
    if isinstance(space, gym.spaces.Dict):
        masks = (rng.random((rows, space["action_mask"].shape[0])) < 0.7).astype(np.float32)
        masks[:, 0] = 1.0
        masks[:, 3:4] = 1.0  # the second choice's first category, where there is one
        obs = {"vector": obs, "action_mask": masks}
    np.random.seed(seed)
    acted = native.act(obs["vector"] if masks is not None else obs, native.noise(rows), masks)
    inputs = acted.dist_inputs + 0.3 * rng.standard_normal(acted.dist_inputs.shape).astype(np.float32)
    inputs = np.where(acted.dist_inputs < -1e8, acted.dist_inputs, inputs)
    dist = module.get_exploration_action_dist_cls().from_logits(torch.from_numpy(inputs))
    return {
        "obs": obs,
        "actions": acted.actions,
        "action_logp": dist.logp(torch_of(acted.actions)).numpy(),
        "action_dist_inputs": inputs,
        "advantages": rng.standard_normal(rows).astype(np.float32),
        "value_targets": (3.0 * rng.standard_normal(rows)).astype(np.float32),
    }


def torch_of(value: Any) -> Any:
    return {key: torch_of(part) for key, part in value.items()} if isinstance(value, dict) else torch.from_numpy(value)


def rows_of(value: Any, index: Any) -> Any:
    return {key: rows_of(part, index) for key, part in value.items()} if isinstance(value, dict) else value[index]


def train_stock(learner: Any, batch: dict[str, Any], order: Any, size: int) -> dict[str, float]:
    """RLlib's own update of each minibatch; its statistics of the last."""
    for start in range(0, len(order), size):
        piece = {name: torch_of(rows_of(column, order[start : start + size])) for name, column in batch.items()}
        _, loss, _ = learner._update({MODULE: SampleBatch(piece)})
    names = ("policy_loss", "vf_loss", "vf_loss_unclipped", "vf_explained_var", "entropy", "mean_kl_loss")
    found = {name: float(torch.as_tensor(learner.metrics.peek((MODULE, name))).detach()) for name in names}
    return {**found, "total_loss": float(loss[MODULE].detach())}


def state_of(learner: Any) -> dict[str, Any]:
    """Parameters, Adam's moments and its count of steps."""
    names = [name for name, _ in learner.module[MODULE].named_parameters()]
    state = learner.get_optimizer(MODULE).state_dict()["state"]
    found = {name: parameter.detach().numpy() for name, parameter in learner.module[MODULE].named_parameters()}
    for index, name in enumerate(names):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            found[f"{name}/{key}"] = state[index][key].numpy()
    return found


def assert_same_training(learner: Any, rows: int = 70, size: int = 32, num_epochs: int = 3) -> None:
    """The kernel and RLlib start alike, see the same minibatches, and end alike; twice, so that Adam's state counts."""
    stock = copy.deepcopy(learner.module[MODULE].state_dict())
    native = native_of(learner)
    batch = make_batch(learner, native, rows)
    order = np.concatenate([np.random.default_rng(epoch).permutation(rows) for epoch in range(num_epochs)])
    coefficients = {"entropy_coeff": float(learner.config.entropy_coeff), "kl_coeff": float(learner.config.kl_coeff)}
    for _ in range(2):
        ours = native.update(batch, order, size, **coefficients)
    mine = copy.deepcopy(state_of(learner))
    learner.module[MODULE].load_state_dict(stock)
    learner.get_optimizer(MODULE).state.clear()
    for _ in range(2):
        theirs = train_stock(learner, batch, order, size)
    reference = state_of(learner)
    assert set(mine) == set(reference)
    for name, value in reference.items():
        np.testing.assert_allclose(mine[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        if name in stock and value.ndim == 2:
            assert np.abs(value - stock[name].numpy()).max() > 1e-3, name
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert native.num_updates == 2 * -(-len(order) // size)
    assert native.num_skipped == 0


@pytest.mark.parametrize("use_kl_loss", [True, False], ids=["kl", "no-kl"])
@pytest.mark.parametrize("space", SPACES)
def test_an_update_ends_where_rllibs_learner_ends(space: str, use_kl_loss: bool) -> None:
    assert_same_training(make_learner(SPACES[space], training={"use_kl_loss": use_kl_loss, "kl_coeff": 0.3}))


@pytest.mark.parametrize(
    "model",
    [
        {"fcnet_activation": "relu"},
        {"fcnet_activation": "elu"},
        {"fcnet_activation": "silu"},
        {"fcnet_activation": "linear"},
        {"vf_share_layers": True},
        {"vf_share_layers": True, "head_fcnet_hiddens": [7, 9], "head_fcnet_activation": "tanh"},
        {"fcnet_hiddens": [70]},
        {"fcnet_hiddens": [33, 1, 100]},
    ],
    ids=str,
)
def test_every_network_that_is_covered(model: dict[str, Any]) -> None:
    assert_same_training(make_learner(SPACES["discrete"], model={"fcnet_activation": "tanh", **model}))


@pytest.mark.parametrize(
    "model", [{"free_log_std": True}, {"log_std_clip_param": 0.05}, {"free_log_std": True, "log_std_clip_param": 0.05}]
)
def test_log_standard_deviations_may_be_free_and_clipped(model: dict[str, Any]) -> None:
    assert_same_training(make_learner(SPACES["box"], model=model))


@pytest.mark.parametrize(
    "training",
    [
        {"grad_clip": None},
        {"grad_clip": 0.1, "grad_clip_by": "norm"},
        {"grad_clip": 0.01, "grad_clip_by": "value"},
        {"vf_clip_param": 2.0},
        {"grad_clip": 1e3, "entropy_coeff": 0.0, "vf_loss_coeff": 1.0, "clip_param": 0.05},
    ],
    ids=str,
)
def test_every_way_of_clipping(training: dict[str, Any]) -> None:
    model = {"free_log_std": True}
    assert_same_training(make_learner(SPACES["box"], model=model, training=training))


@pytest.mark.parametrize(("space", "mask"), [("discrete", 3), ("multi_discrete", 7), ("dict", 5)])
def test_forbidden_actions_have_no_gradient_and_are_never_drawn(space: str, mask: int) -> None:
    learner = make_learner(SPACES[space], mask=mask, training={"use_kl_loss": True})
    assert_same_training(learner)


def test_a_minibatch_may_be_larger_than_what_goes_through_the_network_at_once() -> None:
    assert_same_training(make_learner(SPACES["discrete"], num_observations=40), rows=300, size=290, num_epochs=2)


@pytest.mark.parametrize("size", [32, 1])
def test_threads_share_a_minibatch_and_agree_with_one(size: int) -> None:
    ends = []
    for num_threads in (1, 3):
        learner = make_learner(SPACES["dict"], training={"use_kl_loss": True})
        native = Native(learner.module[MODULE], learner.config, learner.get_optimizer(MODULE), num_threads=num_threads)
        batch = make_batch(learner, native, 70)
        found = native.update(batch, np.arange(64), size, entropy_coeff=0.01, kl_coeff=0.2)
        ends.append({**state_of(learner), **{name: np.array(value) for name, value in found.items()}})
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("hiddens", "rows", "threads"), [(20, 128, 1), (64, 1024, 2), (256, 128, 3)])
def test_an_update_takes_torchs_threads_where_a_minibatch_has_work_for_them(
    monkeypatch: pytest.MonkeyPatch, hiddens: int, rows: int, threads: int
) -> None:
    model = {"fcnet_hiddens": [hiddens, hiddens]}
    learner = make_learner(SPACES["discrete"], model=model, training={"minibatch_size": rows})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    native = _native(learner.module[MODULE], learner.config, learner.get_optimizer(MODULE))[0]
    assert native is not None
    assert native.num_threads == threads
    acting = _native(learner.module[MODULE])[0]
    assert acting is not None
    assert acting.num_threads == 1


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    space = data.draw(st.sampled_from(sorted(SPACES)))
    model = {
        "fcnet_hiddens": data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=3)),
        "vf_share_layers": data.draw(st.booleans()),
        "fcnet_activation": data.draw(st.sampled_from(["tanh", "relu", "silu"])),
    }
    num_observations = data.draw(st.integers(1, 90))
    rows, size = data.draw(st.integers(2, 400)), data.draw(st.integers(2, 300))
    assert_same_training(make_learner(SPACES[space], num_observations=num_observations, model=model), rows, size, 1)


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("space", SPACES)
def test_acting_gives_what_torch_gives(space: str, explore: bool) -> None:
    learner = make_learner(SPACES[space])
    module, native = learner.module[MODULE], native_of(learner)
    obs = np.random.default_rng(1).standard_normal((301, 5)).astype(np.float32)
    acted = native.act(obs, native.noise(301) if explore else None, with_values=True)
    with torch.no_grad():
        inputs = module.forward_exploration({"obs": torch.from_numpy(obs)})["action_dist_inputs"]
        values = module.compute_values({"obs": torch.from_numpy(obs)}).numpy()
    dist = module.get_exploration_action_dist_cls().from_logits(inputs)
    np.testing.assert_allclose(acted.dist_inputs, inputs.numpy(), atol=1e-5)
    np.testing.assert_allclose(acted.log_probs, dist.logp(torch_of(acted.actions)).numpy(), atol=1e-5)
    np.testing.assert_allclose(acted.values, values, atol=1e-5)
    np.testing.assert_allclose(native.values(obs), values, atol=1e-5)
    if not explore:
        best = dist.to_deterministic().sample()
        for key in best if isinstance(best, dict) else [...]:
            np.testing.assert_allclose(acted.actions[key], best[key].numpy(), atol=1e-5)
    if space in ("discrete", "multi_discrete"):
        assert all(SPACES[space].contains(action) for action in acted.actions)


def test_actions_are_drawn_as_often_as_they_are_probable() -> None:
    learner = make_learner(SPACES["dict"])
    native = native_of(learner)
    np.random.seed(0)
    obs = np.tile(np.array([[0.3, -1.0, 2.0, 0.1, 0.7]], np.float32), (200_000, 1))
    acted = native.act(obs, native.noise(len(obs)))
    logits = acted.dist_inputs[0].astype(np.float64)
    mean, log_std = logits[:2], logits[2:4]
    np.testing.assert_allclose(acted.actions["continuous"].mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(acted.actions["continuous"].std(axis=0), np.exp(log_std), rtol=0.02)
    for column, part in ((0, logits[4:7]), (1, logits[7:9])):
        expected = np.exp(part) / np.exp(part).sum()
        counts = np.bincount(acted.actions["discrete"][:, column], minlength=len(part)) / len(obs)
        np.testing.assert_allclose(counts, expected, atol=0.006)


def test_a_forbidden_action_is_never_drawn() -> None:
    learner = make_learner(SPACES["discrete"], mask=3)
    native = native_of(learner)
    obs = np.zeros((50_000, 5), np.float32)
    masks = np.tile(np.array([[0.0, 1.0, 0.0]], np.float32), (50_000, 1))
    noise = native.noise(50_000)
    noise[:2, 0] = 0.0, 1.0
    acted = native.act(obs, noise, masks)
    assert (acted.actions == 1).all()
    assert (acted.log_probs == 0.0).all()
    assert (native.act(obs, None, masks).actions == 1).all()


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    learner = make_learner(SPACES["discrete"])
    native = native_of(learner)
    batch = make_batch(learner, native, 60)
    before = copy.deepcopy(learner.module[MODULE].state_dict())
    batch["advantages"][:] = np.nan
    assert native.update(batch, np.arange(60), 20, entropy_coeff=0.0)["num_skipped"] == 3
    for name, value in learner.module[MODULE].state_dict().items():
        assert torch.equal(value, before[name]), name
    batch["advantages"][:] = 1.0
    batch["value_targets"][:20] = np.inf
    assert native.update(batch, np.arange(60), 20, entropy_coeff=0.0)["num_skipped"] == 1
    assert native.num_skipped == 4
    assert native.num_updates == 6
    assert all(bool(torch.isfinite(value).all()) for value in learner.module[MODULE].state_dict().values())
    assert float(learner.get_optimizer(MODULE).state_dict()["state"][0]["step"]) == 2.0


def test_weights_that_were_set_are_seen_after_a_refresh() -> None:
    learner = make_learner(SPACES["discrete"])
    module, native = learner.module[MODULE], native_of(learner)
    obs = np.ones((2, 5), np.float32)
    before = native.values(obs)
    module.set_state({name: 0.5 * value for name, value in module.get_state().items()})
    assert np.array_equal(native.values(obs), before)
    native.refresh()
    with torch.no_grad():
        expected = module.compute_values({"obs": torch.from_numpy(obs)}).numpy()
    np.testing.assert_allclose(native.values(obs), expected, atol=1e-6)


def test_an_env_runners_module_acts_without_a_critic() -> None:
    learner = make_learner(SPACES["discrete"])
    module = learner.module[MODULE]
    spec = RLModuleSpec.from_module(module)
    spec.inference_only = True
    runner = spec.build()
    runner.set_state(module.get_state(inference_only=True))
    native, obs = Native(runner), np.ones((3, 5), np.float32)
    acted = native.act(obs, with_values=True)
    np.testing.assert_allclose(acted.dist_inputs, native_of(learner).act(obs).dist_inputs, atol=1e-6)
    assert acted.values is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": {"use_lstm": True}}, "memory"),
        ({"model": {"fcnet_use_layernorm": True}}, "LayerNorm"),
        ({"model": {"fcnet_activation": "LeakyReLU"}}, "LeakyReLU"),
        ({"training": {"use_critic": False}}, "use_critic"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused_in_one_line(settings: dict[str, Any], reason: str) -> None:
    learner = make_learner(SPACES["discrete"], **settings)
    said = refusal(learner.module[MODULE], learner.config, learner.get_optimizer(MODULE))
    assert said is not None
    assert reason in said
    assert "\n" not in said


def test_another_optimiser_is_refused() -> None:
    learner = make_learner(SPACES["discrete"])
    module = learner.module[MODULE]
    assert refusal(module, learner.config, torch.optim.SGD(module.parameters())) == "the optimiser is SGD, not Adam"
    decaying = torch.optim.Adam(module.parameters(), weight_decay=0.1)
    assert refusal(module, learner.config, decaying) == "the optimiser has weight_decay"


def test_compiled_code_is_kept_in_the_users_folder_and_found_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation.cache_folder()
    assert folder is not None
    assert folder.is_relative_to(tmp_path) or sys.platform != "linux"
    assert folder.stat().st_mode & 0o077 == 0 or os.name == "nt"


def test_what_is_compiled_already_is_ready_at_once() -> None:
    compilation.kernel()
    ahead = compilation.compile_ahead()
    assert ahead.is_ready
    assert ahead.wait(0.0)


def test_without_numba_the_kernel_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compilation.compile_ahead().failure is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ahead = compilation.compile_ahead()
    assert not ahead.is_ready
    assert ahead.failure == "numba is not installed"


@pytest.mark.slow
def test_another_process_compiles_ahead_into_an_empty_cache(tmp_path: Path) -> None:
    code = """
from platotk.learning.engine import compilation
ahead = compilation.compile_ahead()
assert not ahead.is_ready
assert ahead.wait(200.0)
assert ahead.is_ready
assert (compilation.cache_folder() / compilation._marker()).exists()
assert compilation.compile_ahead()._process is None
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_importing_the_engine_does_not_import_numba() -> None:
    code = "import sys, platotk.learning.engine.native; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
