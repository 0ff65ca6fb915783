"""`launch`: what `plato node -- COMMAND` does on each machine.

Given the same command on every machine, it finds out which one this is; the first runs the command on one Ray
cluster of all of them.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...errors import ProjectError
from . import head, worker
from .placement import find_placement
from .processes import Settings

PORT = 6379
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"


def launch(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    rank: int | None = None,
    nodes: int | None = None,
    head_address: str | None = None,
    port: int = PORT,
    start_s: float = 900.0,
    patience_s: float = 30.0,
    least_nodes: int | None = None,
    num_cpus: int | None = None,
    grace_s: float = 30.0,
    logs: Path | str = "logs",
    stdout_to_stderr: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Be one machine of a job: lead it or work in it.

    Args:
        command: What the first machine runs, with `RAY_ADDRESS` set.
        environ: Where rank, count, head and token are read from; default: this process's.
        rank: Which machine this is, from 0; default: read.
        nodes: How many there are; default: read.
        head_address: Host name or address of the first one; default: read.
        port: Of Ray's head; the one after it is used too.
        start_s: How long the cluster may take to form.
        patience_s: How long a worker waits for a head that has gone without a word.
        least_nodes: Go on with this many when the time is over; default: all of them.
        num_cpus: CPUs that Ray may use of this machine; default: all.
        grace_s: How long a stopped command may take to save itself.
        logs: Where each machine's logs go.
        stdout_to_stderr: Keep the command from this process's stdout.
        tell: Called with lines for people.

    Returns:
        The exit code for this machine: on the first the command's, on others 0.

    Raises:
        ProjectError: Nothing says which machine this is, or several have no token in common.
    """
    environ = dict(os.environ if environ is None else environ)
    if not command:
        raise ProjectError(
            "there is no command to run.", hint="For example: plato node -- plato train --run runs/night"
        )
    placement = find_placement(environ, rank=rank, nodes=nodes, head=head_address)
    token = environ.get(TOKEN_VARIABLE, "")
    if placement.nodes > 1 and len(token) < 16:
        raise ProjectError(
            f"{TOKEN_VARIABLE} is {'too short' if token else 'not set'}: without a secret in common, "
            "whoever reaches these machines could run code on them.",
            hint=f"Set the same on every machine: {TOKEN_VARIABLE}=$(openssl rand -hex 32)",
        )
    settings = Settings(
        port=port,
        token=token or secrets.token_hex(32),
        start_s=start_s,
        patience_s=patience_s,
        least_nodes=placement.nodes if least_nodes is None else least_nodes,
        logs=Path(logs).absolute(),
        num_cpus=num_cpus,
        grace_s=grace_s,
        stdout_to_stderr=stdout_to_stderr,
        environment=environ,
    )
    began = time.monotonic()

    def say(line: str) -> None:
        tell(f"[node {placement.rank} of {placement.nodes}, {time.monotonic() - began:.1f} s] {line}")

    if placement.nodes == 1:
        return head.alone(settings, command, say)
    if placement.is_head:
        return head.lead(placement, settings, command, say)
    return worker.work(placement, settings, say)
