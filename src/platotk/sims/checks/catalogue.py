"""The catalogue of what `plato check` can find: severity, meaning, and the code that cures it.

Findings take their severity and cure from here unless a check knows better; `table()` is the table in
docs/learn/check.md.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Check:
    """One thing that is checked.

    Attributes:
        id: Kebab-case name of the finding.
        severity: Of the usual case; a finding may be milder or graver where its message says why.
        meaning: What it means when it is found.
        cure: Code to paste, or what to do.
    """

    id: str
    severity: Severity
    meaning: str
    cure: str | None = None


def table() -> str:
    """The catalogue as a Markdown table, for the docs."""
    rows = ["| id | severity | what it means | cure |", "| --- | --- | --- | --- |"]
    for check in CHECKS.values():
        lines = (check.cure or "").splitlines()
        cure = "<br>".join(f"`{line.strip()}`" if check.cure and _is_code(line) else line for line in lines)
        cells = (f"`{check.id}`", check.severity, check.meaning, cure)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _is_code(line: str) -> bool:
    return any(mark in line for mark in ("=", "(", ": {", "import ", "return ", "   #", "..."))


def _catalogue(*checks: tuple[str, Severity, str, str | None]) -> dict[str, Check]:
    entries = [Check(name, level, text, textwrap.dedent(cure) if cure else None) for name, level, text, cure in checks]
    return {check.id: check for check in entries}


CHECKS: dict[str, Check] = _catalogue(
    # --- finding and making the sim
    (
        "not-found",
        "error",
        "`sim:` names no Gymnasium id, module or class, or the sim does not take `sim_config`.",
        "sim: sim:MySim        # class MySim in sim.py next to plato.yaml",
    ),
    (
        "import-fails",
        "error",
        "The sim's module raises while it is imported.",
        "python -c 'import sim'   # until it is quiet",
    ),
    (
        "constructor-fails",
        "error",
        "Making the sim raises.",
        "python -c 'from sim import MySim; MySim()'   # until it is quiet",
    ),
    (
        "hides-module",
        "error",
        "A file next to plato.yaml has the name of a module that training needs, and hides it.",
        "Rename the file.",
    ),
    (
        "unpicklable",
        "error",
        "The sim, or sim_config, cannot be sent to other processes.",
        "sim: my_module:MySim   # by name: workers import it; open files, locks and connections in __init__",
    ),
    # --- surviving it
    (
        "hangs",
        "error",
        "A call of the sim did not return in time.",
        "connection.settimeout(5.0)   # bound every wait: a sim that raises is started again",
    ),
    (
        "crashes",
        "error",
        "The sim ended its process with a signal (segmentation fault, abort, out of memory).",
        "sim_process: own   # in plato.yaml: training then survives a crash; the cause is in native code",
    ),
    (
        "exits",
        "error",
        "The sim called sys.exit() or os._exit().",
        "raise RuntimeError('what went wrong')   # instead of sys.exit()",
    ),
    (
        "raises",
        "error",
        "reset() or step() raised. Up to 2 % of steps is survived (a warning); more ends training.",
        "return obs, reward, False, True, info   # truncated=True where the sim cannot go on",
    ),
    # --- the interface
    (
        "old-gym",
        "error",
        "The sim is written for the old `gym` package.",
        "import gymnasium as gym   # instead of: import gym",
    ),
    (
        "old-gym-step",
        "error",
        "step() returns the four values of old gym; Gymnasium splits `done` into terminated and truncated.",
        "return obs, reward, terminated, truncated, info   # truncated: the time limit alone",
    ),
    (
        "old-gym-reset",
        "error",
        "reset() returns the observation alone, as old gym did.",
        "return obs, {}",
    ),
    (
        "not-gymnasium",
        "warning",
        "The sim is not a gymnasium.Env; wrappers and tools expect one.",
        "class MySim(gymnasium.Env):",
    ),
    ("method-missing", "error", "The sim has no reset() or no step().", "def step(self, action):\n    ..."),
    (
        "spaces-missing",
        "error",
        "observation_space or action_space is missing, or not a gymnasium.spaces.Space.",
        "self.observation_space = gymnasium.spaces.Box(low, high, shape=(n,), dtype=np.float32)",
    ),
    (
        "spaces-not-learnable",
        "error",
        "No algorithm can learn from these spaces.",
        "Build the spaces from Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple.",
    ),
    (
        "algorithm-misfit",
        "error",
        "This algorithm cannot learn from these spaces; others can.",
        "algorithm: PPO",
    ),
    (
        "project-setting",
        "error",
        "action_mask, action_scale, guard, units or gym_env_vectorize_mode in plato.yaml does not fit the sim.",
        "action_mask: info   # or the key of the observation",
    ),
    (
        "action-range",
        "warning",
        "An action's bounds are so wide that exploring them is hopeless (-1..1 is scaled to them).",
        "self.action_space = gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)   # the range that matters",
    ),
    (
        "action-unbounded",
        "note",
        "An action has no bound, so training does not know how large a typical one is.",
        "action_scale: 2.0   # in plato.yaml: how large a typical action is",
    ),
    (
        "reset-seed",
        "error",
        "reset() takes no `seed`.",
        """\
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)   # makes self.np_random""",
    ),
    (
        "reset-options",
        "error",
        "reset() takes no `options`.",
        """\
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)""",
    ),
    ("reset-return", "error", "reset() does not return (observation, info).", "return obs, {}"),
    (
        "step-return",
        "error",
        "step() does not return (observation, reward, terminated, truncated, info).",
        "return obs, reward, terminated, truncated, {}",
    ),
    ("info-type", "error", "`info` is not a dict.", "return obs, reward, terminated, truncated, {}"),
    (
        "info-unpicklable",
        "error",
        "What reset() or step() returns cannot be sent from a sim's own process to the trainer.",
        "info = {'level': float(level)}   # plain numbers, text and arrays only",
    ),
    (
        "reward-type",
        "error",
        "The reward is not one number.",
        "return obs, float(reward), terminated, truncated, info",
    ),
    (
        "reward-not-finite",
        "error",
        "The reward is NaN or infinite.",
        "terminated = terminated or not np.isfinite(reward)   # and give a finite reward for it",
    ),
    (
        "flag-type",
        "warning",
        "terminated or truncated is not a bool.",
        "return obs, reward, bool(terminated), bool(truncated), info",
    ),
    # --- observations
    (
        "observation-structure",
        "error",
        "The observation does not have the keys, parts or kind of value that its space has.",
        "return {'level': ..., 'flow': ...}, ...   # exactly the keys of observation_space",
    ),
    (
        "observation-type",
        "warning",
        "A list or number where the space has an array. It is converted at each step.",
        "obs = np.array(obs, dtype=self.observation_space.dtype)",
    ),
    (
        "observation-dtype",
        "warning",
        "Another dtype than the space says. It is converted at each step.",
        "obs = np.array(obs, dtype=self.observation_space.dtype)",
    ),
    (
        "observation-dtype-changes",
        "warning",
        "reset() and step() return different dtypes.",
        "obs = np.array(obs, dtype=self.observation_space.dtype)   # in one method, used by reset and step",
    ),
    (
        "observation-shape",
        "error",
        "Another shape than the space says.",
        "self.observation_space = gymnasium.spaces.Box(low, high, shape=obs.shape, dtype=np.float32)",
    ),
    (
        "observation-bounds",
        "warning",
        "Values outside the bounds of the space were visited. For a choice (Discrete ...) an error.",
        "self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape)   # or the true bounds",
    ),
    (
        "observation-not-finite",
        "error",
        "NaN or infinity in an observation: the network would be destroyed by it.",
        "if not np.isfinite(obs).all():\n    ...   # find the division by zero; end the episode before it",
    ),
    (
        "observation-refused",
        "error",
        "The observation cannot be encoded for the network.",
        "assert self.observation_space.contains(obs), obs   # at the end of step(), until it is quiet",
    ),
    (
        "observation-empty",
        "warning",
        "There is nothing in the observation: the agent acts blindly, the same at every step.",
        "self.observation_space = gymnasium.spaces.Box(low, high, shape=(n,))   # what the choice depends on",
    ),
    (
        "picture-flattened",
        "note",
        "An array like a picture, learned as plain numbers: a picture has two sides of 8 or more, and at most 16 "
        "channels, fewer than either side.",
        "frame_stack: 4   # in plato.yaml, for pictures over time; several at once: a Dict with one for each",
    ),
    (
        "observation-reused",
        "warning",
        "An array that was returned earlier is changed by a later call: what was recorded changes with it.",
        "return self.state.copy(), reward, terminated, truncated, info",
    ),
    (
        "observation-constant",
        "warning",
        "Part of the observation never changed: it tells the agent nothing, or was forgotten.",
        "Leave it out, or update it in step().",
    ),
    # --- episodes and rewards
    (
        "time-limit-terminated",
        "warning",
        "Episodes seem to end by a time limit, reported as terminated: as if nothing came after.",
        "truncated = self.num_steps >= self.max_steps   # and terminated for real ends only",
    ),
    (
        "never-ends",
        "warning",
        "No episode ended by itself; training truncates after max_episode_steps.",
        "max_episode_steps: 200   # in plato.yaml: how long an episode should be",
    ),
    (
        "ends-at-once",
        "warning",
        "Every episode ends at its first step.",
        "terminated = bool(self.level > self.limit)   # look at the condition, and at what reset() sets",
    ),
    (
        "step-after-end",
        "note",
        "After the end of an episode, step() goes on as if nothing had happened. Training never asks it to.",
        None,
    ),
    (
        "reward-constant",
        "warning",
        "The reward never changed under random actions: there is nothing to learn from yet.",
        "reward = -abs(self.level - self.target)   # a reward that also tells when it gets better",
    ),
    (
        "reward-scale",
        "warning",
        "Rewards are so large or so small that learning rates and losses do not fit.",
        "reward = reward / 1000.0   # so that the return of an episode is between 1 and 1,000 or so",
    ),
    (
        "mask-invalid",
        "error",
        "An action mask of another shape, or one that allows nothing.",
        "mask[0] = 1   # at least one action must be allowed at every step",
    ),
    # --- seeds
    (
        "unseeded",
        "warning",
        "The same seed and the same actions give different episodes: no run can be repeated.",
        """\
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.level = self.np_random.uniform(0.0, 1.0)   # self.np_random, nothing else""",
    ),
    (
        "global-random",
        "warning",
        "The sim draws from the global generators of numpy or Python, which all sims of a process share.",
        "self.np_random.uniform(...)   # instead of np.random or random; super().reset(seed=seed) makes it",
    ),
    (
        "start-repeats",
        "warning",
        "reset() without a seed always gives the same start, so that training sees only that one.",
        "super().reset(seed=seed)   # and self.np_random: a new seed only when one is given",
    ),
    ("seed-no-effect", "note", "Every seed gives the same episode: the sim is deterministic.", None),
    # --- many sims, for long
    (
        "second-instance",
        "error",
        "A second sim cannot be made while the first lives. Training makes several.",
        "port = 0   # let the system choose ports and file names",
    ),
    (
        "shared-state",
        "warning",
        "Two sims in one process disturb each other.",
        "self.state = ...   # in __init__ or reset(), not on the class or the module",
    ),
    ("close-fails", "warning", "close() raises.", "def close(self):\n    ..."),
    (
        "leaks",
        "warning",
        "Memory grows with every reset.",
        "self.history.clear()   # in reset(); find what grows with tracemalloc",
    ),
    (
        "prints",
        "warning",
        "The sim prints at every step. It is kept away from the progress display, but it costs time.",
        "logging.getLogger(__name__).debug(...)   # instead of print(...)",
    ),
    ("warns", "note", "The sim's code emits Python warnings.", None),
    # --- speed and fit
    (
        "slow",
        "note",
        "The sim is slow enough that more processes pay off.",
        "env_runners: {num_env_runners: auto}   # in plato.yaml: one process per CPU",
    ),
    ("speed", "note", "Steps per second and the time of a reset, as measured.", None),
    (
        "resources",
        "error",
        "More CPUs, GPUs or memory for replay are asked for than this machine has (a warning when there are backends).",
        "env_runners: {num_env_runners: auto}",
    ),
    (
        "rllib-algorithm",
        "error",
        "RLlib has no such algorithm, it does not fit here (DreamerV3), or the project's own function fails.",
        "algorithm: PPO",
    ),
    (
        "rllib-key",
        "error",
        "A key in a section that RLlib's method of that name does not take.",
        "training: {lr: 3e-4}",
    ),
    (
        "rllib-value",
        "error",
        "A value that cannot be, that RLlib refuses, or that is missing: BC, MARWIL, CQL and IQL need `offline_data`.",
        "training: {lr: 3e-4}",
    ),
    ("not-finished", "note", "Some checks were left out because the sim was too slow or had failed.", None),
    ("mapping", "note", "How observations and actions are learned from, leaf by leaf.", None),
)
"""Every finding there can be, by id, in the order in which findings are listed."""
