"""PPO, SAC and DQN by others, each run by the Python of an environment that has it; `peers.py` starts them.

    PYTHON benchmarks/peer_programs.py WHO WHAT WORK

WHO is `sb3`, `sbx`, `pufferlib` or `script` (PPO in one file, as CleanRL's are written); WHAT is `ppo`, `sac`, `dqn`
(steps per second), `solve` (until CartPole's mean return over 100 episodes is 475) or `start` (one iteration). WORK is
JSON with the settings. The last line printed is JSON: `durations`, seconds of each iteration, `steps` in one, and when
the last one ended (`ended_at`, seconds since the epoch).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import deque
from typing import Any

SOLVED, EPISODES = 475.0, 100


class Iterations:
    """When iterations began, until the time is over, one is done (`start`) or CartPole is solved (`solve`)."""

    def __init__(self, what: str, work: dict[str, Any]) -> None:
        self.what = what
        self.until = time.perf_counter() + work["seconds"]
        self.began: list[float] = []
        self.ended_at = 0.0
        self.returns: deque[float] = deque(maxlen=EPISODES)

    def begin(self) -> bool:
        """Note that an iteration begins; whether it shall."""
        self.began.append(time.perf_counter())
        self.ended_at = time.time()
        if self.what == "start":
            return len(self.began) < 2
        if self.what == "solve":
            return len(self.returns) < EPISODES or sum(self.returns) / EPISODES < SOLVED
        return time.perf_counter() < self.until or len(self.began) < 5

    def report(self, steps: int) -> dict[str, Any]:
        return {
            "durations": [b - a for a, b in itertools.pairwise(self.began)],
            "steps": steps,
            "ended_at": self.ended_at,
        }


def stable_baselines(package: str, what: str, work: dict[str, Any]) -> dict[str, Any]:
    """Stable-Baselines3, or SBX, the same in JAX."""
    import importlib

    import gymnasium as gym
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    if package == "sb3":
        import torch

        torch.set_num_threads(1)
    algorithms = importlib.import_module("stable_baselines3" if package == "sb3" else "sbx")
    iterations = Iterations(what, work)
    is_off_policy = what in ("sac", "dqn")

    class Watch(BaseCallback):
        goes_on = True

        def _on_step(self) -> bool:
            iterations.returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            if is_off_policy and self.num_timesteps >= work["warm_up"] and self.num_timesteps % work["steps"] == 0:
                self.goes_on = iterations.begin()
            return self.goes_on

        def _on_rollout_start(self) -> None:
            if not is_off_policy:
                self.goes_on = iterations.begin()

    envs = DummyVecEnv([lambda: Monitor(gym.make(work["sim"])) for _ in range(work["num_envs"])])
    settings: dict[str, Any]
    if is_off_policy:
        settings = {
            "learning_starts": work["warm_up"],
            "train_freq": 1,
            "gradient_steps": 1,
            "buffer_size": 100_000,
            "policy_kwargs": {"net_arch": work["hidden"]},
        }
    else:
        settings = {
            "n_steps": work["batch"] // work["num_envs"],
            "n_epochs": work["epochs"],
            "gae_lambda": 0.95,
            "clip_range": 0.2,
            "policy_kwargs": {"net_arch": {"pi": work["hidden"], "vf": work["hidden"]}},
        }
    algorithm = getattr(algorithms, {"sac": "SAC", "dqn": "DQN"}.get(what, "PPO"))
    model = algorithm(
        "MlpPolicy",
        envs,
        batch_size=work["minibatch"],
        learning_rate=work["lr"],
        seed=work["seed"],
        device="cpu",
        **settings,
    )
    model.learn(10**9, callback=Watch())
    return iterations.report(work["steps"] if is_off_policy else work["batch"])


def script(what: str, work: dict[str, Any]) -> dict[str, Any]:
    """PPO in one function: a loop over steps that fills tensors, a loop back for the advantages, minibatches."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(work["seed"])
    num_envs, hidden = work["num_envs"], work["hidden"]
    length = work["batch"] // num_envs
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(work["sim"])) for _ in range(num_envs)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    num_inputs, num_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)

    def layers(num_outputs: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for a, b in itertools.pairwise([num_inputs, *hidden]):
            parts += [nn.Linear(a, b), nn.Tanh()]
        return nn.Sequential(*parts, nn.Linear(hidden[-1], num_outputs))

    actor, critic = layers(num_actions), layers(1)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=work["lr"], eps=1e-5)
    obs = torch.zeros((length, num_envs, num_inputs))
    actions, log_probs, rewards, dones, values = (torch.zeros((length, num_envs)) for _ in range(5))
    iterations = Iterations(what, work)
    now = torch.as_tensor(envs.reset(seed=work["seed"])[0])
    done = torch.zeros(num_envs)
    while iterations.begin():
        for t in range(length):
            obs[t], dones[t] = now, done
            with torch.no_grad():
                chances = torch.distributions.Categorical(logits=actor(now))
                action = chances.sample()
                values[t], log_probs[t], actions[t] = critic(now).flatten(), chances.log_prob(action), action
            following, reward, terminated, truncated, info = envs.step(action.numpy())
            rewards[t] = torch.as_tensor(reward)
            now, done = torch.as_tensor(following), torch.as_tensor(np.logical_or(terminated, truncated)).float()
            if "final_info" in info:
                ended = info["final_info"]["episode"]
                iterations.returns.extend(ended["r"][info["_final_info"]])
        with torch.no_grad():
            advantages, last, ahead, open_ = torch.zeros_like(rewards), 0.0, critic(now).flatten(), 1.0 - done
            for t in reversed(range(length)):
                delta = rewards[t] + 0.99 * ahead * open_ - values[t]
                last = delta + 0.99 * 0.95 * open_ * last
                advantages[t], ahead, open_ = last, values[t], 1.0 - dones[t]
            returns = advantages + values
        flat = [part.reshape(work["batch"], *part.shape[2:]) for part in (obs, actions, log_probs, advantages, returns)]
        for _ in range(work["epochs"]):
            order = np.random.permutation(work["batch"])
            for begin in range(0, work["batch"], work["minibatch"]):
                rows = order[begin : begin + work["minibatch"]]
                some_obs, some_actions, old, advantage, target = (part[rows] for part in flat)
                chances = torch.distributions.Categorical(logits=actor(some_obs))
                ratio = (chances.log_prob(some_actions) - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
                value_loss = 0.5 * ((critic(some_obs).flatten() - target) ** 2).mean()
                loss = policy_loss + 0.5 * value_loss - 0.0 * chances.entropy().mean()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimiser.step()
    return iterations.report(work["batch"])


def pufferlib(what: str, work: dict[str, Any]) -> dict[str, Any]:
    """PufferLib's trainer; not quite the same work: it weighs segments and computes advantages for each minibatch."""
    import contextlib
    import io

    import gymnasium
    import pufferlib.emulation
    import pufferlib.vector
    import torch
    from pufferlib.pufferl import PuffeRL
    from torch import nn

    torch.set_num_threads(1)

    def make(buf: Any = None, seed: int = 0) -> Any:
        env = pufferlib.EpisodeStats(gymnasium.make(work["sim"]))
        return pufferlib.emulation.GymnasiumPufferEnv(env=env, buf=buf)

    envs = pufferlib.vector.make(make, num_envs=work["num_envs"], backend=pufferlib.vector.Serial)
    num_inputs, num_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = self.layers(num_actions), self.layers(1)

        @staticmethod
        def layers(num_outputs: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for a, b in itertools.pairwise([num_inputs, *work["hidden"]]):
                parts += [nn.Linear(a, b), nn.Tanh()]
            return nn.Sequential(*parts, nn.Linear(work["hidden"][-1], num_outputs))

        def forward_eval(self, observations: Any, state: Any = None) -> Any:
            rows = observations.float().reshape(-1, num_inputs)
            return self.actor(rows), self.critic(rows)

        forward = forward_eval

    config = {
        "seed": work["seed"],
        "torch_deterministic": True,
        "cpu_offload": False,
        "device": "cpu",
        "optimizer": "adam",
        "anneal_lr": False,
        "precision": "float32",
        "total_timesteps": 10**9,
        "learning_rate": work["lr"],
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "update_epochs": work["epochs"],
        "clip_coef": 0.2,
        "vf_coef": 0.5,
        "vf_clip_coef": 1e9,
        "max_grad_norm": 0.5,
        "ent_coef": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_eps": 1e-5,
        "data_dir": "/tmp",
        "checkpoint_interval": 10**9,
        "batch_size": work["batch"],
        "minibatch_size": work["minibatch"],
        "max_minibatch_size": work["minibatch"],
        "bptt_horizon": 32,
        "compile": False,
        "vtrace_rho_clip": 1.0,
        "vtrace_c_clip": 1.0,
        "prio_alpha": 0.8,
        "prio_beta0": 0.2,
        "use_rnn": False,
        "env": work["sim"],
    }
    iterations = Iterations(what, work)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = PuffeRL(config, envs, Policy())
        while iterations.begin():
            iterations.returns.extend(trainer.evaluate().get("episode_return", []))
            trainer.stats.clear()
            trainer.train()
    trainer.utilization.stop()  # a thread that would not let the process end
    return iterations.report(work["batch"])


def main() -> int:
    who, what, work = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    programs = {"script": script, "pufferlib": pufferlib}
    told = programs[who](what, work) if who in programs else stable_baselines(who, what, work)
    print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
