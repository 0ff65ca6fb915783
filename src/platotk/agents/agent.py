"""`Agent`: a trained policy that runs where Ray does not.

Given the folder that `plato export` wrote, it gives back actions in the sim's own space. numpy, gymnasium's spaces and
onnxruntime are all it needs; nothing in the folder is ever executed as code. The same adapter that encoded
observations in training encodes them here, so that both see the same numbers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gymnasium import Space

from ..errors import AgentError, ProjectError, SimError
from ..spaces import Adapter, columns_of, rows_of
from .acting import AgentSession, AgentSessions, Network, as_feeds
from .archive import is_archive
from .guarded import GuardedPolicy, GuardedSession, GuardedSessions
from .guards import Guards
from .inference import open_model, read_state
from .manifest import read_manifest
from .model_file import inspect_model
from .parity import Verification, compare
from .recorded import Row, read_rows
from .units import checked_units


class Agent:
    """A verified, loaded agent; made by `Agent.load`.

    Attributes:
        path: The folder it was loaded from.
        manifest: What it says of itself: algorithm, provenance, metrics.
        adapter: Encodes observations and decodes actions.
        guards: What it may not do, or None; they are around every method but `verify`.
        units: What its numbers are measured in: `agent.units["observation"]["level"]`; both sides are there.
        controllers: Whether a fallback controller may be imported; see `load`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], files: Mapping[str, bytes]) -> None:
        self.path = path
        self.manifest = manifest
        try:
            self.adapter = Adapter.from_json(manifest["adapter"])
            outputs = [str(name) for name in manifest["model"]["outputs"]]
            state = read_state(manifest["model"]["state"])
            guard = manifest.get("guard")
            self.guards = Guards(guard, self.adapter) if guard else None
            self.units = checked_units(manifest.get("units"), self.adapter)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SimError, ProjectError) as error:
            raise AgentError(f"{path} has an incomplete manifest: {error!r}", hint="Export the agent again.") from error
        self.controllers: bool | Path = False
        self._parity = files["parity.json"]
        run = open_model(files["policy.onnx"], self.adapter, outputs, state)
        self._network = Network(self.adapter, run, outputs, state)

    @classmethod
    def load(cls, path: Path | str, *, controllers: bool | Path | str = False) -> Agent:
        """Open an exported agent and verify every byte of it.

        Args:
            path: The folder that `plato export` wrote, or the `.zip` of `plato export --zip`.
            controllers: Whether the fallback controller that its guard names (`module:function`) may be imported when
                it acts: from Python's path, or from this folder first. Without, such an agent does not act.

        Raises:
            AgentError: Not an agent, changed since it was exported, or reaching out of its folder.
            MissingExtraError: onnxruntime is not installed.
        """
        folder = Path(path)
        if (folder / "run.json").is_file():
            raise AgentError(
                f"{folder} is a run, not an agent.", hint=f"Export it first with: plato export {folder.name}"
            )
        if not folder.is_dir() and not is_archive(folder):
            raise AgentError(f"there is no agent {folder}.", hint="Name the folder, or the .zip, that export wrote.")
        manifest, files = read_manifest(folder)
        inspect_model(files["policy.onnx"])
        agent = cls(folder, manifest, files)
        agent.controllers = Path(controllers) if isinstance(controllers, str) else controllers
        return agent

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
        return bool(self._network.state) or (self.guards is not None and self.guards.has_memory)

    @property
    def unguarded(self) -> Agent:
        """The same agent without its guards: what was trained, and what `verify` proves."""
        if self.guards is None:
            return self
        alone = copy.copy(self)
        alone.guards = None
        return alone

    @cached_property
    def guarded(self) -> GuardedPolicy | None:
        """The agent within its guards, which counts what they do; None when it has none.

        Raises:
            AgentError: The guards need a controller that may not, or cannot, be imported.
        """
        if self.guards is None:
            return None
        controller = None
        if self.guards.controller is not None:
            from .controllers import load_controller

            controller = load_controller(self.guards.controller, allowed=self.controllers, folder=self.path)
        return GuardedPolicy(self.unguarded, self.guards, controller=controller)

    def act(self, obs: Any, *, mask: Any = None, observed_at: float | None = None) -> Any:
        """The best action for one observation.

        Args:
            obs: In the sim's own space; lists for arrays are taken. A number outside the bounds of its Box is acted on,
                as in training: sims overstep them. JSON is read strictly (`spaces.from_json`, the server, `plato act`).
            mask: What the sim gives as `info["action_mask"]`; None allows everything.
            observed_at: When it was observed, in seconds since 1970, for guards; None counts as just now.

        Raises:
            AgentError: The agent has memory, so that one observation is not enough.
            SimError: A key is missing or unknown, a shape is another, a number NaN or infinite, a choice none of the
                space's; the message names the field.
        """
        if self.guards is not None and self.guarded is not None:
            return self.guarded.act(obs, mask=mask, observed_at=observed_at)
        if self._network.state:
            raise self._needs_session("act")
        return self._network.act(obs, mask)

    def act_batch(self, observations: Sequence[Any], *, masks: Sequence[Any] | None = None) -> list[Any]:
        """The best action for each of several independent observations."""
        if self.guards is not None and self.guarded is not None:
            return self.guarded.act_batch(observations, masks=masks)
        if self._network.state:
            raise self._needs_session("act_batch")
        return self._network.act_batch(observations, masks)

    def act_columns(self, columns: Any, num_rows: int, *, masks: Sequence[Any] | None = None) -> Any:
        """The same for observations as columns (see `spaces.from_json_batch`); gives the actions as columns."""
        if self.guards is not None:
            rows = rows_of(self.observation_space, columns, num_rows)
            return columns_of(self.action_space, self.act_batch(rows, masks=masks))
        if self._network.state:
            raise self._needs_session("act_columns")
        outputs = self._network.run(as_feeds(self.adapter.encode_columns(columns, num_rows, masks)))
        return self.adapter.decode_columns(self._network.action_of(outputs))[0]

    def session(self) -> AgentSession | GuardedSession:
        """A conversation with one plant or sim, with its own memory."""
        if self.guards is not None and self.guarded is not None:
            return self.guarded.session()
        return AgentSession(self._network)

    def sessions(self, num_rows: int) -> AgentSessions | GuardedSessions:
        """Several conversations that act together, one forward pass for all."""
        if self.guards is not None and self.guarded is not None:
            return self.guarded.sessions(num_rows)
        return AgentSessions(self._network, num_rows)

    def verify(self) -> Verification:
        """Replay the recorded observations and compare with what RLlib answered at the export; without guards."""
        if self.guards is not None:
            return self.unguarded.verify()
        rows = self.recorded()
        began = time.perf_counter()
        sessions = self.sessions(1)
        actions: list[Any] = []
        if self._network.state:
            for row in rows:
                if row.is_first:
                    sessions.reset(0)
                actions.append(sessions.act({0: row.observation}, masks={0: row.mask})[0])
        else:
            masks = [row.mask for row in rows] if self.adapter.mask_source == "info" else None
            actions = self.act_batch([row.observation for row in rows], masks=masks)
        seconds = time.perf_counter() - began
        expected, margins = [row.action for row in rows], [row.margin for row in rows]
        return compare(self.action_space, expected, actions, margins, seconds=seconds)

    def recorded(self, *, limit: int | None = None) -> list[Row]:
        """The rows of its recording, or the first of them.

        Raises:
            AgentError: parity.json is not what an export writes.
        """
        return read_rows(self._parity, self.adapter, limit=limit)

    def _needs_session(self, call: str) -> AgentError:
        return AgentError(
            f"this agent has memory, so {call}() on a single observation would forget what came before.",
            hint="Use: session = agent.session(); session.act(obs); session.reset() at each new episode.",
        )
