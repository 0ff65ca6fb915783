"""Networks with memory in the engine: states, sequences, and RLlib's parameters after the same minibatches."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns as Names
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from tests.learning.engine.sims import Counting
from tests.learning.engine.test_learner import MASKED, VECTOR, assert_same_parameters, build, observed, update

from platotk.learning.algorithm import SimSettings, build_config
from platotk.learning.engine import plan
from platotk.learning.engine.acting import Actor
from platotk.learning.engine.columns import mapped, taken
from platotk.learning.engine.fragments import Fragment, FragmentBuilder, joined
from platotk.learning.engine.learner import NUM_SKIPPED, EngineLearner
from platotk.learning.engine.memory import Memory
from platotk.learning.engine.recurrent import RecurrentActor, RecurrentForward, actor_for
from platotk.learning.engine.runner import EngineRunner
from platotk.learning.engine.sequences import of_steps, sequences_of
from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_SIMS = 4
LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5}


class OwnMemory(TorchRLModule, ValueFunctionAPI):
    """A network with memory as a user would write one: its state is one vector."""

    def setup(self) -> None:
        self.cell = torch.nn.GRU(4, 8, batch_first=True)
        self.policy, self.value = torch.nn.Linear(8, 3), torch.nn.Linear(8, 1)

    def get_initial_state(self) -> dict[str, Any]:
        return {"h": np.full(8, 0.1, np.float32)}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features, last = self.cell(batch[Names.OBS], batch[Names.STATE_IN]["h"].unsqueeze(0))
        return {Names.ACTION_DIST_INPUTS: self.policy(features), Names.STATE_OUT: {"h": last.squeeze(0)}}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        features, _ = self.cell(batch[Names.OBS], batch[Names.STATE_IN]["h"].unsqueeze(0))
        return self.value(features).squeeze(-1)


def played(learner: Any, observation: Any = VECTOR, *, every: int = 5) -> tuple[list[Fragment], list[Any]]:
    """Two fragments by the learner's own policy, random endings; and RLlib's episodes of the second one."""
    rng = np.random.default_rng(3)
    np.random.seed(3)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    actor, memory = Actor(module, "cpu", explore=True), Memory(module, NUM_SIMS)
    obs, is_done = observed(rng, observation, NUM_SIMS), np.zeros(NUM_SIMS, dtype=bool)
    episodes = [SingleAgentEpisode() for _ in range(NUM_SIMS)]
    for sim, episode in enumerate(episodes):
        episode.add_env_reset(taken(obs, sim))
    fragments: list[Fragment] = []
    for num_steps in (13, 41):
        chunks: list[list[Any]] = [[] if episode.is_done else [episode] for episode in episodes]
        builder = FragmentBuilder(NUM_SIMS, obs, num_steps, is_done, every)
        for _ in range(num_steps):
            states = memory.rows
            chosen = actor.act(obs, 0, states)
            after = mapped(np.array, chosen.pop(Names.STATE_OUT))
            memory.follow(mapped(np.array, after), builder.is_done)
            chosen[Names.ACTION_DIST_INPUTS] += rng.normal(0, 0.2, chosen[Names.ACTION_DIST_INPUTS].shape).astype("f4")
            chosen[Names.ACTION_LOGP] += rng.normal(0, 0.2, NUM_SIMS).astype("f4")
            obs, rewards = observed(rng, observation, NUM_SIMS), rng.normal(size=NUM_SIMS)
            terminated, truncated = rng.random(NUM_SIMS) < 0.05, rng.random(NUM_SIMS) < 0.06
            was_step = builder.add(chosen, rewards, terminated, truncated, obs, states)
            for sim in range(NUM_SIMS):
                if not was_step[sim]:
                    chunks[sim].append(SingleAgentEpisode())
                    chunks[sim][-1].add_env_reset(taken(obs, sim))
                    continue
                row = {name: taken(column, sim) for name, column in chosen.items()}
                chunks[sim][-1].add_env_step(
                    taken(obs, sim),
                    row.pop(Names.ACTIONS),
                    rewards[sim],
                    terminated=bool(terminated[sim]),
                    truncated=bool(truncated[sim] and not terminated[sim]),
                    extra_model_outputs={**row, Names.STATE_OUT: taken(after, sim)},
                )
        is_done = builder.is_done
        fragments.append(builder.fragment(0))
        episodes = [one[-1] if one[-1].is_done else one[-1].cut(len_lookback_buffer=1) for one in chunks]
    return fragments, [chunk.to_numpy() for one in chunks for chunk in one if len(chunk)]


def learners(case: dict[str, Any]) -> tuple[Any, Any]:
    given = {**case, "model": {**LSTM, **case.get("model", {})}}
    return build(EngineLearner, **given), build(PPOTorchLearner, **given)


CASES: dict[str, dict[str, Any]] = {
    "apart": {"action": "discrete"},
    "shared": {"action": "mixed", "model": {"vf_share_layers": True}, "entropy_coeff": 0.01},
    "numbers, long sequences": {"action": "box", "model": {"max_seq_len": 20}, "vf_clip_param": 0.3},
    "masked": {"action": "discrete", "observation": MASKED, "entropy_coeff": 0.01},
    "own": {"action": "discrete", "module": OwnMemory},
}


@pytest.mark.parametrize("name", CASES)
def test_targets_states_and_parameters_are_rllibs_of_the_same_episodes(name: str) -> None:
    case = CASES[name]
    ours, rllibs = learners(case)
    fragments, episodes = played(
        ours, case.get("observation", VECTOR), every=case.get("model", {}).get("max_seq_len", 5)
    )
    fragment = fragments[-1]
    # RLlib's own connectors: the extra step, states, zero padding, values and advantages.
    theirs = rllibs._make_batch_if_necessary(training_data=TrainingData(episodes=episodes))[DEFAULT_MODULE_ID]
    is_step = theirs[Names.LOSS_MASK]
    sequences = ours._sequences(fragment)
    batch = ours._train_batch(fragment, sequences)
    torch.testing.assert_close(batch.columns["value_targets"], theirs["value_targets"][is_step], rtol=0, atol=1e-5)
    advantages = theirs["advantages"][is_step]
    advantages = (advantages - advantages.mean()) / advantages.std(unbiased=False)
    torch.testing.assert_close(batch.columns["advantages"], advantages, rtol=0, atol=1e-5)
    whole = next(batch.minibatches(np.arange(len(sequences)), len(sequences)))
    has_steps = is_step.any(dim=1)
    mapped(
        lambda a, b: torch.testing.assert_close(a, b[has_steps], rtol=0, atol=1e-6),
        whole[Names.STATE_IN],
        dict(theirs[Names.STATE_IN]),
    )
    # Three epochs over the whole batch, RLlib's with its padding but our advantages, which leave the padding out.
    theirs["advantages"][is_step] = batch.columns["advantages"]
    first = [parameter.detach().clone() for parameter in ours.module[DEFAULT_MODULE_ID].parameters()]
    given: dict[str, Any] = {"num_epochs": 3, "timesteps": {"num_env_steps_sampled_lifetime": 500}}
    ours.update(episodes=[fragment], **given)
    rllibs.update(batch=MultiAgentBatch({DEFAULT_MODULE_ID: theirs}, len(theirs)), **given)
    assert_same_parameters(ours, rllibs)
    moved = [(new - old).detach().abs().max() for new, old in zip(_parameters(ours), first, strict=True)]
    assert max(moved) > 5e-3


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_rllibs_after_the_same_minibatches(name: str) -> None:
    case = CASES[name]
    ours, rllibs = learners(case)
    fragments, _ = played(ours, case.get("observation", VECTOR), every=case.get("model", {}).get("max_seq_len", 5))
    for fragment in fragments:
        sequences = ours._sequences(fragment)
        whole = next(ours._train_batch(fragment, sequences).minibatches(np.arange(len(sequences)), len(sequences)))
        columns = {key: column for key, column in whole.items() if not key.startswith("_")}
        theirs = SampleBatch(columns, _zero_padded=True, _max_seq_len=5)
        said = update(ours, episodes=[fragment])
        expected = update(rllibs, batch=MultiAgentBatch({DEFAULT_MODULE_ID: theirs}, len(fragment)))
        assert said.pop(NUM_SKIPPED) == 0
        assert_same_parameters(ours, rllibs)
        for key in ("policy_loss", "vf_loss", "entropy", "mean_kl_loss", "total_loss"):
            assert said[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), key


def test_cut_anywhere_and_joined_again_sequences_know_their_states() -> None:
    (ours, _) = learners(CASES["own"])
    fragment = played(ours, every=1)[0][-1]
    for at in (1, 7, 50, len(fragment) - 1):
        parts = [fragment[:at], fragment[at:]]
        whole = sequences_of(joined(parts), 5)
        assert whole.lengths.sum() == len(fragment)
        np.testing.assert_array_equal(whole.states["h"], fragment.states["h"][whole.starts])
    with pytest.raises(RuntimeError, match="not kept"):
        sequences_of(played(ours, every=5)[0][-1][1:], 5)


def test_only_steps_are_learned_from() -> None:
    inputs, values = torch.arange(12.0).reshape(2, 3, 2), torch.arange(6.0).reshape(2, 3)
    flat = of_steps({"_steps": {"a": 1}, "_places": torch.tensor([0, 1, 2, 3])}, inputs, values)
    assert flat[1].tolist() == [0, 1, 2, 3]
    assert flat[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert flat[2] == {"a": 1}


@pytest.mark.parametrize(
    ("share", "action", "activation"),
    [(True, "discrete", "tanh"), (False, "box", "relu"), (True, "box", "elu"), (False, "mixed", "silu")],
)
def test_numpy_acts_as_torch_does(share: bool, action: str, activation: str) -> None:
    model = {**LSTM, "vf_share_layers": share, "fcnet_activation": activation, "log_std_clip_param": 0.01}
    module = build(EngineLearner, action=action, model=model).module[DEFAULT_MODULE_ID].unwrapped()
    rng = np.random.default_rng(1)
    ours, torchs = actor_for(module, None, explore=True), Actor(module, None, explore=True)
    assert type(ours) is RecurrentActor
    for _ in range(2):
        states = mapped(lambda leaf: np.repeat(leaf.numpy()[None], NUM_SIMS, axis=0), module.get_initial_state())
        ours.begin()
        for step in range(4):
            seen = observed(rng, VECTOR, NUM_SIMS)
            np.random.seed(step)
            expected = torchs.act(seen, 0, states)
            np.random.seed(step)
            chosen = ours.act(seen, 0, states)
            assert chosen.keys() == expected.keys()
            mapped(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), chosen, expected)
            states = expected[Names.STATE_OUT]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.from_numpy(rng.normal(0, 0.1, parameter.shape).astype("f4")))


@pytest.mark.parametrize("share", [True, False])
def test_the_lean_forward_pass_is_rllibs_with_its_gradients(share: bool) -> None:
    module = build(EngineLearner, action="box", model={**LSTM, "vf_share_layers": share}).module[DEFAULT_MODULE_ID]
    rng = torch.Generator().manual_seed(2)
    states = mapped(lambda leaf: torch.randn(6, *leaf.shape, generator=rng), module.get_initial_state())
    batch = {Names.OBS: torch.randn(6, 5, *module.observation_space.shape, generator=rng), Names.STATE_IN: states}
    gradients = []
    for forward in (module._forward_train, RecurrentForward(module)):
        out = forward(batch)
        module.zero_grad()
        (
            out[Names.ACTION_DIST_INPUTS].square().sum() + module.compute_values(batch, out[Names.EMBEDDINGS]).sum()
        ).backward()
        gradients.append([parameter.grad.clone() for parameter in module.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_networks_that_numpy_does_not_know_act_by_torch() -> None:
    for case in (
        {"module": OwnMemory},
        {"observation": MASKED},
        {"model": {"fcnet_use_layernorm": True}},
    ):
        given = {"action": "discrete", **case, "model": {**LSTM, **case.get("model", {})}}
        module = build(EngineLearner, **given).module[DEFAULT_MODULE_ID].unwrapped()
        assert type(actor_for(module, None, explore=True)) is Actor


def runner_for(*, own_process: bool = False, **model: Any) -> Any:
    spec = {"model_config": {"fcnet_hiddens": [8], **LSTM, **model}}
    project = Project(sim=Counting, rl_module=spec, env_runners={"num_envs_per_env_runner": 3})
    made = Counting()
    adapter = adapt(made.observation_space, gym.spaces.Discrete(2))
    config = build_config(project, adapter, sim_spec(project), SimSettings(own_process=own_process))
    plan.apply(plan.EnginePlan("torch"), config)
    return EngineRunner(config=config, worker_index=0, num_workers=0)


def assert_remembered(runner: Any, fragment: Fragment) -> int:
    """What was chosen is what the module says of each episode when it sees it at once; how many began there."""
    ends, known = np.flatnonzero(fragment.ends), fragment.state_steps
    num_begun = 0
    for start, stop in zip([0, *(ends[:-1] + 1)], ends + 1, strict=True):
        states = taken(fragment.states, slice(*np.searchsorted(known, [start, start + 1])))
        seen = fragment.observations[fragment.rows[start:stop]]
        if fragment.rows[start] and fragment.rows[start] != fragment.rows[start - 1] + 1:
            is_first = all((leaf == 0).all() for part in states.values() for leaf in part.values())
            num_begun += is_first
        batch = {Names.OBS: torch.from_numpy(seen)[None], Names.STATE_IN: mapped(torch.from_numpy, states)}
        inputs = runner.module.forward_exploration(batch)[Names.ACTION_DIST_INPUTS][0].detach().numpy()
        np.testing.assert_allclose(fragment.steps[Names.ACTION_DIST_INPUTS][start:stop], inputs, atol=1e-5)
    return num_begun


@pytest.mark.parametrize("own_process", [False, True])
def test_each_sim_is_remembered_until_its_episode_ends(own_process: bool) -> None:
    runner = runner_for(own_process=own_process)
    try:
        for _ in range(2):
            (fragment,) = runner.sample(num_timesteps=90)
            assert assert_remembered(runner, fragment) > 3
        (whole,) = runner.sample(num_episodes=5, explore=False)
        assert whole.num_episodes == 5
        assert_remembered(runner, whole)
    finally:
        runner.stop()


def _parameters(learner: Any) -> list[Any]:
    return list(learner.module[DEFAULT_MODULE_ID].parameters())
