"""The charts of the learning-curve page, as Vega-Lite specifications written with Altair.

`charts` gives for each chart one specification per horizontal axis, without data (the page adds its rows) and
without a style (the page has a light and a dark one). `library` gives the JavaScript that draws them.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AXES = {"env_steps": "env steps", "time": "training time", "iteration": "iterations"}
FEW = 40
"""Up to so many rows, each is marked: a line needs two points, and null returns make gaps."""


def charts(names: Sequence[str], *, num_rows: int, time_unit: str) -> dict[str, dict[str, Any]]:
    """Specifications by chart and horizontal axis.

    Args:
        names: Of the runs, as in the rows.
        num_rows: How many rows there are.
        time_unit: What their time is in, for the title.

    Returns:
        `{"returns": {"env_steps": spec, ...}, "lengths": ..., "rates": ...}`, over the data sets `curves` and
        `evaluations`.
    """
    import altair as alt

    colour = alt.Color("name:N", scale=alt.Scale(domain=list(names)), legend=None)
    is_marked = num_rows <= FEW * len(names)
    drawn: dict[str, dict[str, Any]] = {"returns": {}, "lengths": {}, "rates": {}}
    for axis, title in AXES.items():
        x = alt.X(
            f"{axis}:Q",
            title=f"{title}, {time_unit}" if axis == "time" else title,
            axis=alt.Axis(format=",~f" if axis == "time" else "~s"),
            scale=alt.Scale(nice=False, zero=False, padding=8),
        )
        drawn["returns"][axis] = _returns(x, colour, is_one=len(names) == 1, is_marked=is_marked)
        drawn["lengths"][axis] = _small(x, colour, "length", "episode length", is_marked=is_marked)
        drawn["rates"][axis] = _small(x, colour, "rate", "env steps/s", is_marked=is_marked)
    return drawn


def library() -> str:
    """Vega-Embed, Vega-Lite and Vega as one script, with the version that Altair writes for.

    Bundling takes seconds, so the script is kept in the user's cache directory.
    """
    import altair as alt

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "platotk"
    kept = cache / f"vega-lite-{version}-{importlib.metadata.version('vl-convert-python')}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except OSError:
        import vl_convert

        bundle: Any = vl_convert.javascript_bundle  # its stub asks for a snippet that it does not need
        script = str(bundle(vl_version=version))
    # Inside <script>, this would end it.
    script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, delete=False, encoding="utf-8") as draft:
            draft.write(script)
        os.replace(draft.name, kept)
    except OSError:
        pass  # no home, or no room: bundled again next time
    return script


def _returns(x: Any, colour: Any, *, is_one: bool, is_marked: bool) -> dict[str, Any]:
    """The learning curve: mean, band from lowest to highest, evaluations and the best checkpoint."""
    import altair as alt

    curves = alt.Chart(alt.NamedData("curves")).encode(x=x, color=colour)
    mean = alt.Y("mean:Q", title="return", scale=alt.Scale(zero=False))
    band = curves.mark_area(opacity=0.16 if is_one else 0.07).encode(
        y=alt.Y("min:Q", title="return", scale=alt.Scale(zero=False)), y2="max:Q"
    )
    line = curves.mark_line(strokeWidth=2, interpolate="monotone").encode(y=mean)
    hover, marks = _hover(x, curves, mean, ("min", "lowest"), ("max", "highest"), is_marked=is_marked)
    judged = alt.Chart(alt.NamedData("evaluations")).encode(
        x=x,
        y=mean,
        tooltip=[
            alt.Tooltip("name:N", title="run"),
            alt.Tooltip("iteration:Q", title="checkpoint"),
            alt.Tooltip("env_steps:Q", title="env steps", format=","),
            alt.Tooltip("mean:Q", title="return", format=",.6~g"),
            alt.Tooltip("episodes:Q", title="episodes"),
            alt.Tooltip("by:N", title="judged by"),
        ],
    )
    points = judged.mark_point(shape="diamond", filled=True, size=70, opacity=0.95).encode(color=colour)
    best = judged.transform_filter("datum.is_best")
    ring = best.mark_point(shape="circle", size=230, strokeWidth=2.5, filled=False).encode(color=colour)
    label = best.mark_text(text="best", dy=-19).encode()
    return _finished(alt.layer(band, line, hover, marks, points, ring, label), height=380)


def _small(x: Any, colour: Any, field: str, title: str, *, is_marked: bool) -> dict[str, Any]:
    import altair as alt

    curves = alt.Chart(alt.NamedData("curves")).encode(x=x, color=colour)
    y = alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=4))
    line = curves.mark_line(strokeWidth=1.8, interpolate="monotone").encode(y=y)
    hover, marks = _hover(x, curves, y, (field, title), is_marked=is_marked)
    return _finished(alt.layer(line, hover, marks), height=170)


def _hover(x: Any, curves: Any, y: Any, *more: tuple[str, str], is_marked: bool) -> tuple[Any, Any]:
    """A rule at the nearest row under the pointer, with its figures, and the rows' points on it."""
    import altair as alt

    nearest = alt.selection_point(
        nearest=True,
        on="pointermove",
        clear="pointerout",
        fields=[str(x.shorthand).partition(":")[0]],
        empty=False,
    )
    tooltip = [
        alt.Tooltip("name:N", title="run"),
        alt.Tooltip("iteration:Q", format=","),
        alt.Tooltip("env_steps:Q", title="env steps", format=","),
        alt.Tooltip("mean:Q", title="return", format=",.6~g"),
        *(alt.Tooltip(f"{field}:Q", title=title, format=",.6~g") for field, title in more),
    ]
    rule = (
        curves.mark_rule(strokeWidth=1)
        .encode(
            color=alt.value("#8891a5"),
            opacity=alt.condition(nearest, alt.value(0.7), alt.value(0)),
            tooltip=tooltip,
        )
        .add_params(nearest)
    )
    shown = alt.condition(nearest, alt.value(1), alt.value(0.9 if is_marked else 0))
    marks = curves.mark_point(filled=True, size=34).encode(y=y, opacity=shown, tooltip=tooltip)
    return rule, marks


def _finished(chart: Any, *, height: int) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict(context={"pre_transform": False})
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec
