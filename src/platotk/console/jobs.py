"""Jobs: where one was sent, how it stands, how to come back to it. What a job prints goes through as it is."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ..formats import plato_command, shown
from .basics import note
from .people import next_step, people, say
from .streams import answer, tell

if TYPE_CHECKING:
    from ..run import Run


def output(text: str) -> None:
    """What a job printed, to stdout, as it is."""
    answer(text)


def output_to_people(text: str) -> None:
    """What a job printed, to stderr, as it is; stdout is kept for the answer."""
    tell(text)


def submitted(run: Run) -> None:
    """Where a run went."""
    out, job = people(), run.info["jobs"][-1]
    say(out, f"{run.name} runs on {job['backend']} as job {job['id']}", "bold")
    studio(run)
    say(out, f"  follow  {_command('logs', run)} -f")
    say(out, f"  stop    {_command('stop', run)}")


def studio(run: Run) -> None:
    """Where the last job of a run is to be seen in a browser; nothing where it is not."""
    for job in (run.info.get("jobs") or [])[-1:]:
        url = job.get("details", {}).get("studio_url")
        if url:
            say(people(), f"  studio  {url}")


def job_state(state: Any) -> None:
    """A change of status worth a line: why it waits."""
    if state.message and not state.status.has_ended:
        note(f"{state.status}: {state.message}")


def job_ended(run: Run, state: Any) -> None:
    """How it ended, and what to do next."""
    out = people()
    words = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped", "FAILED": "failed"}[str(state.status)]
    why = f": {state.message}" if state.message else ""
    say(out, f"The job {words}{why}", "bold")
    say(out, f"  run    {shown(run.path)}")
    if run.best is not None:
        say(out, f"  best   {shown(run.best)}")
    if str(state.status) == "STOPPED":
        what = run.info["jobs"][-1].get("what") or "train"
        next_step(out, run.project.root, f"{what} --resume {shlex.quote(run.name)} --on {run.info['backend']}")
    elif str(state.status) == "SUCCEEDED" and run.info["jobs"][-1].get("what") != "assess":
        next_step(out, run.project.root, f"assess {shlex.quote(run.name)}")


def detached(run: Run) -> None:
    """After Ctrl-C: the job goes on."""
    out = people()
    say(out, "")
    say(out, "The job goes on. Come back with:", "bold")
    say(out, f"  {_command('logs', run)} -f")
    say(out, f"or stop it with:  {_command('stop', run)}")


def _command(word: str, run: Run) -> str:
    return f"{plato_command()} {word} {shlex.quote(run.name)}"
