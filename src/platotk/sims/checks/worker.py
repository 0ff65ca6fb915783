"""The process in which a sim is checked: it may hang, crash or exit here without harm.

Started by watching.py as `python -m platotk.sims.checks.worker EVENTS MEMORY STACK` with a pickled
`Request` on standard input. It writes one JSON object per line to the file descriptor EVENTS, its progress
to the shared memory of MEMORY, and its Python stack to STACK when it dies or is asked to.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from . import opening, playing, repeating
from .places import is_users, shown
from .playing import Failed
from .trial import PROGRESS_SIZE, RAISED, Request, Trial

# Shares of the time budget; together below one, for what a phase begins it also ends.
_SHARES = {"steps": 0.3, "after-end": 0.1, "seeding": 0.2, "instances": 0.15, "memory": 0.05}


def run(request: Request, events: int, memory: int, stack: int) -> None:
    """Run all phases and tell about them through the file descriptor `events`."""
    with mmap.mmap(memory, PROGRESS_SIZE) as shared, open(stack, "w", closefd=False) as stack_file:
        faulthandler.enable(stack_file, all_threads=False)
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, stack_file, all_threads=False)

        def tell(event: dict[str, Any]) -> None:
            text = json.dumps(event, default=str) + "\n"
            data = text.encode()
            while data:
                data = data[os.write(events, data) :]

        trial = Trial(request, shared, tell)
        heard = _hear_warnings(trial)
        with contextlib.suppress(opening.Stop):
            _run_phases(request, trial)
        for (message, place), number in heard.items():
            often = f" ({number:,} times)" if number > 1 else ""
            trial.found("warns", message + often, where=place)
        tell({"done": True})


def _run_phases(request: Request, trial: Trial) -> None:
    opened: list[tuple[str, Callable[[Trial], None]]] = [
        ("load", opening.load),
        ("construct", opening.construct),
        ("api", opening.api),
    ]
    for name, function in opened:
        trial.tell({"phase": name})
        function(trial)
    _adopt_mask(trial)
    if trial.adapter is not None:
        for line in [*trial.adapter.describe(), *opening.unit_lines(trial)]:
            trial.found("mapping", line)
    phases: dict[str, Callable[[float], None]] = {
        "steps": lambda budget_s: _steps(request, trial, budget_s),
        "after-end": lambda budget_s: repeating.after_end(trial, budget_s),
        "seeding": lambda budget_s: repeating.seeding(trial, budget_s),
        "instances": lambda budget_s: repeating.instances(trial, budget_s),
        "memory": lambda budget_s: repeating.memory(trial, budget_s),
    }
    for name in request.phases:
        trial.tell({"phase": name})
        try:
            if trial.sim is None or request.last_step is not None:
                trial.sim = trial.make()  # a fresh one where an old one may hang or die at a certain age
            phases[name](request.budget_s * _SHARES[name])
        except Failed:
            pass
        except RAISED as error:
            trial.raised(name, error)
        trial.report_counted(only_new=name != "steps")


def _adopt_mask(trial: Trial) -> None:
    """One reset, to see whether `info` holds an action mask."""
    trial.tell({"phase": "first-reset"})
    try:
        _, info = playing.reset(trial, trial.sim, seed=0)
        opening.adopt_mask(trial, info)
    except Failed:
        trial.sim = None  # to be made anew
    if "steps" not in trial.request.phases:
        trial.report_counted()


def _steps(request: Request, trial: Trial, budget_s: float) -> None:
    number = request.num_steps if request.last_step is None else min(request.num_steps, request.last_step)
    began = time.perf_counter()
    trial.num_steps, trial.step_s, trial.reset_s = 0, 0.0, []
    played = playing.play(trial, num_steps=number, budget_s=budget_s)
    resets = sorted(trial.reset_s)
    trial.tell(
        {
            "measured": {
                "steps_per_s": trial.num_steps / trial.step_s if trial.step_s else None,
                "reset_ms": resets[len(resets) // 2] * 1e3 if resets else None,
                "num_steps": trial.num_steps,
                "num_resets": len(resets),
                "num_episodes": len(played.episodes),
                "is_cut": played.is_cut,
                "seconds": time.perf_counter() - began,
            }
        }
    )


def _hear_warnings(trial: Trial) -> dict[tuple[str, str], int]:
    """Collect the Python warnings of the user's own code instead of printing them."""
    heard: dict[tuple[str, str], int] = {}

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if is_users(filename):
            place = f"{shown(filename, trial.request.spec.root)}:{lineno}"
            key = (f"{category.__name__}: {message}", place)
            heard[key] = heard.get(key, 0) + 1

    warnings.simplefilter("default")
    warnings.showwarning = show  # type: ignore[assignment]
    return heard


def main() -> None:
    """Read the request from standard input and run it."""
    import pickle

    events, memory, stack = (int(text) for text in sys.argv[1:4])
    request = pickle.loads(sys.stdin.buffer.read())
    # A sim that reads standard input finds it empty.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    run(request, events, memory, stack)


if __name__ == "__main__":
    main()
