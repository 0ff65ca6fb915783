"""Numbers, times, paths and commands as people read and type them.

Values in, text out; nothing is printed here.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
COMMANDS = (
    "init",
    "check",
    "train",
    "tune",
    "assess",
    "export",
    "verify",
    "act",
    "serve",
    "deploy",
    "runs",
    "show",
    "compare",
    "schema",
)


def plato_command() -> str:
    """What to type for this installation's `plato`: its name when it is on PATH, otherwise where it is."""
    script = Path(sys.executable).parent / "plato"
    found = shutil.which("plato")
    if found is not None and Path(found).parent.resolve() == script.parent.resolve():
        return "plato"
    return shlex.quote(shown(script)) if script.is_file() else f"{shlex.quote(sys.executable)} -m platotk"


def typable(text: str) -> str:
    """A text in which `plato check` and the like are what has to be typed for this installation."""
    command = plato_command()
    return re.sub(r"(?<![\w/.-])plato (?=(?:" + "|".join(COMMANDS) + r")\b)", lambda _: f"{command} ", text)


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    absolute = Path(os.path.abspath(path))
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last values as a row of bars, each bar the mean of its share when there are more than `width`."""
    if not values:
        return ""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    low, high = min(means), max(means)
    if high == low:
        return BARS[3] * len(means)
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


def number(value: Any) -> str:
    """A number as people read it: thousands apart, four digits of a fraction; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """`12 s`, `1:20` or `2:05:00`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def ago(moment: str | None) -> str:
    """How long ago an ISO time was."""
    if not moment:
        return ""
    then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    seconds = (datetime.now(timezone.utc) - then).total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "just now"


def label(key: str) -> str:
    """A key as a heading: `env_steps` is env steps."""
    return key.replace("_", " ")


def figure(key: str, value: Any) -> str:
    """A value on one line, as its key asks: times in UTC, seeds as typed, lists and dicts as JSON."""
    if key in ("created", "started", "ended") and isinstance(value, str):
        return f"{value[:19].replace('T', ' ')} UTC"
    if isinstance(value, (list, dict)):
        return json.dumps(finite(value))
    is_number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    return number(value) if is_number and not (key == "seed" and value is not None) else str(value)


def finite(value: Any) -> Any:
    """What JSON can say: numpy as numbers and lists, NaN and infinity as null, anything unknown as text."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return finite(value.tolist()) if hasattr(value, "tolist") else str(value)


def from_users_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor a library's; whole when there is none."""
    import sysconfig

    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    not_theirs = (Path(__file__).parent, *libraries)
    at = trace
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if not file.startswith("<") and not any(Path(file).is_relative_to(folder) for folder in not_theirs):
            return at
        at = at.tb_next
    return trace
