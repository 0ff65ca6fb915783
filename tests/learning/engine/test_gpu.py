"""The engine's learners on a GPU: RLlib's parameters there too, and states that go to the CPU and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from tests.learning.engine import test_learner as ppo
from tests.learning.engine import test_off_policy_learner as off_policy

from platotk.learning.engine import compilation
from platotk.learning.engine.learner import NUM_SKIPPED, EngineLearner

NUM_GPUS = 1
TOLERANCE = 1e-4
"""Both sides add up in another order there than on a CPU, and not in the same one."""

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(torch.cuda.device_count() < NUM_GPUS, reason="there is no GPU"),
]


def state_of(learner: Any) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = learner.module[DEFAULT_MODULE_ID].state_dict()
    assert all(tensor.device.type == torch.device(learner._device).type for tensor in tensors.values())
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def assert_same(one: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    theirs = state_of(other)
    for name, tensor in state_of(one).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("name", ["mixed, entropy", "clipped by value", "own network"])
def test_ppos_parameters_are_rllibs(name: str) -> None:
    case = ppo.CASES[name]
    ours, rllibs = (ppo.build(kind, **case, num_gpus=NUM_GPUS) for kind in (EngineLearner, PPOTorchLearner))
    here, first = ppo.build(EngineLearner, **case), state_of(ours)
    assert_same(here, ours, 0)
    for seed in range(2):
        fragment = ppo.sampled(here, seed=seed)
        theirs = ppo.for_rllib(ours, fragment)
        assert ppo.update(ours, episodes=[fragment])[NUM_SKIPPED] == 0
        ppo.update(rllibs, batch=theirs)
        assert_same(ours, rllibs)
    assert max(float((tensor - first[key]).abs().max()) for key, tensor in state_of(ours).items()) > 5e-3


def test_the_kernel_leaves_a_gpu_to_torch_and_says_so() -> None:
    compilation.kernel()
    learner = ppo.build(EngineLearner, "discrete", path="kernel", num_gpus=NUM_GPUS)
    ppo.update(learner, episodes=[ppo.sampled(ppo.build(EngineLearner, "discrete"))])
    assert learner._kernel.native is None
    assert "the network is on cuda" in learner._kernel.reason


@pytest.mark.parametrize("clip_by", ["global_norm", "value"])  # all tensors at once, and one by one
def test_ppos_state_goes_from_the_gpu_to_the_cpu_and_back(clip_by: str) -> None:
    given: dict[str, Any] = {"action": "box", "grad_clip_by": clip_by, "use_kl_loss": False}
    there, here, back = (ppo.build(EngineLearner, **given, num_gpus=gpus) for gpus in (NUM_GPUS, 0, NUM_GPUS))
    ppo.update(there, episodes=[ppo.sampled(here)])
    here.set_state(there.get_state())
    assert_same(here, there, 0)
    fragment = ppo.sampled(here, seed=1)
    for learner in (here, there):
        ppo.update(learner, episodes=[fragment])
    assert_same(here, there)  # Adam's moments came along
    back.set_state(here.get_state())
    assert_same(back, here, 0)
    ppo.update(back, episodes=[ppo.sampled(here, seed=2)])


@pytest.mark.parametrize("name", ["SAC", "SAC, clipped by value", "DQN"])
def test_sac_and_dqn_learn_as_rllib_does_and_their_state_travels(name: str) -> None:
    case = off_policy.CASES[name]
    _, engine, stock = off_policy.KINDS[case["name"]]
    ours, rllibs = (off_policy.build(kind, **case, num_gpus=NUM_GPUS) for kind in (engine, stock))
    action = off_policy.Spaces(case["action"], off_policy.VECTOR).encoded_action_space
    batches = [off_policy.drawn(off_policy.VECTOR, action, seed) for seed in range(3)]
    steps = [600, 630, 660]
    off_policy.updated(ours, batches, steps, [0, 1, 2])
    for seed, (batch, num_steps) in enumerate(zip(batches, steps, strict=True)):
        off_policy.updated_by_rllib(rllibs, batch, num_steps, seed)
    assert_same(ours, rllibs)
    here, back = (off_policy.build(engine, **case, num_gpus=gpus) for gpus in (0, NUM_GPUS))
    here.set_state(ours.get_state())
    assert_same(here, ours, 0)
    off_policy.updated(here, batches[:1], [690], [3])
    back.set_state(here.get_state())
    assert_same(back, here, 0)
    assert float(off_policy.updated(back, batches[1:], [720, 750], [4, 5])[NUM_SKIPPED]) == 0
