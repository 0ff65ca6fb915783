"""Learning curves: what a run achieved, as figures and as one page that opens offline in any browser.

`write_curves` draws one run, or several over each other, from their folders alone; `summary` and `compare`
give the same figures as plain data. The page holds its charts (Vega-Lite, written with Altair), the library
that draws them, and nothing from elsewhere: its own Content-Security-Policy forbids it.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import journal
from ..errors import PlatoError, missing_extra
from ..formats import duration, finite, number
from ..run import BROKEN, Run
from .curve_rows import curve_rows, evaluation_rows
from .mlflow_limits import flat
from .right_size import usage_of

PAGE = "curves.html"
"""The page with a run's learning curve, in its folder."""
NUM_COLOURS = 8
"""Of the page's style, one a run, then again from the first."""
MAX_ROWS = 8000
"""Of all runs together; each gets its share, 1,000 at the most."""
NOT_COMPARED = ("name", "tracking", "backends")
"""Sections that do not change what is learned."""


def write_curves(runs: Sequence[Run], path: Path | str) -> Path:
    """Write one self-contained HTML page with the runs' learning curves.

    Args:
        runs: One run or more; each may have no iterations yet.
        path: The file, replaced as a whole when it is there.

    Returns:
        The file.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
        PlatoError: No run is given.
    """
    if not runs:
        raise PlatoError("there is no run to draw.")
    from .curve_charts import charts, library

    names = _names(runs)
    share = max(100, min(1000, MAX_ROWS // len(runs)))
    curves = [row for name, run in zip(names, runs, strict=True) for row in curve_rows(name, run, share)]
    evaluations = [row for name, run in zip(names, runs, strict=True) for row in evaluation_rows(name, run)]
    colours = [f"var(--c{at % NUM_COLOURS})" for at in range(len(runs))]
    time_unit = _in_time_unit([*curves, *evaluations])
    try:
        drawn = charts(names, num_rows=len(curves), time_unit=time_unit) if curves else {}
        bundle = library() if curves else ""
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from None
    page = {"charts": drawn, "rows": {"curves": curves, "evaluations": evaluations}}
    body = _one(runs[0], evaluations) if len(runs) == 1 else _several(runs, names, colours)
    body += _charts_html(runs, names, colours, curves, evaluations) + _about(runs, names)
    text = files("platotk").joinpath("templates/curves.html").read_text(encoding="utf-8")
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    text = text.replace("@@title@@", html.escape(title)).replace("@@body@@", body)
    data = json.dumps(finite(page), separators=(",", ":")).replace("<", "\\u003c")
    text = text.replace("@@bundle@@", bundle).replace("@@page@@", data)
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path


def summary(run: Run) -> dict[str, Any]:
    """What there is to say about a run, as plain data; of a broken one only what is wrong with it."""
    try:
        info = run.info
    except PlatoError as error:
        return {"run": run.name, "path": str(run.path), "status": BROKEN, "problem": error.message}
    last: Mapping[str, Any] = journal.last(run.metrics_path) or {}
    best = best_of(run)
    time_s, env_steps = last.get("time_s"), last.get("env_steps")
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "reason": info.get("reason"),
        "error": info.get("error"),
        "algorithm": info.get("algorithm"),
        "engine": info.get("engine"),
        "engine_reason": info.get("engine_reason"),
        "seed": info.get("seed"),
        "created": info.get("created"),
        "started": info.get("started"),
        "ended": info.get("ended"),
        "attempt": info.get("attempt"),
        "iteration": last.get("iteration", 0),
        "env_steps": env_steps or 0,
        "episodes": last.get("episodes", 0),
        "time_s": time_s or 0.0,
        "env_steps_per_s": round(env_steps / time_s, 1) if time_s and env_steps else None,
        "return_mean": last.get("return_mean"),
        "best_return": best.get("return_mean"),
        "best_checkpoint": best.get("checkpoint"),
        "best_by": best.get("by"),
        "episode_length_mean": last.get("episode_length_mean"),
        "sim_failures": last.get("sim_failures", 0),
    }


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run: its figures, and by dotted key whatever differs between their configurations."""
    rows = []
    configs = [_config(run) for run in runs]
    keys = sorted({key for config in configs for key in config})
    differing = [key for key in keys if len({json.dumps(c.get(key), sort_keys=True) for c in configs}) > 1]
    for run, config in zip(runs, configs, strict=True):
        figures = summary(run)
        dropped = ("reason", "error", "started", "ended", "attempt", "engine_reason")
        rows.append(
            {key: value for key, value in figures.items() if key not in dropped}
            | {key: config.get(key) for key in differing if key not in figures}
        )
    return rows


def best_of(run: Run) -> dict[str, Any]:
    """What best.json says; the best training return where no checkpoint has been judged yet."""
    try:
        best = json.loads((run.path / "best.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        best = None
    if isinstance(best, dict):
        return best
    returns = [line["return_mean"] for line in run.metrics() if line.get("return_mean") is not None]
    return {"return_mean": max(returns), "by": "training"} if returns else {}


def _config(run: Run) -> dict[str, Any]:
    """The resolved project and what it ran with, flat by dotted key."""
    try:
        config = run.project.to_dict()
        info = run.info
    except PlatoError:
        return {}
    told = {key: value for key, value in config.items() if key not in NOT_COMPARED}
    git = info.get("git") or {}
    return dict(
        flat(
            {
                **told,
                "versions": info.get("versions") or {},
                "git": {"commit": (git.get("commit") or "")[:10]},
            }
        )
    )


def _in_time_unit(rows: Sequence[dict[str, Any]]) -> str:
    """Turn the rows' seconds into what suits the longest time; the unit's name."""
    longest = max((row["time"] for row in rows if row["time"] is not None), default=0.0)
    unit, size = next(
        (u, s) for u, s in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if longest >= 3 * s or s == 1
    )
    for row in rows:
        row["time"] = None if row["time"] is None else round(row["time"] / size, 5)
    return unit


def _names(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart; by path where two folders have the same one."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _one(run: Run, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The head of a page about one run."""
    figures = summary(run)
    facts = [
        figures.get("algorithm"),
        None if figures.get("seed") is None else f"seed {figures['seed']}",
        _when(figures.get("created")),
        figures.get("reason"),
    ]
    text = (
        f'<header><div class="head"><h1>{_safe(run.name)}</h1>{_chip(figures["status"])}</div>'
        f"<p>{' · '.join(_safe(fact) for fact in facts if fact)}</p></header>"
    )
    problem = figures.get("error") or figures.get("problem")
    if problem:
        text += f'<div class="card error" style="margin-top:16px">{_safe(problem)}</div>'
    if figures["status"] == BROKEN:
        return text
    how = {"evaluation": "best return, evaluated", "training": "best return, in training"}
    tiles = [
        (how.get(figures["best_by"], "best return"), number(figures["best_return"])),
        ("last return", number(figures["return_mean"])),
        ("env steps", number(figures["env_steps"])),
        ("training time", duration(figures["time_s"])),
        ("env steps/s", number(figures["env_steps_per_s"] and round(figures["env_steps_per_s"]))),
        ("episodes", number(figures["episodes"])),
    ]
    if used := usage_of(run):
        tiles.append((f"of {number(used['cpus'])} CPUs busy", f"{used['cpu_percent']:.0f} %"))
    if figures["sim_failures"]:
        tiles.append(("sim failures", number(figures["sim_failures"])))
    return text + _tiles(tiles)


def _several(runs: Sequence[Run], names: Sequence[str], colours: Sequence[str]) -> str:
    """The head of a page that compares: a table with a row for each run."""
    rows = compare(runs)
    first = {
        "status": "status",
        "algorithm": "algorithm",
        "best_return": "best return",
        "return_mean": "last return",
        "env_steps": "env steps",
        "time_s": "time",
        "env_steps_per_s": "env steps/s",
    }
    known = set(summary(runs[0])) | {"problem"}
    differing = list(dict.fromkeys(key for row in rows for key in row if key not in known or key == "seed"))
    head = "".join(f"<th>{_safe(title)}</th>" for title in ("run", *first.values(), *differing))
    body = ""
    for row, name, colour in zip(rows, names, colours, strict=True):
        cells = [_cell(key, row.get(key)) for key in (*first, *differing)]
        body += f'<tr><td class="swatch" style="--c:{colour}">{_safe(name)}</td>{"".join(cells)}</tr>'
    return (
        f"<header><h1>{len(runs)} runs compared</h1></header>"
        f'<div class="card scroll" style="margin-top:16px"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _charts_html(
    runs: Sequence[Run],
    names: Sequence[str],
    colours: Sequence[str],
    curves: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
) -> str:
    """Where the charts go; a line of words where there is nothing to draw."""
    if not curves:
        return '<div class="card empty">No iteration has been journalled yet.</div>'
    buttons = [
        ("env_steps", "Env steps", "true"),
        ("time", "Time", "false"),
        ("iteration", "Iterations", "false"),
    ]
    switch = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{pressed}">{title}</button>'
        for axis, title, pressed in buttons
    )
    if len(runs) == 1:
        keys = '<span><i></i>mean return</span><span><i class="band"></i>lowest to highest</span>'
    else:
        keys = "".join(
            f'<button type="button" data-run="{_safe(name)}" aria-pressed="true" style="--c:{colour}">'
            f"<i></i>{_safe(name)}</button>"
            for name, colour in zip(names, colours, strict=True)
        )
    if any(not row["is_best"] for row in evaluations):
        keys += '<span><i class="dot"></i>evaluation</span>'
    if any(row["is_best"] for row in evaluations):
        keys += '<span><i class="best"></i>best checkpoint</span>'
    note = ""
    if all(row["mean"] is None for row in curves):
        note = '<div class="empty">No episode has ended yet, so there is no return to draw.</div>'
    return (
        f'<section class="card"><div class="bar"><div class="keys">{keys}</div>'
        f'<div class="switch" role="group" aria-label="Horizontal axis">{switch}</div></div>'
        f'{note}<div class="chart" id="returns"></div></section>'
        '<div class="pair"><section class="card"><h2>Episode length, steps</h2>'
        '<div class="chart" id="lengths"></div></section>'
        '<section class="card"><h2>Env steps per second</h2>'
        '<div class="chart" id="rates"></div></section></div>'
    )


def _about(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Where each run comes from, folded away."""
    text = ""
    for run, name in zip(runs, names, strict=True):
        try:
            info = run.info
        except PlatoError:
            continue
        git = info.get("git") or {}
        dirty = " (with uncommitted changes)" if git.get("dirty") else ""
        rows = {
            "folder": str(run.path),
            "command": " ".join(map(str, info.get("command") or [])),
            "git": f"{git.get('branch')} {str(git.get('commit'))[:10]}{dirty}" if git else None,
            "versions": ", ".join(f"{key} {value}" for key, value in (info.get("versions") or {}).items()),
            "attempts": info.get("attempt"),
            "backend": info.get("backend"),
            "spaces": "\n".join(info.get("mapping") or []),
        }
        table = "".join(
            f"<tr><th>{key}</th><td>{_safe(value).replace(chr(10), '<br>')}</td></tr>"
            for key, value in rows.items()
            if value
        )
        project = run.path / "plato.yaml"
        source = project.read_text(encoding="utf-8", errors="replace") if project.is_file() else ""
        which = "this run" if len(runs) == 1 else _safe(name)
        text += (
            f'<details class="card"><summary>Where {which} comes from, and its plato.yaml</summary>'
            f"<table>{table}</table><pre>{_safe(source)}</pre></details>"
        )
    return text + f"<footer>Drawn {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC.</footer>"


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f'<div class="tile"><b>{_safe(value)}</b><span>{_safe(name)}</span></div>' for name, value in tiles)
    return f'<div class="tiles">{inner}</div>'


def _cell(key: str, value: Any) -> str:
    if key == "status":
        return f"<td>{_chip(str(value))}</td>"
    if key == "time_s" and value is not None:
        return f"<td>{_safe(duration(value))}</td>"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"<td>{_safe(number(round(value) if key == 'env_steps_per_s' else value))}</td>"
    return f"<td>{_safe('-' if value is None else value)}</td>"


def _chip(status: str) -> str:
    return f'<span class="chip {_safe(status)}">{_safe(status)}</span>'


def _when(moment: str | None) -> str | None:
    if not moment:
        return None
    return f"{datetime.fromisoformat(moment.replace('Z', '+00:00')):%Y-%m-%d %H:%M} UTC"


def _safe(value: Any) -> str:
    return html.escape(str(value), quote=True)
