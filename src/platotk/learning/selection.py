"""Which checkpoint is the best one.

Each checkpoint plays 20 seeded episodes, acting greedily, where that costs under a tenth of the run; otherwise the
windowed training return decides. `best.json` says which of the two it was. The training return lags behind (it
averages over policies of many iterations, with exploration noise), so playing is worth its price.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..agents.guarded import guard_policy
from ..assessment.assess import make_sims
from ..assessment.episodes import play, starts
from ..run import Run
from ..sims.supervised import SupervisedSim
from ..spaces import Adapter
from . import checkpoints

NUM_EPISODES = 20
NUM_SIMS = 10
MAX_SHARE = 0.10
MIN_BUDGET_S = 2.0


class Selection:
    """Judges the checkpoints of one run.

    Args:
        run: The run.
        adapter: Its encoded spaces.
        tell: Where events go.
    """

    def __init__(self, run: Run, adapter: Adapter, tell: Callable[[dict[str, Any]], None]) -> None:
        self._run, self._adapter, self._tell = run, adapter, tell
        self._sims: list[SupervisedSim] = []
        self._has_time = True
        self._began = time.monotonic()
        self._spent_s = 0.0

    def consider(self, algo: Any, iteration: int, line: Mapping[str, Any], *, is_last: bool) -> None:
        """Judge the checkpoint of this iteration; make it the best when it is."""
        path = self._run.path / "checkpoints" / f"{iteration:06d}"
        played = self._play(path, is_last) if self._has_time else None
        if played is not None:
            value, by, episodes = played, "evaluation", NUM_EPISODES
            self._run.add_evaluation(iteration, env_steps=line["env_steps"], return_mean=played, episodes=episodes)
            self._tell({"event": "evaluation", "iteration": iteration, "return_mean": value, "episodes": episodes})
        else:
            value, by, episodes = line["return_mean"], "training", 0
        best = checkpoints.best(self._run.path)
        # Judged in two ways, two checkpoints cannot be compared: the newer one wins, as it does between equals.
        is_comparable = best is not None and best["by"] == by
        if value is not None and (best is None or not is_comparable or value >= best["return_mean"]):
            checkpoints.set_best(self._run.path, path, value, by, episodes)

    def protected(self) -> set[Path]:
        """Checkpoints that must not be cleared away."""
        best = self._run.best
        return set() if best is None else {best}

    def close(self) -> None:
        """Close the sims."""
        for sim in self._sims:
            sim.close()

    def _play(self, path: Path, is_last: bool) -> float | None:
        """The mean return of the checkpoint over 20 episodes, or None when there is not enough time for them."""
        from .policies import open_policy

        began = time.monotonic()
        budget_s = max(MIN_BUDGET_S, MAX_SHARE * (began - self._began) - self._spent_s)
        # As it will act: within its guards.
        policy = guard_policy(open_policy(path, self._adapter), self._run.project)
        if not self._sims:
            self._sims = make_sims(self._run, NUM_SIMS)
        episodes = play(
            policy,
            self._sims,
            # The same starts for every checkpoint of a run, and not those of `plato assess`.
            starts(NUM_EPISODES, int(self._run.info.get("seed") or 0)),
            mask_from_info=self._adapter.mask_source == "info",
            time_limit_s=budget_s,
        )
        self._spent_s += time.monotonic() - began
        if len(episodes) < NUM_EPISODES:
            self._has_time = False
            self._tell(
                {
                    "event": "note",
                    "text": f"{NUM_EPISODES} evaluation episodes take over {MAX_SHARE:.0%} of the run: "
                    "the best checkpoint is chosen by the training return",
                }
            )
            return None
        return statistics.fmean(episode.return_ for episode in episodes)
