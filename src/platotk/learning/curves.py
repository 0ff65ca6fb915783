"""Learning curves: one page that opens offline, and the figures of runs for `show` and `compare`.

Given runs, `write_curves` writes a single HTML file with everything inside (Vega-Lite, bundled by vl-convert): the mean
return over environment steps with its range and the evaluated checkpoints, episode length, and speed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PlatoError, missing_extra
from ..run import Run

MAX_POINTS = 1000
"""Per run; longer journals are thinned evenly, first and last kept."""
WIDTH, HEIGHT, SMALL_HEIGHT = 820, 320, 130
STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --paper: #ffffff; --line: #dfe5eb; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #f4f6f8; margin: 0; padding: 2rem 1rem; }
main { max-width: 940px; margin: 0 auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
       padding: 1.5rem 2rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } p.note { color: var(--soft); margin: .25rem 0 1rem; }
table { border-collapse: collapse; margin: 0 0 1.25rem; font-size: .9rem; } td, th { text-align: left; padding: .15rem 1.4rem .15rem 0; }
th { color: var(--soft); font-weight: 500; } .vega-embed { width: 100%; overflow-x: auto; }
"""


def write_curves(runs: Sequence[Run], path: Path) -> Path | None:
    """Write the page.

    Args:
        runs: One run, or several to compare.
        path: The HTML file.

    Returns:
        The file, or None when no run has an iteration yet.

    Raises:
        MissingExtraError: altair is not installed.
    """
    rows = [row for run in runs for row in _rows(run)]
    if not rows:
        return None
    try:
        import altair  # noqa: F401 - asked for before anything is written
        import vl_convert
    except ImportError as error:
        raise missing_extra("altair", "train") from error
    spec = _chart(rows, [row for run in runs for row in _evaluations(run)], len(runs) > 1)
    # Bundled and offline: the page asks nobody for anything.
    bundle = vl_convert.javascript_bundle(_script(spec), vl_version=_vega_lite_version(spec))
    page = _page(" · ".join(run.name for run in runs), _header(runs), bundle)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def summary(run: Run) -> dict[str, Any]:
    """The figures of one run; a folder that cannot be read says so under `status`."""
    try:
        info, lines, status = run.info, run.metrics(), run.status
    except PlatoError as error:
        return {"run": run.name, "path": str(run.path), "status": "broken", "reason": error.message}
    last = lines[-1] if lines else {}
    best = _best(run)
    return {
        "run": run.name,
        "path": str(run.path),
        "status": status,
        "reason": info.get("reason") or info.get("error"),
        "algorithm": info.get("algorithm"),
        "seed": info.get("seed"),
        "attempt": info.get("attempt"),
        "created": info.get("created"),
        "iteration": last.get("iteration", 0),
        "env_steps": last.get("env_steps", 0),
        "time_s": last.get("time_s"),
        "env_steps_per_s": last.get("env_steps_per_s"),
        "return_mean": last.get("return_mean"),
        "best_return_mean": best.get("return_mean"),
        "best_checkpoint": best.get("checkpoint"),
        "best_by": best.get("by"),
        "episodes": last.get("episodes"),
        "sim_failures": last.get("sim_failures"),
        "spaces": info.get("mapping"),
        "git": (info.get("git") or {}).get("commit"),
        "versions": info.get("versions"),
    }


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run: its figures, then the keys of plato.yaml in which the runs differ."""
    settings = [_flat(run.project.to_dict()) for run in runs]
    keys = sorted({key for one in settings for key in one if len({json.dumps(s.get(key), default=str) for s in settings}) > 1})
    skip = ("spaces", "git", "versions", "reason")
    return [
        {**{key: value for key, value in summary(run).items() if key not in skip}, **{key: one.get(key) for key in keys}}
        for run, one in zip(runs, settings, strict=True)
    ]


def _rows(run: Run) -> list[dict[str, Any]]:
    lines = run.metrics()
    step = max(1, -(-len(lines) // MAX_POINTS))
    kept = lines[::step]
    if lines and kept[-1] is not lines[-1]:
        kept.append(lines[-1])
    keys = ("iteration", "env_steps", "time_s", "return_mean", "return_min", "return_max", "episode_length_mean", "env_steps_per_s")
    return [{"run": run.name, **{key: line.get(key) for key in keys}} for line in kept]


def _evaluations(run: Run) -> list[dict[str, Any]]:
    """The checkpoints whose mean return was measured by playing, the best one marked."""
    best = _best(run)
    steps = {line["iteration"]: line["env_steps"] for line in run.metrics()}
    if best.get("by") != "evaluation" or int(best["checkpoint"]) not in steps:
        return []
    return [{"run": run.name, "env_steps": steps[int(best["checkpoint"])], "return_mean": best["return_mean"]}]


def _best(run: Run) -> dict[str, Any]:
    try:
        best = json.loads((run.path / "best.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return best if isinstance(best, dict) else {}


def _chart(rows: list[dict[str, Any]], evaluations: list[dict[str, Any]], is_comparison: bool) -> dict[str, Any]:
    """Three charts over the same environment steps, as Vega-Lite."""
    import altair as alt

    x = alt.X("env_steps:Q", title="environment steps", axis=alt.Axis(format="~s"))
    legend = alt.Legend(orient="top", title=None, labelLimit=400) if is_comparison else None
    color = alt.Color("run:N", legend=legend, scale=alt.Scale(scheme="tableau10"))
    tooltip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("iteration:Q"),
        alt.Tooltip("env_steps:Q", format=","),
        alt.Tooltip("return_mean:Q", format=".4~g"),
        alt.Tooltip("time_s:Q", title="seconds", format=".1f"),
    ]
    data = alt.Data(values=rows)
    base = alt.Chart(data).encode(x=x, color=color)
    y = alt.Y("return_mean:Q", title="return", scale=alt.Scale(zero=False))
    layers = [
        base.mark_area(opacity=0.13).encode(y=alt.Y("return_min:Q", title="return"), y2="return_max:Q"),
        base.mark_line(strokeWidth=2.2).encode(y=y),
        base.mark_circle(size=26, opacity=0.001).encode(y=y, tooltip=tooltip),
    ]
    if evaluations:
        best = alt.Chart(alt.Data(values=evaluations)).encode(x=x, y=y)
        layers.append(best.mark_point(shape="diamond", size=130, filled=True, color="#d1495b"))
        layers.append(
            best.mark_text(dy=-14, color="#d1495b", fontWeight=600).encode(text=alt.Text("return_mean:Q", format=".4~g"))
        )
    returns = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title="Mean return, its range, and the best checkpoint")
    small = [
        base.mark_line(strokeWidth=1.8)
        .encode(y=alt.Y(f"{key}:Q", title=title, axis=alt.Axis(format="~s")))
        .properties(width=WIDTH, height=SMALL_HEIGHT)
        for key, title in (("episode_length_mean", "episode length"), ("env_steps_per_s", "steps per second"))
    ]
    chart = alt.vconcat(returns, *small).resolve_scale(color="shared").configure_view(strokeWidth=0)
    chart = chart.configure_axis(gridColor="#e8edf2", domainColor="#b8c4cf", tickColor="#b8c4cf", labelColor="#5b6b7b")
    spec: dict[str, Any] = chart.to_dict()
    return spec


def _script(spec: Mapping[str, Any]) -> str:
    return f"vegaEmbed('#curves', {json.dumps(spec)}, {{actions: false, renderer: 'svg'}});"


def _vega_lite_version(spec: Mapping[str, Any]) -> str:
    """The version that altair wrote for, e.g. "5.20", from its $schema URL."""
    return ".".join(spec["$schema"].rsplit("/", 1)[-1].removesuffix(".json").lstrip("v").split(".")[:2])


def _page(title: str, header: str, script: str) -> str:
    # A "</script" inside the bundle would end the element early.
    safe = script.replace("</script", "<\\/script")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body><main><h1>{html.escape(title)}</h1>\n{header}\n"
        f"<div id='curves'></div></main>\n<script>{safe}</script></body></html>\n"
    )


def _header(runs: Sequence[Run]) -> str:
    rows = [summary(run) for run in runs]
    columns = ("status", "algorithm", "seed", "env_steps", "time_s", "return_mean", "best_return_mean", "best_checkpoint")
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in ("run", *columns))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(row.get(key)))}</td>" for key in ("run", *columns)) + "</tr>" for row in rows
    )
    versions = rows[0].get("versions") or {}
    note = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"<p class='note'>{html.escape(note)}</p>\n<table><tr>{head}</tr>{body}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
