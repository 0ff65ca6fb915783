"""What each command answers to people: findings, tables of runs, an assessment, an agent.

Each function is given what the Python function of that name returned.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import ago, figure, label, number, plato_command, shown, typable
from .basics import note
from .jobs import studio
from .people import STYLES, next_step, pairs, people, places, say, styled, table, whereabouts
from .streams import tell

if TYPE_CHECKING:
    from rich.console import Console

    from ..agents.bundle import Deployment
    from ..assessment.assess import Assessment
    from ..project import Project
    from ..run import Run
    from ..sims.checks import Finding


def started(folder: Path, files: Sequence[Path]) -> None:
    """What `init` wrote, and how to go on."""
    out = people()
    for path in files:
        say(out, f"wrote {shown(path)}")
    sims = [path for path in files if path.name == "sim.py"]
    next_step(out, folder, "check", lead=f"Look into {shown(sims[0])}, then:" if sims else "Next:")


def findings(found: Sequence[Finding], project: Project) -> None:
    """Errors first, each finding with its place and its cure as code."""
    out = people()
    finding_lines(found)
    counts = {severity: sum(item.severity == severity for item in found) for severity in STYLES}
    told = [f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items() if count]
    say(out, f"{project.name}: {', '.join(told) or 'nothing found'}.", "bold")
    if counts["error"]:
        next_step(out, project.root, "check", lead="Cure the errors, then check again:")
    else:
        next_step(out, project.root, "train")


def finding_lines(found: Sequence[Finding]) -> None:
    """Errors first, each finding with its place and its cure; those of one place under one head."""
    out = people()
    head = None
    for finding in sorted(found, key=lambda item: list(STYLES).index(item.severity)):
        if head != (head := (finding.severity, finding.id, finding.where)):
            _head(out, finding)
        for line in finding.message.splitlines():
            say(out, f"  {typable(line)}")
        for line in (finding.cure or "").splitlines():
            say(out, f"    {line}", "green")


def runs(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """A table of runs."""
    out = people()
    if not rows:
        say(out, f"No runs in {shown(folder)} yet.")
        return next_step(out, folder.parent, "train")
    has_jobs = any("job_status" in row for row in rows)
    grid = table("run", "status", *["job"] * has_jobs, "when", "algorithm", "iterations", "env steps", "return")
    for row in rows:
        grid.add_row(
            str(row["run"]),
            _status(row["status"]),
            *[_job_status(row)] * has_jobs,
            ago(row.get("created")),
            str(row.get("algorithm") or ""),
            number(row.get("iteration")),
            number(row.get("env_steps")),
            number(row.get("return_mean")),
        )
    out.print(grid)
    next_step(
        out,
        folder.parent,
        f"show {shlex.quote(str(rows[0]['run']))}",
        lead="A learning curve, as a page to open:",
    )


def run(found: Run, summary: Mapping[str, Any], page: Path | None) -> None:
    """One run: its figures and where everything is."""
    out = people()
    say(out, found.name, "bold")
    # `usage` says in a line what these figures mean.
    pairs(out, summary, skip=("run", "path", "versions", "nodes", "cpus", "cpu_percent", "memory_percent"))
    places(out, found, page)
    studio(found)


def compared(rows: Sequence[Mapping[str, Any]], page: Path | None) -> None:
    """Runs side by side: a column for each, a line for each figure in which one of them has something."""
    out = people()
    grid = table("", *(str(row["run"]) for row in rows))
    for key in dict.fromkeys(key for row in rows for key in row if key not in ("run", "path")):
        values = [row.get(key) for row in rows]
        if any(value not in (None, "", [], {}) for value in values):
            grid.add_row(label(key), *(figure(key, value) for value in values))
    out.print(grid)
    if page is not None:
        say(out, f"  curves  {shown(page)}")


def assessed(assessment: Assessment, run: Run | None) -> None:
    """The figures of an assessment; of a run: and how to export it."""
    out = people()
    summary = assessment.summary()
    pairs(out, {**summary, "guards": _guards(summary.get("guards"))})
    if assessment.path is not None:
        say(out, f"  kept in  {shown(assessment.path)}")
    if run is not None:
        root, named = whereabouts(run)
        next_step(out, root, f"export {shlex.quote(named)}")


def _guards(report: Mapping[str, Any] | None) -> list[str]:
    """What guards did, a line each."""
    if report is None:
        return []
    lines = [f"{report['guarded']:,} of {report['actions']:,} actions"]
    return lines + [f"{one['guard']} {one['leaf']}: {one['count']:,}" for one in report["did"]]


def exporting(event: Mapping[str, Any]) -> None:
    """A line for each step of an export."""
    steps = {
        "recording": f"Recording {number(event.get('rows'))} observations and what the trained policy does",
        "tracing": "Tracing the policy to ONNX",
        "verifying": "Verifying that the agent does the same",
    }
    note(steps.get(event["step"], event["step"]))


def exported(
    folder: Path,
    run: Run,
    manifest: Mapping[str, Any],
    num_bytes: int,
    example: str | None,
    *,
    archive: Path | None = None,
) -> None:
    """Where the agent is, how equal it is, and an observation to try next."""
    out = people()
    say(out, "Exported", "bold")
    say(out, f"  agent   {shown(folder)}  ({_size(num_bytes)}, checkpoint {manifest['provenance']['checkpoint']})")
    if archive is not None:
        say(out, f"  zip     {shown(archive)}  ({_size(archive.stat().st_size)})")
    say(out, f"  parity  {_parity(manifest['parity'])}")
    root, _ = whereabouts(run)
    next_step(out, root, "verify" if example is None else f"act {shlex.quote(example)}")


def deployed(made: Deployment, *, dry_run: bool) -> None:
    """What was written, or would be, and the commands that start it."""
    out = people()
    size = _size(sum(made.files.values()))
    say(out, "Would write" if dry_run else "Wrote", "bold")
    say(out, f"  {shown(made.path)}  ({len(made.files)} files, {size})")
    if dry_run:
        for name, num_bytes in made.files.items():
            say(out, f"    {name}  {_size(num_bytes)}")
        for name, text in made.texts.items():
            say(out, f"  --- {name}", "bold")
            for line in text.splitlines():
                say(out, f"    {line}")
    if made.is_built:
        say(out, f"  built  {made.tag}")
    say(out, "Start it with:")
    for command in [f"cd {shlex.quote(str(made.path))}", *(made.commands[1:] if made.is_built else made.commands)]:
        say(out, f"  {command}")
    if made.tag:
        say(out, "The key comes from your environment: export PLATO_SERVE_KEY=$(openssl rand -hex 24)")


def verified(folder: Path, proof: Mapping[str, Any]) -> None:
    """The outcome of a replay."""
    out = people()
    say(out, f"  agent   {shown(folder)}")
    say(out, f"  parity  {_parity(proof)}", None if proof["is_equal"] else "bold red")


def agent(folder: Path, manifest: Mapping[str, Any], num_bytes: int) -> None:
    """What an agent says of itself.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It says less than every agent does.
    """
    out = people()
    came, state = manifest["provenance"], manifest["model"]["state"]
    name, told = (
        str(manifest["name"]),
        {
            "algorithm": manifest["algorithm"],
            "created": manifest["created"],
            "from run": came["run"],
            "checkpoint": came["checkpoint"],
            "commit": (came.get("git") or {}).get("commit"),
            "versions": "  ".join(f"{name} {version}" for name, version in (came.get("versions") or {}).items()),
            "spaces": manifest["mapping"],
            "units": _units(manifest.get("units") or {}),
            "memory": ", ".join(f"{entry['input']} {entry['shape']}" for entry in state),
            "guards": [f"{key}: {_plain(value)}" for key, value in (manifest.get("guard") or {}).items()],
            **(manifest["metrics"] or {}),
            "assessed": _assessed(manifest.get("assessment")),
            "parity": _parity(manifest["parity"]),
            "files": "  ".join(f"{name} {_size(entry['bytes'])}" for name, entry in manifest["files"].items()),
            "size": _size(num_bytes),
        },
    )
    say(out, name, "bold")
    pairs(out, told)
    say(out, f"  agent  {shown(folder)}")


def acting(path: Path, has_memory: bool, *, run: Run | None = None) -> None:
    """Who answers, in one line: plain, because loading rich would take longer than the answer."""
    if run is None:
        line = f"answered by the agent {shown(path)}"
    else:
        line = (
            f"answered by checkpoint {path.name} of {run.name}; an exported agent is faster: {plato_command()} export"
        )
    tell(line + (", as the first step of an episode" if has_memory else "") + "\n")


def _head(out: Console, finding: Finding) -> None:
    head = styled(f"{finding.severity}  ", STYLES[finding.severity]) + styled(finding.id, "bold")
    if finding.where:
        head += styled(f"  {finding.where}", "dim")
    out.print(head, soft_wrap=True)


def _plain(value: Any) -> str:
    """A setting as it would stand in plato.yaml, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return json.dumps(value) if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _units(units: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Whose numbers are measured in what, a line for each side."""
    told = {side: [f"{name} in {unit}" for name, unit in found.items()] for side, found in units.items()}
    return [f"{side}: {', '.join(leaves)}" for side, leaves in told.items() if leaves]


def _parity(proof: Mapping[str, Any]) -> str:
    """One line on how equal an agent and its training are."""
    verdict = "equal" if proof["is_equal"] else "NOT equal"
    return (
        f"{verdict}: {number(proof['num_rows'])} observations, {number(proof['num_mismatches'])} other choices, "
        f"{number(proof['num_undecided'])} where it was undecided, largest error {proof['max_error']:.1g} of the range"
    )


def _size(num_bytes: int) -> str:
    """Bytes for people: `118 kB`."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1_000_000 else f"{max(1, round(num_bytes / 1000))} kB"


def _assessed(summary: Mapping[str, Any] | None) -> str:
    if not summary:
        return ""
    spread = f" +- {number(summary['return_std'])}" if summary.get("return_std") is not None else ""
    return f"return {number(summary['return_mean'])}{spread} over {number(summary['episodes'])} episodes"


def _job_status(row: Mapping[str, Any]) -> str:
    if "job_status" not in row:
        return ""
    waits = row["job_status"] == "PENDING" and row.get("job_message")
    return f"{row['backend']}: {row['job_status']}" + (f" ({row['job_message']})" if waits else "")


def _status(status: str) -> Any:
    styles = {"running": "cyan", "finished": "green", "stopped": "yellow"}
    return styled(status, styles.get(status, "red" if status in ("failed", "interrupted") else None))
