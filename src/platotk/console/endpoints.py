"""Endpoints on Azure for people: what would be made and what it costs, how far it is, and how to ask it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .people import people, say

if TYPE_CHECKING:
    from ..azure.endpoint_plan import EndpointPlan
    from ..azure.endpoints import Deployed

STILL_EVERY_S = 60.0


class DeployProgress:
    """A line for each step, and one a minute while it goes on; called with the events of `endpoints.deploy`."""

    def __init__(self) -> None:
        self._step, self._told_s = "", 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Say it, if it is new."""
        if event["event"] == "left":
            say(people(), f"{event['what']} is still there, and bills: {event['why']}", "yellow")
            return
        step, seconds = str(event["step"]), float(event["seconds"])
        if step != self._step:
            self._step, self._told_s = step, 0.0
            say(people(), f"  {step}")
        elif seconds - self._told_s >= STILL_EVERY_S:
            self._told_s = seconds
            say(people(), f"  {step}, {seconds / 60:.0f} min")


def endpoint_cost(lines: list[str]) -> None:
    """What it costs."""
    out = people()
    for line in lines:
        say(out, line)


def endpoint_plan(plan: EndpointPlan) -> None:
    """What would be sent; nothing was."""
    out = people()
    told = plan.to_dict()
    say(out, "Would make, or update", "bold")
    for key in ("endpoint", "auth", "size", "instances", "model", "environment", "scoring_script"):
        say(out, f"  {key.replace('_', ' '):<14}  {told[key]}")
    say(out, "  files")
    for name, num_bytes in told["files"].items():
        say(out, f"    {name}  {num_bytes:,} bytes")
    say(out, "  --- Dockerfile", "bold")
    for line in told["dockerfile"].splitlines():
        say(out, f"    {line}")


def endpoint(made: Deployed) -> None:
    """How well it answers, and how to ask it."""
    out = people()
    found = made.smoke
    say(out, f"{made.endpoint} answers", "bold")
    say(out, f"  address     {made.url}")
    say(out, f"  deployment  {made.deployment}, {made.instances} x {made.size}, model {made.model}")
    say(
        out, f"  smoke test  {found.num_rows:,} recorded observations, largest error {found.max_error:.2g} of the range"
    )
    say(out, f"  latency     p50 {found.p50_ms:g} ms, p95 {found.p95_ms:g} ms, from here")
    if made.replaced:
        kept = "is kept without traffic, and bills too" if made.is_kept else "is deleted"
        say(out, f"  before      {made.replaced}, which {kept}")
    name = shlex.quote(made.endpoint)
    say(out, f"Its key: az ml online-endpoint get-credentials --name {name} --query primaryKey --output tsv")
    say(out, f"It bills until it is deleted: plato deploy --to azure --delete --endpoint {name}")
