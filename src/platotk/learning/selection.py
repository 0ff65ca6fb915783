"""Which checkpoint is the best one.

A checkpoint plays 20 seeded episodes, acting greedily, where that costs under a tenth of the run; otherwise the
windowed training return decides. `best.json` says which of the two it was. The training return lags behind (it
averages over policies of many iterations, with exploration noise), so playing is worth its price.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        self._allowance = Allowance()
        self._has_told = False

    def consider(self, algo: Any, iteration: int, line: Mapping[str, Any], *, is_last: bool) -> None:
        """Judge the checkpoint of this iteration; make it the best when it is."""
        path = self._run.path / "checkpoints" / f"{iteration:06d}"
        seconds = self._allowance.seconds(is_last=is_last)
        judged = Judged(line["return_mean"], None if seconds is None else self._play(path, seconds))
        if judged.evaluation is not None:
            value, episodes = judged.evaluation, NUM_EPISODES
            self._run.add_evaluation(iteration, env_steps=line["env_steps"], return_mean=value, episodes=episodes)
            self._tell({"event": "evaluation", "iteration": iteration, "return_mean": value, "episodes": episodes})
        best = checkpoints.best(self._run.path)
        if judged.value is None or not (best is None or judged.beats(self._judged(best))):
            return
        by, episodes = ("training", 0) if judged.evaluation is None else ("evaluation", NUM_EPISODES)
        checkpoints.set_best(self._run.path, path, judged.value, by, episodes)

    def _judged(self, best: Mapping[str, Any]) -> Judged:
        """How the best checkpoint so far was judged, in both ways where it was."""
        iteration = int(Path(best["checkpoint"]).name)
        trained = {line["iteration"]: line["return_mean"] for line in self._run.metrics()}
        return Judged(trained.get(iteration), best["return_mean"] if best["by"] == "evaluation" else None)

    def protected(self) -> set[Path]:
        """Checkpoints that must not be cleared away."""
        best = self._run.best
        return set() if best is None else {best}

    def close(self) -> None:
        """Close the sims."""
        for sim in self._sims:
            sim.close()

    def _play(self, path: Path, seconds: float) -> float | None:
        """The mean return of the checkpoint over 20 episodes; None when they take longer than that."""
        from .greedy import greedy
        from .policies import open_policy

        began = time.monotonic()
        # As it will act: within its guards.
        policy = guard_policy(greedy(open_policy(path, self._adapter)), self._run.project)
        if not self._sims:
            self._sims = make_sims(self._run, NUM_SIMS)
        episodes = play(
            policy,
            self._sims,
            # The same starts for every checkpoint of a run, and not those of `plato assess`.
            starts(NUM_EPISODES, int(self._run.info.get("seed") or 0)),
            mask_from_info=self._adapter.mask_source == "info",
            time_limit_s=seconds,
        )
        self._allowance.spend(time.monotonic() - began, len(episodes) / NUM_EPISODES)
        if len(episodes) == NUM_EPISODES:
            return statistics.fmean(episode.return_ for episode in episodes)
        if not self._has_told:
            self._has_told = True
            text = (
                f"{NUM_EPISODES} evaluation episodes take over {MAX_SHARE:.0%} of the run so far: until they do not, "
            )
            self._tell({"event": "note", "text": f"{text}the best checkpoint is chosen by the training return"})
        return None


@dataclass(frozen=True)
class Judged:
    """What is known of a checkpoint: its windowed training return, and its mean over evaluation episodes."""

    training: float | None
    evaluation: float | None

    @property
    def value(self) -> float | None:
        """The one that counts."""
        return self.training if self.evaluation is None else self.evaluation

    def beats(self, older: Judged) -> bool:
        """Whether it is at least as good, by what both have; where they have nothing in common, the newer one is."""
        for ours, theirs in ((self.evaluation, older.evaluation), (self.training, older.training)):
            if ours is not None and theirs is not None:
                return ours >= theirs
        return self.value is not None


class Allowance:
    """The time that checkpoints may play: a tenth of the run so far, and 2 s in any case.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._spent_s = self._needed_s = 0.0

    def seconds(self, *, is_last: bool) -> float | None:
        """How long the next checkpoint may take; None when it is known to take longer.

        Args:
            is_last: The run is over: what earlier ones took does not count, so that it is seldom left unplayed.
        """
        allowed = max(MIN_BUDGET_S, MAX_SHARE * (self._clock() - self._began))
        left = allowed if is_last else allowed - self._spent_s
        return left if left > 0.0 and left >= self._needed_s else None

    def spend(self, seconds: float, share: float) -> None:
        """So many were taken, for this share of the episodes."""
        self._spent_s += seconds
        self._needed_s = seconds / max(share, 1.0 / NUM_EPISODES)
