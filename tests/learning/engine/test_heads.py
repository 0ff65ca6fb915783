"""Action distributions as arithmetic: RLlib's numbers, and gradients that agree with torch's."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchSquashedGaussian

from platotk.learning.engine.acting import ActionMapping
from platotk.learning.engine.heads import Heads, heads_of

DISCRETE = gym.spaces.Discrete(4)
MULTI = gym.spaces.MultiDiscrete([2, 5, 3])
BOX = gym.spaces.Box(-1, 1, (3,), np.float32)
MIXED = gym.spaces.Dict({"continuous": BOX, "discrete": MULTI})
SPACES = {"discrete": DISCRETE, "multi": MULTI, "box": BOX, "mixed": MIXED}
OBS = gym.spaces.Box(-1, 1, (2,), np.float32)


def dist_of(space: gym.Space[Any]) -> Any:
    """The class that RLlib's catalog chooses."""
    model: dict[str, Any] = {"fcnet_hiddens": [4], "fcnet_activation": "tanh", "head_fcnet_hiddens": []}
    return PPOCatalog(OBS, space, model).get_action_dist_cls("torch")


def heads(name: str) -> Heads:
    found = heads_of(dist_of(SPACES[name]), SPACES[name])
    assert found is not None
    return found


def torched(columns: Any) -> Any:
    if isinstance(columns, dict):
        return {key: torch.from_numpy(value) for key, value in columns.items()}
    return torch.from_numpy(columns)


@pytest.mark.parametrize("name", SPACES)
def test_log_probability_entropy_and_kl_are_rllibs_with_torchs_gradients(name: str) -> None:
    ours, dist = heads(name), dist_of(SPACES[name])
    torch.manual_seed(0)
    old, new = torch.randn(64, ours.num_inputs), torch.randn(64, ours.num_inputs, requires_grad=True)
    actions = torched(ours.sample(old.numpy())[0])
    terms = ours.terms(new.detach(), ours.constants(old, actions), is_kl=True, is_entropy=True)
    theirs = {
        "logp": dist.from_logits(new).logp(actions),
        "entropy": dist.from_logits(new).entropy(),
        "kl": dist.from_logits(old).kl(dist.from_logits(new)),
    }
    for term, value in theirs.items():
        torch.testing.assert_close(terms.value(term), value.detach(), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(value.sum(), new)
        torch.testing.assert_close(terms.slope(term), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_samples_have_their_log_probability_and_belong_to_the_space(name: str) -> None:
    ours, dist = heads(name), dist_of(SPACES[name])
    np.random.seed(3)
    inputs = np.random.default_rng(0).normal(size=(256, ours.num_inputs)).astype(np.float32)
    actions, logp = ours.sample(inputs)
    expected = dist.from_logits(torch.from_numpy(inputs)).logp(torched(actions)).numpy()
    np.testing.assert_allclose(logp, expected, atol=1e-4)
    np.random.seed(3)
    again, _ = ours.sample(inputs)
    np.testing.assert_equal(again, actions)
    greedy, none = ours.sample(inputs, explore=False)
    best = dist.from_logits(torch.from_numpy(inputs)).to_deterministic().sample()
    np.testing.assert_equal(greedy, {k: v.numpy() for k, v in best.items()} if name == "mixed" else best.numpy())
    assert (none == 0).all()


def test_categories_are_drawn_as_often_as_they_are_probable_and_masked_ones_never() -> None:
    np.random.seed(0)
    logits = np.log(np.array([0.5, 0.2, 0.3, 1.0], dtype=np.float32))
    logits[3] = -1e9
    actions, logp = heads("discrete").sample(np.tile(logits, (20_000, 1)))
    shares = np.bincount(actions, minlength=4) / len(actions)
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3, 0.0], atol=0.015)
    assert shares[3] == 0
    np.testing.assert_allclose(logp, np.log([0.5, 0.2, 0.3])[actions], atol=1e-5)


def test_a_distribution_of_the_users_own_is_left_to_rllib() -> None:
    class Sharper(TorchCategorical):
        def logp(self, value: Any) -> Any:
            return 2 * super().logp(value)

    assert heads_of(TorchCategorical, DISCRETE) is not None
    assert heads_of(Sharper, DISCRETE) is None
    assert heads_of(TorchSquashedGaussian, BOX) is None
    assert heads_of(TorchCategorical, gym.spaces.Discrete(4, start=1)) is not None


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        gym.spaces.Box(-3, 5, (3,), np.float32),
        gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        gym.spaces.Box(2, 9, (3,), np.int64),
        MIXED,
        MULTI,
    ],
    ids=str,
)
@pytest.mark.parametrize("normalize", [True, False])
def test_sims_are_sent_what_rllib_would_send(space: gym.Space[Any], normalize: bool) -> None:
    from ray.rllib.utils.spaces.space_utils import clip_action, get_base_struct_from_space, unsquash_action

    rng = np.random.default_rng(0)
    if isinstance(space, gym.spaces.Dict):
        batch: Any = {
            "continuous": rng.normal(size=(8, 3)).astype(np.float32),
            "discrete": rng.integers(2, size=(8, 3)),
        }
        rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]
    else:
        is_number = isinstance(space, gym.spaces.Box) and space.dtype == np.float32
        batch = rng.normal(size=(8, 3)).astype(np.float32) if is_number else rng.integers(2, size=(8, 3))
        rows = list(batch)
    struct = get_base_struct_from_space(space)
    expected = [unsquash_action(row, struct) if normalize else clip_action(row, struct) for row in rows]
    sent = ActionMapping(space, normalize=normalize, clip=True)(batch)
    for index, row in enumerate(expected):
        got = {key: value[index] for key, value in sent.items()} if isinstance(sent, dict) else sent[index]
        np.testing.assert_equal(got, row)
