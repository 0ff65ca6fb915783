"""Which of how many machines this is, and where the first one is.

Read from what PyTorch, MPI or Azure Machine Learning set on each node, or given outright; host names become addresses
here and go no further, because on many clusters they resolve on one machine only.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ProjectError

RANKS = ("PLATOTK_NODE_RANK", "NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "AZUREML_CR_NODE_RANK", "RANK")
COUNTS = ("PLATOTK_NODES", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "AZUREML_NODE_COUNT", "WORLD_SIZE")
MASTERS = (
    "PLATOTK_HEAD",
    "MASTER_ADDR",
    "AZ_BATCHAI_MPI_MASTER_NODE",
    "AZ_BATCH_MASTER_NODE",
    "AZ_BATCHAI_JOB_MASTER_NODE_IP",
)
LISTS = ("AZ_BATCH_HOST_LIST", "AZ_BATCH_NODE_LIST")
LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
LOCAL_COUNTS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")


@dataclass(frozen=True)
class Placement:
    """Which machine this is.

    Attributes:
        rank: 0 is the head.
        nodes: How many machines there are.
        head: Host name or address of the head.
    """

    rank: int
    nodes: int
    head: str

    @property
    def is_head(self) -> bool:
        """Whether the command runs here."""
        return self.rank == 0


def find_placement(
    environ: Mapping[str, str], *, rank: int | None = None, nodes: int | None = None, head: str | None = None
) -> Placement:
    """Read this machine's place from the environment; arguments go before variables.

    Raises:
        ProjectError: Something is missing, is no number, or does not fit together.
    """
    _require_one_process(environ)
    rank = _number(environ, RANKS) if rank is None else rank
    nodes = _number(environ, COUNTS) if nodes is None else nodes
    if nodes is None:
        listed = [host for name in LISTS for host in _hosts(environ.get(name, ""))]
        nodes = len(dict.fromkeys(listed)) or (1 if rank is None else None)
    if nodes is None:
        raise ProjectError(
            f"this is node {rank}, but nothing says of how many.",
            hint=f"Give --nodes N, or set one of {', '.join(COUNTS)}.",
        )
    if nodes == 1:
        return Placement(0, 1, head or "")
    if rank is None:
        raise ProjectError(
            f"there are {nodes} nodes, but nothing says which one this is.",
            hint="Give --rank, or start the job with a PyTorch or MPI distribution, one process on each node.",
        )
    if not 0 <= rank < nodes:
        raise ProjectError(f"rank {rank} does not exist among {nodes} nodes; they count from 0.")
    head = head or next((environ[name] for name in MASTERS if environ.get(name)), None)
    head = head or next((host for name in LISTS for host in _hosts(environ.get(name, ""))), None)
    if not head:
        raise ProjectError("nothing says where the head is.", hint=f"Give --head, or set one of {', '.join(MASTERS)}.")
    return Placement(rank, nodes, _without_port(head))


def resolve(host: str) -> str:
    """The IPv4 address of a host.

    Raises:
        OSError: Its name cannot be resolved (yet).
    """
    try:
        return socket.gethostbyname(host)
    except UnicodeError:
        raise OSError(f"{host!r} is no name of a host") from None


def own_address(head: str) -> str:
    """This machine's address as the head sees it; sends nothing.

    Ray's own way asks for the route to 8.8.8.8, which a closed network does not have.

    Args:
        head: Address of the head; on the head, of itself.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((head, 9))
        return str(probe.getsockname()[0])


def _require_one_process(environ: Mapping[str, str]) -> None:
    for name in LOCAL_RANKS:
        if environ.get(name, "0") not in ("0", ""):
            raise ProjectError(
                f"{name} is {environ[name]}: several processes were started on this machine.",
                hint="Start one on each: process_count_per_instance: 1.",
            )
    for name in LOCAL_COUNTS:
        if environ.get(name, "1") not in ("1", ""):
            raise ProjectError(
                f"{name} is {environ[name]}: several processes were started on each machine.",
                hint="Start one on each: process_count_per_instance: 1.",
            )


def _number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        text = environ.get(name, "").strip()
        if text:
            try:
                return int(text)
            except ValueError:
                raise ProjectError(f"{name} is {text!r}; expected a whole number.") from None
    return None


def _hosts(text: str) -> list[str]:
    return [_without_port(part.strip()) for part in text.replace(";", ",").split(",") if part.strip()]


def _without_port(host: str) -> str:
    """`10.0.0.4:6000` is how Azure Batch writes it."""
    name, colon, port = host.strip().rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host.strip()
