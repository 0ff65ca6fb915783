"""What a training went through that lost its machine now and then."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..formats import number
from .people import next_step, people, places, say

if TYPE_CHECKING:
    from ..compute.eviction import Simulation


def evicted(done: Simulation) -> None:
    """How often, what was done again, whether the count is right, and where the run is."""
    out, run = people(), done.run
    last = (run.metrics() or [{}])[-1]
    times = len(done.evictions)
    say(out, f"Evicted {times} time{'s' * (times != 1)}: {_outcome(done)}", "bold")
    for one in done.evictions:
        told = f"{one.when}, at iteration {one.reached}; went on from {one.resumed_from}"
        say(out, f"  {told}: {one.again} done again")
    say(out, f"  iterations   {number(last.get('iteration', 0))}, {done.again} of them done again")
    say(out, f"  env steps    {number(last.get('env_steps', 0))}, {_count(done)}")
    say(out, f"  return       {number(last.get('return_mean'))}")
    for problem in done.problems[:5]:
        say(out, f"  {problem}", "red")
    if times < done.asked and done.exit_code == 0:
        say(out, f"  Training was over before the machine could vanish {done.asked} times.", "yellow")
        say(out, "  Let it go on for longer (stop:), or save more often (checkpoint: {every: 1}).")
    places(out, run, None)
    if done.exit_code == 0:
        next_step(out, run.project.root, f"assess {shlex.quote(run.name)}")
    else:
        next_step(out, run.project.root, f"train --resume {shlex.quote(run.name)}")


def _outcome(done: Simulation) -> str:
    words = {0: "training finished all the same", 75: "training was stopped"}
    return words.get(done.exit_code, f"training failed with exit code {done.exit_code}")


def _count(done: Simulation) -> str:
    return "each counted once" if not done.problems else "NOT counted right"
