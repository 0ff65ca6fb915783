"""Every kind of policy is exported, and proven equal to the trained one; what cannot be is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.agents.runs import Plant, compared, quick_run, require_served

from platotk.agents import export as exporting
from platotk.agents.agent import Agent
from platotk.agents.export import export
from platotk.errors import AgentError
from platotk.learning.greedy import GreedyPolicy, greedy
from platotk.learning.policies import load_policy
from platotk.learning.tracing import PolicyNetwork
from platotk.project import Project
from platotk.run import Run

pytestmark = pytest.mark.usefixtures("ray_session")

PPO = {"training": {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}}
ASYNCHRONOUS = {
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2, "rollout_fragment_length": 10},
    "learners": {"num_learners": 0},
    "training": {"train_batch_size_per_learner": 40},
    "reporting": {"min_time_s_per_iteration": 0.05},
}
OFF_POLICY = {
    "training": {"train_batch_size_per_learner": 16, "num_steps_sampled_before_learning_starts": 16},
    "reporting": {"min_sample_timesteps_per_iteration": 32, "min_time_s_per_iteration": None},
}
SMALL = {"fcnet_hiddens": [16]}
LSTM = {**SMALL, "use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5}
VECTOR = gym.spaces.Box(-5, 5, (3,), np.float32)
MIXED = gym.spaces.Dict(
    valve=gym.spaces.Box(0, 1, (2,), np.float32),
    mode=gym.spaces.Discrete(3, start=2),
    steps=gym.spaces.Box(-1000, 1000, (), np.int64),
)
IMAGE = gym.spaces.Dict(
    camera=gym.spaces.Box(0, 255, (12, 16, 3), np.uint8), speed=gym.spaces.Box(0, 9, (1,), np.float32)
)
CASES: dict[str, dict[str, Any]] = {
    "PPO, a choice with a start": {**PPO, "action_space": gym.spaces.Discrete(4, start=-2)},
    "PPO, numbers, a choice and an integer": {**PPO, "action_space": MIXED},
    "PPO, LSTM": {**PPO, "action_space": gym.spaces.Discrete(3), "model": LSTM},
    "PPO, image and LSTM": {
        **PPO,
        "observation_space": IMAGE,
        "action_space": gym.spaces.Box(-2, 3, (2,), np.float64),
        "model": LSTM,
    },
    "PPO, LSTM shared with the critic": {
        **PPO,
        "action_space": gym.spaces.Box(-2, 3, (2,), np.float32),
        "model": {**LSTM, "vf_share_layers": True},
    },
    "APPO, masked choices": {
        **ASYNCHRONOUS,
        "algorithm": "APPO",
        "action_space": gym.spaces.MultiDiscrete([3, 4], start=[1, 1]),
        "choices": (3, 4),
    },
    "APPO, LSTM": {**ASYNCHRONOUS, "algorithm": "APPO", "action_space": MIXED, "model": LSTM},
    "IMPALA": {**ASYNCHRONOUS, "algorithm": "IMPALA", "action_space": gym.spaces.Box(-2, 3, (2,), np.float32)},
    "IMPALA, LSTM": {**ASYNCHRONOUS, "algorithm": "IMPALA", "action_space": gym.spaces.Discrete(3), "model": LSTM},
    "SAC, numbers": {**OFF_POLICY, "algorithm": "SAC", "action_space": gym.spaces.Box(-2, 3, (2,), np.float64)},
    "SAC, a masked choice": {
        **OFF_POLICY,
        "algorithm": "SAC",
        "action_space": gym.spaces.Discrete(5),
        "choices": (5,),
    },
    "DQN, choices enumerated": {
        **OFF_POLICY,
        "algorithm": "DQN",
        "action_space": gym.spaces.MultiDiscrete([2, 3]),
        "choices": (2, 3),
    },
    "DQN, a distribution of values": {
        "algorithm": "DQN",
        "action_space": gym.spaces.Discrete(3),
        "training": {**OFF_POLICY["training"], "num_atoms": 5, "v_min": -1.0, "v_max": 20.0},
        "reporting": OFF_POLICY["reporting"],
    },
    "DQN, LSTM": {
        "algorithm": "DQN",
        "action_space": gym.spaces.Discrete(3),
        "model": LSTM,
        # RLlib 2.60's prioritised buffer fails with a memory.
        "training": {**OFF_POLICY["training"], "replay_buffer_config": {"type": "EpisodeReplayBuffer"}},
        "reporting": OFF_POLICY["reporting"],
    },
}


def project(
    observation_space: Any = VECTOR, action_space: Any = None, choices: Any = (), model: Any = SMALL, **fields: Any
) -> Project:
    config = {"observation_space": observation_space, "action_space": action_space, "choices": choices}
    fields = {"env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2}, **fields}
    return Project(sim=Plant, name="plant", sim_config=config, rl_module={"model_config": model}, **fields)


SLOW = (
    "APPO, LSTM",
    "IMPALA, LSTM",
    "SAC, numbers",
    "PPO, image and LSTM",
    "PPO, LSTM",
    "APPO, masked choices",
    "DQN, LSTM",
    "DQN, a distribution of values",
    "PPO, LSTM shared with the critic",
)
"""What others here cover in part, and takes long."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_the_agent_acts_as_the_trained_policy(name: str, tmp_path: Path):
    run = quick_run(project(**CASES[name]), tmp_path / "run")
    agent = Agent.load(export(run))
    proof = agent.verify()
    assert proof.is_equal
    assert proof.num_rows >= 1000
    assert agent.has_memory == ("LSTM" in name)
    if agent.has_memory:
        # What only the critic remembers does not travel: h and c are all.
        assert len(agent.manifest["model"]["state"]) == 2
        with pytest.raises(AgentError, match="session"):
            agent.act(agent.observation_space.sample())
    sim = Plant(**run.project.sim_config)
    sim.reset(seed=4711)
    fresh = [(agent.observation_space.sample(), sim._info().get("action_mask")) for _ in range(50)]
    policy = load_policy(run)
    fast = greedy(policy)
    assert isinstance(fast, GreedyPolicy)
    assert fast.has_memory == agent.has_memory
    for ours in (agent, fast):
        assert compared(ours, policy, [obs for obs, _ in fresh], [mask for _, mask in fresh]).is_equal
    require_served(agent)


def test_a_run_of_plato_train_is_exported(adder_run: Run, adder_agent: Path):
    assert Agent.load(adder_agent).manifest["provenance"]["run"] == adder_run.name


def test_a_memory_acts_as_in_training_over_a_whole_episode(tmp_path: Path):
    run = quick_run(project(**CASES["PPO, LSTM"]), tmp_path / "run")
    agent, policy = Agent.load(export(run)), load_policy(run)
    rng = np.random.default_rng(0)
    fast = greedy(policy)
    for call in (fast.act, fast.act_batch):
        with pytest.raises(AgentError, match="has memory"):
            call([np.zeros(3, np.float32)])
    sessions = [who.session() for who in (agent, fast, policy)]
    for _ in range(3):
        for session in sessions:
            session.reset()
        for _ in range(100):
            obs = rng.uniform(-5, 5, 3).astype(np.float32)
            assert len({int(session.act(obs)) for session in sessions}) == 1


class Pressure(gym.Env):
    """A pressure in Pa that hardly moves, and a valve."""

    observation_space = gym.spaces.Box(0, 2e5, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        return self._seen(), -float(action[0] ** 2), False, self.t >= 20, {}

    def _seen(self):
        return np.array([101_325.3 + 0.5 * self.np_random.normal()], np.float32)


def test_a_large_offset_is_normalised_exactly(tmp_path: Path):
    run = quick_run(Project(sim=Pressure, name="pressure", **PPO), tmp_path / "run")
    proof = Agent.load(export(run)).verify()
    assert proof.is_equal
    assert proof.max_error <= 1e-6
    # And why the filter is in float64: what float32 would make of the same statistics.
    policy = load_policy(run)
    network = PolicyNetwork(policy).eval()
    seen = torch.as_tensor(101_325.3 + 0.5 * np.random.default_rng(0).normal(size=(1000, 1)), dtype=torch.float32)
    exact = (seen.numpy().astype(np.float64) - network.filter_mean.numpy()) * network.filter_gain.numpy()
    folded = (seen * network.filter_gain.float() - (network.filter_mean * network.filter_gain).float()).numpy()
    assert np.abs(network._filtered(seen).numpy() - exact).max() < 1e-6
    assert np.abs(folded - exact).max() > 1e-3


def test_an_agent_that_would_act_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = quick_run(project(action_space=gym.spaces.Discrete(3), **PPO), tmp_path / "run")
    honest = exporting.trace

    def wrong(policy: Any, recording: Any) -> Any:
        answer = honest(policy, recording)
        for row in recording["rows"][:20]:
            row["action"], row["margin"] = (row["action"] + 1) % 3, 1.0
        return answer

    monkeypatch.setattr(exporting, "trace", wrong)
    with pytest.raises(AgentError, match="20 chose differently"):
        export(run)
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "plato.yaml", "run.json"]


MODULES = '''
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule


class Net(TorchRLModule, ValueFunctionAPI):
    """A network of one's own: two layers, dropout, a value head."""

    def setup(self):
        size = self.observation_space.shape[0]
        self.body = torch.nn.Sequential(torch.nn.Linear(size, 16), torch.nn.SiLU(), torch.nn.Dropout(0.5))
        self.pi, self.vf = torch.nn.Linear(16, 3), torch.nn.Linear(16, 1)

    def logits(self, obs):
        assert obs.shape[-1] == self.observation_space.shape[0]  # branches on shapes are no problem
        return self.pi(self.body(obs))

    def _forward(self, batch, **kwargs):
        return {Columns.ACTION_DIST_INPUTS: self.logits(batch[Columns.OBS])}

    def _forward_train(self, batch, **kwargs):
        body = self.body(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.pi(body), Columns.EMBEDDINGS: body}

    def compute_values(self, batch, embeddings=None):
        return self.vf(self.body(batch[Columns.OBS])).squeeze(-1)


class Branches(Net):
    def logits(self, obs):
        logits = super().logits(obs)
        if obs.max() > 1e6:  # never in the recording: parity alone would not see it
            logits = -logits
        return logits


class Numpy(Net):
    def logits(self, obs):
        return super().logits(torch.as_tensor(np.tanh(obs.detach().numpy())))


class Counts(Net):
    def logits(self, obs):
        return super().logits(obs) * obs.abs().sum().item()


class Random(Net):
    def logits(self, obs):
        return super().logits(obs) + 10 * torch.randn(obs.shape[0], 3)


class Masks(Net):
    """A mask of its own, written by index: operations that ONNX knows."""

    def logits(self, obs):
        logits = super().logits(obs).clone()
        logits[obs > 0] = -1e9 if logits.shape == obs.shape else 0.0
        return logits


def config(kind):
    training = dict(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
    return (
        PPOConfig()
        .training(**training)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=kind))
    )


def net():
    return config(Net)


def branches():
    return config(Branches)


def numpy():
    return config(Numpy)


def counts():
    return config(Counts)


def random():
    return config(Random)


def masks():
    return config(Masks)
'''


def custom_run(folder: Path, function: str) -> Run:
    """A run of a project whose plato.yaml names a function in own_net.py, as it lies on disk."""
    (folder / "own_net.py").write_text(MODULES)
    (folder / "own_sim.py").write_text(
        "import numpy as np\nfrom gymnasium import spaces\nfrom tests.agents.runs import Plant\n\n"
        "def sim():\n    return Plant(spaces.Box(-5, 5, (3,), np.float32), spaces.Discrete(3))\n"
    )
    (folder / "plato.yaml").write_text(f"name: own\nsim: own_sim:sim\nalgorithm: own_net:{function}\n")
    return quick_run(Project.load(folder), folder / "runs" / "run")


@pytest.mark.parametrize("function", ["net", "masks"])
def test_a_module_of_ones_own_is_exported(function: str, tmp_path: Path):
    run = custom_run(tmp_path, function)
    agent = Agent.load(export(run))
    rng = np.random.default_rng(1)
    observations = [rng.uniform(-5, 5, 3).astype(np.float32) for _ in range(50)]
    assert agent.verify().is_equal
    policy = load_policy(run)
    assert compared(agent, policy, observations, [None] * 50).is_equal
    assert greedy(policy) is policy  # what a module of one's own does in its inference is RLlib's to say


@pytest.mark.parametrize(
    ("function", "name", "line"),
    [
        ("branches", "Branches", r"if obs\.max\(\) > 1e6"),
        ("numpy", "Numpy", r"np\.tanh\(obs\.detach\(\)\.numpy\(\)\)"),
        ("counts", "Counts", r"\.item\(\)"),
    ],
)
def test_a_module_that_leaves_torch_is_refused_with_its_line(function: str, name: str, line: str, tmp_path: Path):
    run = custom_run(tmp_path, function)
    with pytest.raises(AgentError, match=rf"{name} cannot be exported: at own_net.py:\d+, `.*{line}") as raised:
        export(run)
    assert "torch.where" in str(raised.value)
    assert "plato export again" in str(raised.value)
    assert not (run.path / "agent").exists()


def test_a_random_forward_is_refused(tmp_path: Path):
    run = custom_run(tmp_path, "random")
    with pytest.raises(AgentError, match="does not act as Random does"):
        export(run)
    assert not list(run.path.glob("*agent*"))


def test_a_process_that_never_trained_finds_the_module_beside_plato_yaml(tmp_path: Path):
    run = custom_run(tmp_path, "net")
    root = Path(__file__).resolve().parents[2]
    script = (
        f"import sys; sys.path.append({str(root)!r})\n"
        "from platotk.run import Run\nfrom platotk.learning.policies import load_policy\n"
        f"print(type(load_policy(Run({str(run.path)!r})).module).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "Net", done.stderr[-500:]
