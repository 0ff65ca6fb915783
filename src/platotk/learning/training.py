"""`train`: from a project to a run with a trained policy, in this process.

One loop around RLlib's `Algorithm.train()`: each iteration becomes a journal line, every few become a checkpoint that
is there whole or not at all, and the best checkpoint is chosen by playing episodes with it. Ctrl-C and SIGTERM stop at
the next consistent point; `resume` goes on exactly there.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import Any

from ..errors import PlatoError, SimError
from ..journal import Journal
from ..process_lock import this_process
from ..project import Project
from ..run import Run
from ..spaces import space_to_json
from . import checkpoints, local
from .cluster import RayStart, refuse_at_once
from .engine.used import EngineUsed, engine_used
from .failures import SimFailures, reason_of
from .patience import Patience, lost_runners
from .preparation import Setup, Tell, open_run, prepare
from .selection import Selection
from .stopping import Interrupts, StopRequested, StopRules
from .supervisor import Heartbeat
from .tracking import Trackers
from .usage import Usage


def train(
    project: Project | None = None,
    *,
    run: Run | Path | str | None = None,
    resume: Run | Path | str | None = None,
    runs_dir: Path | str | None = None,
    on_event: Tell | None = None,
) -> Run:
    """Train a project until one of its stop rules is met.

    Args:
        project: What to train. May be left out with `resume`, which then uses the run's own.
        run: A folder that is created, or continued when it is a run already; repeating the call is always safe.
        resume: A run to continue; its name, a unique prefix, its folder or "last".
        runs_dir: Where new runs go; default: `runs/` beside plato.yaml.
        on_event: Called with what happens, as dicts (`{"event": "iteration", ...}`).

    Returns:
        The run; `run.status` is "finished", or "stopped" when it was asked to stop (continue with `resume`).

    Raises:
        ProjectError, SimError, CheckpointError: See their messages. The sim's own exceptions pass through.
    """
    tell = on_event or (lambda event: None)
    heartbeat = Heartbeat()
    opened = open_run(project, run, resume, runs_dir)
    refuse_at_once(opened[0])
    # Where only the config tells, the processes wait for it: most need none.
    with RayStart(with_processes=local.may_be_local(opened[0]) is False) as ray_start:
        setup = prepare(opened, runs_dir, ray_start, tell)
        heartbeat.say(run=str(setup.run.path))
        with setup.run.lock():
            _record(setup, tell)
            return _Loop(setup, tell).play()


def _record(setup: Setup, tell: Tell) -> None:
    """Write down what was settled, once the run is held by this process alone."""
    run, adapter = setup.run, setup.adapter
    run.update(
        attempt=setup.attempt,
        algorithm=setup.algorithm,
        mapping=adapter.describe(),
        spaces={
            "observation": space_to_json(adapter.observation_space),
            "action": space_to_json(adapter.action_space),
        },
        adapter=adapter.to_json(),
        own_process=setup.own_process,
        seed=setup.project.seed,
    )
    tell({"event": "run", "run": run.name, "path": str(run.path), "attempt": setup.attempt})


class _Loop:
    """The iterations of one attempt."""

    def __init__(self, setup: Setup, tell: Tell) -> None:
        self.setup, self.tell = setup, tell
        self.project, self.run = setup.project, setup.run
        self.journal = Journal(self.run.metrics_path)
        stop = self.project.stop
        self.rules = StopRules(
            iterations=stop.iterations,
            env_steps=stop.env_steps,
            return_mean=stop.return_mean,
            time_s=stop.time_s,
            plateau=stop.plateau,
        )
        self.iteration = self.env_steps = self.saved_at = 0
        self.time_s = 0.0
        self.steps_before = 0
        self.line: dict[str, Any] | None = None
        self.algo: Any = None
        self.usage: Usage | None = None
        self.is_learning = False
        self.has_told_not_kept = False
        self.failures = SimFailures(tell)
        self.engine: EngineUsed | None = None

    def play(self) -> Run:
        """Build, restore, iterate, and leave the run in a state that tells what happened."""
        trackers = Trackers(self.project, self.run, self.tell)
        status, reason, error = "failed", None, None
        self.run.update(status="running", started=_now(), ended=None, reason=None, error=None, process=this_process())
        try:
            with Interrupts(self.project.checkpoint.grace_s) as interrupts:
                self.algo = local.build_algo(self.setup.config)
                self._restore()
                trackers.start()
                is_alone = local.is_local(self.setup.config) and "RAY_ADDRESS" not in os.environ
                self.usage = Usage(with_cluster=not is_alone)
                self._watch_learning(interrupts)
                status, reason = self._iterate(interrupts, trackers)
        except BaseException as raised:
            told = _told(raised)
            error = "".join(traceback.format_exception_only(type(told), told)).strip()
            self._save_what_there_is()
            if told is raised:
                raise
            raise told from None
        finally:
            if status != "failed":
                self.failures.end(lambda: reason_of(self.algo))
            failure = self.failures.last or self.run.info.get("last_sim_failure")
            self.run.update(status=status, ended=_now(), reason=reason, error=error, last_sim_failure=failure)
            trackers.finish(status)
            if self.usage is not None:
                self.usage.close()
            if self.algo is not None:
                self.algo.stop()
        self.tell(
            {
                "event": "finished",
                "status": status,
                "reason": reason,
                "run": self.run.name,
                "path": str(self.run.path),
                "best": None if self.run.best is None else str(self.run.best),
            }
        )
        return self.run

    def _restore(self) -> None:
        """Go on from the newest checkpoint that is whole; later journal lines are set aside."""
        path, damaged = checkpoints.newest_valid(self.run.path)
        for where, why in damaged:
            self.tell(
                {
                    "event": "warning",
                    "text": f"checkpoint {where.name} is damaged ({why}); going back further",
                }
            )
        if path is None:
            self.journal.discard_after(0)
            return
        extra = checkpoints.restore(self.algo, path)
        self.iteration = self.saved_at = int(extra["iteration"])
        self.env_steps, self.time_s = int(extra["env_steps"]), float(extra["time_s"])
        self.journal.discard_after(self.iteration)
        for line in self.run.metrics():
            self.rules.add(line)
            self.line = line
        if self.line is not None:
            self.failures = SimFailures(self.tell, int(self.line.get("sim_failures") or 0))
        for note in extra.get("notes", []):
            self.tell({"event": "warning", "text": note})
        self.tell(
            {
                "event": "note",
                "text": f"going on from iteration {self.iteration} ({self.env_steps:,} env steps)",
            }
        )

    def _watch_learning(self, interrupts: Interrupts) -> None:
        """Mark where sampling ends and learning begins: from there on, an iteration is finished before stopping."""
        group = getattr(self.algo, "learner_group", None)
        if group is None:
            return
        update = group.update

        def marked(*args: Any, **kwargs: Any) -> Any:
            interrupts.learning()
            self.is_learning = True
            return update(*args, **kwargs)

        group.update = marked

    def _iterate(self, interrupts: Interrupts, trackers: Trackers) -> tuple[str, str | None]:
        selection = Selection(self.setup.run, self.setup.adapter, self.tell)
        patience = Patience(self.setup.patience_s)
        started = time.monotonic() - self.time_s
        try:
            reason = self._already_done()
            while reason is None:
                began = time.monotonic()
                try:
                    with interrupts.sampling():
                        result = self.algo.train()
                    self.is_learning = False
                except StopRequested:
                    break
                now = time.monotonic()
                num_restarts, num_away = lost_runners(self.algo)
                if not self._take_in(result, duration_s=now - began, time_s=now - started):
                    if why := patience.starved(num_restarts, num_away):
                        hint = f"See {self.run.log_path} and Ray's logs; check the sim with: plato check"
                        raise SimError(f"{why}.", hint=hint)
                    continue
                patience.fed(num_restarts)
                assert self.line is not None
                self.failures.count(self.line["sim_failures"], lambda: reason_of(self.algo))
                self.journal.append(self.line)
                trackers.log(self.line)
                reason = self.rules.add(self.line)
                self.tell({"event": "iteration", **self.line, "progress": self.rules.progress(self.line)})
                if reason is not None or self.iteration % self.project.checkpoint.every == 0 or interrupts.is_requested:
                    self._save()
                    if not interrupts.is_requested:
                        selection.consider(self.algo, self.iteration, self.line, is_last=reason is not None)
                    checkpoints.retain(self.run.path, self.project.checkpoint.keep, protect=selection.protected())
                if interrupts.is_requested:
                    break
            if reason is not None:
                return "finished", reason
            self.tell({"event": "stopping", "signal": interrupts.signal_name})
            self._save()
            return "stopped", interrupts.signal_name
        finally:
            selection.close()

    def _already_done(self) -> str | None:
        """A resumed run may have met a stop rule already."""
        if self.line is None:
            return None
        return self.rules.add(self.line)

    def _take_in(self, result: dict[str, Any], *, duration_s: float, time_s: float) -> bool:
        """Turn RLlib's result into the next journal line; False when nothing was sampled."""
        from .results import journal_line, lifetime_env_steps, num_skipped_updates

        if skipped := num_skipped_updates(result):
            text = f"{skipped} minibatches had gradients that are not finite and were left out: is the reward bounded?"
            self.tell({"event": "warning", "text": text})
        lifetime = lifetime_env_steps(result)
        env_steps = self.steps_before + lifetime
        if self.line is not None and self.steps_before == 0 and lifetime <= self.env_steps:
            # RLlib's own count began anew with this attempt.
            self.steps_before = self.env_steps
            env_steps = self.env_steps + lifetime
        if env_steps <= self.env_steps:
            return False
        self.iteration, self.env_steps = self.iteration + 1, env_steps
        self.time_s = time_s
        self.line = journal_line(
            result,
            iteration=self.iteration,
            env_steps=env_steps,
            time_s=self.time_s,
            duration_s=duration_s,
            attempt=self.setup.attempt,
            cluster=None if self.usage is None else self.usage.take(),
        )
        self._note_engine()
        return True

    def _note_engine(self) -> None:
        """Write down what learns, until that is settled: the kernel comes once it is compiled, or not at all."""
        if self.engine is not None and self.engine.is_settled:
            return
        used = engine_used(self.algo)
        if used != self.engine:
            self.run.update(engine=used.engine, engine_reason=used.reason)
        if used.note and self.algo.config.algo_class.__name__ == "PPO":
            self.tell({"event": "note", "text": used.note})
        self.engine = used

    def _save(self) -> None:
        if self.iteration == self.saved_at:
            return
        extra = {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "time_s": self.time_s,
            "attempt": self.setup.attempt,
            "return_mean": None if self.line is None else self.line["return_mean"],
        }
        path = checkpoints.save(self.algo, self.run.path, self.iteration, extra=extra)
        self.saved_at = self.iteration
        self.tell({"event": "checkpoint", "iteration": self.iteration, "path": str(path)})
        for note in checkpoints.read_extra(path).get("not_kept", []) if not self.has_told_not_kept else []:
            self.tell({"event": "warning", "text": note})
            self.has_told_not_kept = True

    def _save_what_there_is(self) -> None:
        """After an error: keep the iterations that were journalled, unless the learner is between two states."""
        if self.algo is None or self.is_learning:
            return
        try:
            self._save()
        except Exception as error:
            self.tell({"event": "warning", "text": f"the last iterations could not be saved: {error}"})


def _told(error: BaseException) -> BaseException:
    """Our own error inside RLlib's: it wraps what a sim raises in a bare RuntimeError."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, PlatoError):
            return inner
        inner = inner.__cause__
    return error


def _now() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="seconds")
