"""How busy the machines of a training are: CPU, memory and live nodes, for every line of the journal.

`Usage.take` is called once an iteration and gives what happened since the last call. It looks at this machine itself
and has a small actor on each other node of the Ray cluster; it never waits for a node longer than `WAIT_S`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..container import CGROUP, cpu_limit, memory_limit

WAIT_S = 0.1
"""How long an iteration waits for the other machines' figures; a later one has them otherwise."""
LOOK_S = 1.0
"""How often Ray is asked at most which nodes are alive."""
JOIN_S = 10.0
"""How long the end of a training waits for Ray that is just being joined."""
LEAST_CPU_S = 0.2
"""CPU seconds between two readings, over all CPUs: the kernel counts in hundredths."""


class Reading(NamedTuple):
    """What one machine (or container) has counted by now.

    Attributes:
        cpus: Those that this process may use.
        busy_s: CPU seconds since some beginning in which one of them worked.
        total_s: CPU seconds since then in all.
        memory_used: Bytes.
        memory_total: Bytes.
    """

    cpus: float
    busy_s: float
    total_s: float
    memory_used: int
    memory_total: int


def reading(cgroup: Path = CGROUP) -> Reading:
    """Of this machine; of this container where that has limits of its own."""
    import psutil

    quota, used_s = cpu_limit(cgroup)
    if quota is not None:
        cpus, busy_s, total_s = quota, used_s, quota * time.monotonic()
    else:
        mine = _own_cpus()
        each = psutil.cpu_times(percpu=True)
        times = [one for at, one in enumerate(each) if mine is None or at in mine] or each
        # Guests' time is in user and nice already.
        total_s = sum(sum(one) - getattr(one, "guest", 0.0) - getattr(one, "guest_nice", 0.0) for one in times)
        busy_s = total_s - sum(one.idle + getattr(one, "iowait", 0.0) for one in times)
        cpus = float(len(times))
    memory = psutil.virtual_memory()
    limit, inside = memory_limit(cgroup)
    if limit is not None and limit < memory.total:
        return Reading(cpus, busy_s, total_s, inside, limit)
    return Reading(cpus, busy_s, total_s, memory.total - memory.available, memory.total)


@dataclass
class _Node:
    """Another machine: its actor, what it was asked, and its last two readings."""

    cpus: float
    actor: Any
    asked: Any = None
    is_waited_for: bool = False
    before: Reading | None = None
    now: Reading | None = None
    is_new: bool = field(default=False)


class Usage:
    """The usage of all machines, from one call to the next.

    Args:
        with_cluster: Whether there is a Ray cluster around the training: one that it is spread over, or one that this
            machine was made part of (`RAY_ADDRESS`), of which the other machines may well be idle.
    """

    def __init__(self, *, with_cluster: bool) -> None:
        self._with_cluster = with_cluster
        self._joining: threading.Thread | None = None
        self._own = reading()
        self._others: dict[str, _Node] = {}
        self._num_nodes = 1
        self._looked_at = -LOOK_S
        self._last: dict[str, Any] = {}
        self._see_others()

    def take(self) -> dict[str, Any]:
        """What the journal says under `cluster`.

        Returns:
            `nodes` alive; their `cpus`; `cpu_percent` and `memory_percent` of all of them together since the last call;
            `memory_gb` in use; `fullest_percent`, the memory of the machine that has least left. A machine that has
            not answered yet is counted under nodes and cpus alone.
        """
        own = reading()
        if self._last and (own.total_s - self._own.total_s) < LEAST_CPU_S:
            return self._last
        self._see_others()
        pairs, memories = [(self._own, own)], [own]
        self._own = own
        for node in self._others.values():
            if node.is_new and node.before is not None and node.now is not None:
                pairs.append((node.before, node.now))
                node.before, node.is_new = node.now, False
            if node.now is not None:
                memories.append(node.now)
        busy_s = sum(now.busy_s - before.busy_s for before, now in pairs)
        used = sum(one.memory_used for one in memories)
        self._last = {
            "nodes": self._num_nodes,
            "cpus": round(own.cpus + sum(_cpus(node) for node in self._others.values()), 2),
            "cpu_percent": _percent(busy_s, sum(now.total_s - before.total_s for before, now in pairs)),
            "memory_percent": _percent(used, sum(one.memory_total for one in memories)),
            "memory_gb": round(used / 2**30, 2),
            "fullest_percent": max(_percent(one.memory_used, one.memory_total) or 0.0 for one in memories),
        }
        return self._last

    def close(self) -> None:
        """Let the actors go, and Ray where it was joined for them alone."""
        if not self._with_cluster:
            return
        import ray

        for node in self._others.values():
            with contextlib.suppress(Exception):
                ray.kill(node.actor)
        self._others = {}
        if self._joining is not None:
            self._joining.join(JOIN_S)
            with contextlib.suppress(Exception):
                ray.shutdown()

    def _see_others(self) -> None:
        if not self._with_cluster or not self._has_joined():
            return
        with contextlib.suppress(Exception):  # whatever Ray raises: a training needs none of this
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._look()
            self._ask()
            self._collect()

    def _has_joined(self) -> bool:
        """Whether Ray is there to be asked; a training in one process does not wait for it."""
        import ray

        if self._joining is None and not ray.is_initialized():
            self._joining = threading.Thread(target=_join, name="ray-join", daemon=True)
            self._joining.start()
        return bool(ray.is_initialized()) and not (self._joining is not None and self._joining.is_alive())

    def _look(self) -> None:
        """Which nodes are alive, as Ray says; an actor for each that has none."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._looked_at = time.monotonic()
        here = ray.get_runtime_context().get_node_id()
        alive = {str(node["NodeID"]): node for node in ray.nodes() if node["Alive"]}
        self._num_nodes = max(1, len(alive))
        for gone in set(self._others) - set(alive):
            del self._others[gone]
        for name in set(alive) - set(self._others) - {here}:
            where = NodeAffinitySchedulingStrategy(name, soft=False)
            actor = ray.remote(num_cpus=0, scheduling_strategy=where)(_Looker).remote()
            self._others[name] = _Node(float(alive[name]["Resources"].get("CPU", 0.0)), actor)

    def _ask(self) -> None:
        for node in self._others.values():
            if node.asked is None:
                node.asked = node.actor.look.remote()

    def _collect(self) -> None:
        """Take what has been answered; wait a little for machines that answered the last time."""
        import ray

        waited = [node.asked for node in self._others.values() if node.is_waited_for and node.asked is not None]
        if waited:
            ray.wait(waited, num_returns=len(waited), timeout=WAIT_S)
        asked = [node.asked for node in self._others.values() if node.asked is not None]
        ready = set(ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        for name, node in list(self._others.items()):
            node.is_waited_for = node.asked in ready
            if node.asked not in ready:
                continue
            try:
                node.now = Reading(*ray.get(node.asked))
            except ray.exceptions.RayError:
                del self._others[name]  # its machine is gone, or going; a new look tells
                continue
            node.asked, node.is_new = None, True
            if node.before is None:
                node.before, node.is_new = node.now, False


class _Looker:
    """On another machine, as a Ray actor without a CPU of its own."""

    def look(self) -> tuple[float, ...]:
        return tuple(reading())


def _join() -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.init(address="auto", logging_level="ERROR", log_to_driver=False)


def _cpus(node: _Node) -> float:
    return node.cpus if node.now is None else node.now.cpus


def _percent(part: float, whole: float) -> float | None:
    return None if whole <= 0 else round(min(100.0, max(0.0, 100.0 * part / whole)), 1)


def _own_cpus() -> set[int] | None:
    """The CPUs that this process may use, by number; None where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
