"""What this process's container may use of its machine, as its cgroup (version 1 or 2) says: CPUs and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path) -> tuple[float | None, float]:
    """CPUs that this container may use at a time, and CPU seconds that it has used; None without a limit."""
    words = _words(cgroup / "cpu.max")
    if words and words[0] != "max":
        used = dict(zip(*[iter(_words(cgroup / "cpu.stat"))] * 2, strict=False))
        return int(words[0]) / int(words[1]), int(used.get("usage_usec", 0)) / 1e6
    quota, period = _words(cgroup / "cpu/cpu.cfs_quota_us"), _words(cgroup / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0]), int((_words(cgroup / "cpuacct/cpuacct.usage") or ["0"])[0]) / 1e9
    return None, 0.0


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of memory of this machine; of this container where that has a limit of its own."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = memory_limit(cgroup)
    return total if limit is None else min(total, limit)


def memory_limit(cgroup: Path) -> tuple[int | None, int]:
    """Bytes that this container may use, and those it uses less what the kernel would give back."""
    places: Iterable[tuple[str, str, str, str]] = (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    )
    for limit, usage, stat, key in places:
        words, used = _words(cgroup / limit), _words(cgroup / usage)
        if words and used and words[0] != "max":
            kept = dict(zip(*[iter(_words(cgroup / stat))] * 2, strict=False))
            return int(words[0]), max(0, int(used[0]) - int(kept.get(key, 0)))
    return None, 0


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
