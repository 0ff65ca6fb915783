"""A trained policy, restored from a checkpoint, acting through RLlib's own inference path.

The module and both connector pipelines are the ones RLlib saved; nothing is re-implemented here, so that whatever was
trained (filters, memory, a user's own connectors and RLModule) acts as it was trained. Opening a checkpoint unpickles
it: open only those from people you trust.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gymnasium import Space

from ..agents.policy import BatchSession
from ..errors import AgentError, CheckpointError, PlatoError
from ..run import Run
from ..sims.importing import import_from_root
from ..spaces import Adapter
from ..spaces.frames import Frames
from . import checkpoints
from .cluster import quiet_rllib

# An episode object keeps every step; only the memory of the last few is needed to act.
MAX_EPISODE_ROWS = 64


def load_policy(run: Run, checkpoint: str | int | Path = "best") -> RLlibPolicy:
    """The policy of a run's checkpoint.

    Args:
        run: The run.
        checkpoint: "best" (the last one when none is best yet), "last", an iteration, or a folder.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    path = find_checkpoint(run, checkpoint)
    problems = checkpoints.verify(path)
    if problems:
        raise CheckpointError(
            f"{path} is damaged: {problems[0]}",
            hint="Name another one with: --checkpoint last, or an iteration.",
        )
    _import_own_modules(run)
    return open_policy(path, Adapter.from_json(run.info["adapter"]))


def open_policy(path: Path, adapter: Adapter) -> RLlibPolicy:
    """The policy of one checkpoint folder, without looking at its manifest (training has just written it)."""
    from ray.rllib.connectors.env_to_module import EnvToModulePipeline
    from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
    from ray.rllib.core.rl_module.rl_module import RLModule

    quiet_rllib()
    saved = path / "rllib"
    env_runner = saved / "env_runner" if (saved / "env_runner").is_dir() else saved
    try:
        module = RLModule.from_checkpoint(saved / "learner_group" / "learner" / "rl_module" / "default_policy")
        if (env_runner / "env_to_module_connector").is_dir():
            env_to_module = EnvToModulePipeline.from_checkpoint(env_runner / "env_to_module_connector")
            module_to_env = ModuleToEnvPipeline.from_checkpoint(env_runner / "module_to_env_connector")
        else:
            env_to_module, module_to_env = _built_pipelines(saved)
    except ImportError as error:
        raise CheckpointError(
            f"{path} cannot be opened: {error}",
            hint="A class that it was trained with is not where it was: bring the file back beside plato.yaml.",
        ) from error
    except (OSError, EOFError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be opened: {error}", hint="See the run's checkpoints/ folder.") from error
    freeze_filters(env_to_module)
    return RLlibPolicy(adapter, module, env_to_module, module_to_env)


def _import_own_modules(run: Run) -> None:
    """A checkpoint names the user's own classes (an RLModule) by their module, which must be found here too."""
    try:
        project = run.project
    except PlatoError:
        return  # made in Python of objects that no file can hold; they are here, or unpickling says what is missing
    target = project.algorithm
    if isinstance(target, str) and ":" in target:
        import_from_root(target.partition(":")[0], project.root)


def _built_pipelines(saved: Path) -> tuple[Any, Any]:
    """The pipelines of an algorithm that learns offline: without env runners, its checkpoint holds none.

    They are built from the config that it holds, as RLlib builds them for an env runner.
    """
    from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

    learner = pickle.loads((saved / "learner_group" / "learner" / "class_and_ctor_args.pkl").read_bytes())
    config = learner["ctor_args_and_kwargs"][1]["config"]
    spaces = {INPUT_ENV_SINGLE_SPACES: (config.observation_space, config.action_space)}
    return config.build_env_to_module_connector(spaces=spaces), config.build_module_to_env_connector(spaces=spaces)


def freeze_filters(env_to_module: Any) -> None:
    """Stop observation filters from learning on: RLlib restores them with `_update_stats` on."""
    for piece in env_to_module.connectors:
        if hasattr(piece, "_update_stats"):
            piece._update_stats = False


class RLlibPolicy:
    """A module between RLlib's two connector pipelines, speaking the sim's own spaces; acts greedily."""

    def __init__(self, adapter: Adapter, module: Any, env_to_module: Any, module_to_env: Any) -> None:
        self.adapter = adapter
        self.module = module
        self.env_to_module = env_to_module
        self.module_to_env = module_to_env

    @property
    def observation_space(self) -> Space[Any]:
        """The sim's own observation space."""
        return self.adapter.observation_space

    @property
    def action_space(self) -> Space[Any]:
        """The sim's own action space."""
        return self.adapter.action_space

    @property
    def has_memory(self) -> bool:
        """Whether an action depends on more than the last observation."""
        return self.adapter.frame_stack > 1 or bool(self.module.is_stateful())

    def act(self, obs: Any, *, mask: Any = None) -> Any:
        """The best action for one observation.

        Raises:
            AgentError: The policy has memory, so that one observation is not enough.
            SimError: The observation does not fit the space.
        """
        self._needs_no_memory("act")
        return self.session().act(obs, mask=mask)

    def act_batch(self, observations: Sequence[Any], *, masks: Sequence[Any] | None = None) -> list[Any]:
        """The best action for each of several independent observations."""
        self._needs_no_memory("act_batch")
        actions = self.sessions(len(observations)).act(
            dict(enumerate(observations)), masks=None if masks is None else dict(enumerate(masks))
        )
        return [actions[row] for row in range(len(observations))]

    def session(self) -> RLlibSession:
        """A conversation with one sim, with its own memory."""
        return RLlibSession(self.sessions(1))

    def sessions(self, num_rows: int) -> BatchSession:
        """Several conversations, one forward pass for all."""
        return RLlibSessions(self, num_rows)

    def _needs_no_memory(self, call: str) -> None:
        if self.has_memory:
            raise AgentError(
                f"this policy has memory, so {call}() on a single observation would forget what came before.",
                hint="Use: session = policy.session(); session.act(obs); session.reset() at each new episode.",
            )


class RLlibSession:
    """One episode at a time."""

    def __init__(self, rows: BatchSession) -> None:
        self._rows = rows

    def act(self, obs: Any, *, mask: Any = None) -> Any:
        """The best action for the next observation."""
        return self._rows.act({0: obs}, masks={0: mask})[0]

    def reset(self) -> None:
        """Begin a new episode."""
        self._rows.reset(0)


class RLlibSessions:
    """Rows of episodes that act together through RLlib's pipelines."""

    def __init__(self, policy: RLlibPolicy, num_rows: int) -> None:
        self._policy = policy
        self._episodes: list[Any] = [None] * num_rows
        self._pending: list[Any] = [None] * num_rows
        self._frames = Frames(policy.adapter.frame_stack, num_rows)

    def reset(self, row: int) -> None:
        """The row's next observation begins an episode."""
        self._episodes[row] = self._pending[row] = None
        self._frames.reset(row)

    def act(self, observations: Mapping[int, Any], *, masks: Mapping[int, Any] | None = None) -> dict[int, Any]:
        """The best action for each row that has an observation."""
        import torch
        from ray.rllib.core.columns import Columns
        from ray.rllib.utils.spaces.space_utils import unbatch

        policy, rows = self._policy, list(observations)
        if not rows:
            return {}
        # Encode all before any episode grows: a refused observation leaves every row as it was.
        encoded = {row: policy.adapter.encode(observations[row], (masks or {}).get(row)) for row in rows}
        for row in rows:
            self._observe(row, self._seen(row, encoded[row]))
        episodes = [self._episodes[row] for row in rows]
        shared: dict[str, Any] = {}
        with torch.inference_mode():
            to_module = policy.env_to_module(
                rl_module=policy.module, episodes=episodes, batch={}, explore=False, shared_data=shared
            )
            to_env = policy.module.forward_inference(to_module)
            if Columns.ACTION_DIST_INPUTS in to_env:
                # Of no use here, and RLlib's own fails for actions of numbers and choices that differ in width.
                inputs = to_env[Columns.ACTION_DIST_INPUTS]
                to_env.setdefault(Columns.ACTION_LOGP, inputs.new_zeros(inputs.shape[:-1]))
            to_env = policy.module_to_env(
                rl_module=policy.module, batch=to_env, episodes=episodes, explore=False, shared_data=shared
            )
        actions = to_env.pop(Columns.ACTIONS)
        for_env = to_env.pop(Columns.ACTIONS_FOR_ENV, actions)
        for index, (row, action) in enumerate(zip(rows, unbatch(actions), strict=True)):
            self._pending[row] = (action, {key: value[index] for key, value in to_env.items()})
        decoded = policy.adapter.decode_batch(for_env if isinstance(for_env, dict) else list(for_env))
        return dict(zip(rows, decoded, strict=True))

    def _seen(self, row: int, encoded: Any) -> Any:
        """What the network sees of an observation: with a frame stack, those before it as well."""
        if self._policy.adapter.frame_stack == 1:
            return encoded
        if not isinstance(encoded, dict):
            return self._frames.push(encoded[None], [row])[0]
        stacked = self._frames.push({key: part[None] for key, part in encoded.items()}, [row])
        return {key: part[0] for key, part in stacked.items()}

    def _observe(self, row: int, encoded: Any) -> None:
        """Append an observation to the row's episode; RLlib's connectors read everything from there."""
        from ray.rllib.env.single_agent_episode import SingleAgentEpisode

        episode = self._episodes[row]
        if episode is None:
            adapter = self._policy.adapter
            episode = self._episodes[row] = SingleAgentEpisode(
                observation_space=adapter.encoded_observation_space, action_space=adapter.encoded_action_space
            )
            episode.add_env_reset(observation=encoded)
            return
        action, extras = self._pending[row]
        episode.add_env_step(observation=encoded, action=action, reward=0.0, extra_model_outputs=extras)
        if len(episode) >= MAX_EPISODE_ROWS:
            self._episodes[row] = episode.cut(len_lookback_buffer=1)


def find_checkpoint(run: Run, checkpoint: str | int | Path) -> Path:
    """The folder of "best", "last" or an iteration; a path is taken as it is.

    Raises:
        CheckpointError: The run has none, or not that one.
    """
    if isinstance(checkpoint, Path):
        return checkpoint
    if checkpoint in ("best", "last"):
        newest, _ = checkpoints.newest_valid(run.path)
        path = (run.best or newest) if checkpoint == "best" else newest
        if path is None:
            raise CheckpointError(
                f"run {run.name} has no checkpoint yet.",
                hint="Train it on with: plato train --resume " + run.name,
            )
        return path
    try:
        path = run.path / "checkpoints" / f"{int(checkpoint):06d}"
    except ValueError:
        raise CheckpointError(f"no checkpoint {checkpoint!r}.", hint="Say best, last, or an iteration.") from None
    if not path.is_dir():
        there = sorted(int(entry.name) for entry in (run.path / "checkpoints").glob("[0-9]*"))
        raise CheckpointError(
            f"run {run.name} has no checkpoint of iteration {checkpoint}.",
            hint=f"It has: {', '.join(map(str, there)) or 'none'}; or say best or last.",
        )
    return path
