"""When and where the kernel is compiled: once per machine and version, into a cache, ahead of its first use.

`kernel()` gives back the module of compiled functions; `compile_ahead()` has a process of its own compile them, and
tells when they are there. numba keeps what it has compiled in the user's cache folder (or NUMBA_CACHE_DIR), never in
the installed package, which may be read-only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path
from typing import IO, Any

SOURCES = ("arena.py", "kernel.py", "layers.py", "losses.py", "network.py", "vectors.py")

_lock = threading.Lock()
_ready = threading.Event()


class Compilation:
    """A compilation under way, or done, or not possible.

    Args:
        process: Who compiles; None when nobody has to.
        said: What it writes to stderr.
        refusal: Why it cannot be done at all.
    """

    def __init__(
        self, process: subprocess.Popen[bytes] | None, said: IO[bytes] | None = None, *, refusal: str | None = None
    ) -> None:
        self._process = process
        self._said = said
        self._refusal = refusal

    @property
    def is_ready(self) -> bool:
        """Whether `kernel()` will answer at once, up to loading the cache; never, where compiling fails."""
        return self._refusal is None and (self._process is None or self._process.poll() == 0)

    @property
    def failure(self) -> str | None:
        """Why it will never be ready, in one line; None while it may be."""
        if self._refusal is not None or self._process is None or not self._process.poll():
            return self._refusal
        lines = []
        if self._said is not None:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the compiler's process ended with code {self._process.returncode}"

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is; False when that took longer than `timeout_s`."""
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
        return True


def compile_ahead() -> Compilation:
    """See to it that the kernel is compiled; gives back at once, and compiles in another process if need be."""
    if importlib.util.find_spec("numba") is None:
        return Compilation(None, refusal="numba is not installed")
    folder = cache_folder()
    if _ready.is_set() or folder is None or (folder / _marker()).exists():
        return Compilation(None)
    command = [sys.executable, "-m", f"{__package__}.compilation"]
    # The run's own threads come first.
    said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process writes
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
    return Compilation(process, said)


def kernel() -> Any:
    """The module of compiled functions; the first call loads them from the cache, or compiles them."""
    with _lock:
        if not _ready.is_set():
            folder = cache_folder()
            module = _import(folder)
            _warm_up(module)
            if folder is not None:
                (folder / _marker()).touch()
            _ready.set()
    from . import kernel as module

    return module


def cache_folder() -> Path | None:
    """Where compiled code of these sources is kept; None when there is no place that is the user's alone."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
    for base in _bases():
        folder = base / digest
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The cache holds pickles: never load what somebody else may have written.
            if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
                continue
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def _bases() -> list[Path]:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(os.environ["NUMBA_CACHE_DIR"]) / "platotk"]
    bases = []
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        bases.append(Path(os.environ["LOCALAPPDATA"]))
    elif sys.platform == "darwin":
        bases.append(Path.home() / "Library" / "Caches")
    elif os.environ.get("XDG_CACHE_HOME"):
        bases.append(Path(os.environ["XDG_CACHE_HOME"]))
    else:
        bases.append(Path(os.path.expanduser("~")) / ".cache")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [*(base / "platotk" / "kernel" for base in bases), Path(tempfile.gettempdir()) / f"platotk-kernel-{user}"]


def _marker() -> str:
    """A file that says: compiled, for this machine's processor, this Python and this numba."""
    from llvmlite import binding

    chosen = (os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES"), platform.machine())
    machine = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()} {chosen}"
    versions = f"{platform.python_version()} {metadata.version('numba')} {metadata.version('llvmlite')}"
    return "ready-" + hashlib.sha256(f"{machine} {versions}".encode()).hexdigest()[:16]


def _import(folder: Path | None) -> Any:
    from numba.core import config

    before = config.CACHE_DIR
    config.CACHE_DIR = "" if folder is None else str(folder)
    try:
        from . import kernel as module
    finally:
        config.CACHE_DIR = before
    return module


def _warm_up(module: Any) -> None:
    """Call each function once with arrays of the dtypes that it will see."""
    import numpy as np

    from .arena import Hyper, Stat, place
    from .network import smallest_network

    network = smallest_network()
    arena = place(network)
    tables = (arena.memory, arena.layers, network.parts, arena.sizes)
    rows, none, row = np.zeros((1, 8), np.float32), np.zeros((0, 0), np.float32), np.zeros(1, np.float32)
    obs, actions = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
    module.transpose(arena.memory.ctypes.data, arena.layers, arena.sizes, 0, 1)
    inputs = np.zeros((1, 2), np.float32)
    module.act(*tables, network.log_std_clip, obs, none, none, actions, row, inputs, row)
    module.evaluate(arena.memory, arena.layers, arena.sizes, obs, row)
    tensors, order, sync = np.zeros((0, 4), np.int64), np.zeros(1, np.int64), np.zeros(24, np.int64)
    hyper, stats = np.zeros(len(Hyper)), np.zeros((1, int(Stat.PADDING) + 1))
    module.update(*tables, tensors, rows, order, 1, hyper, stats, sync, 0, 1)


def _main() -> None:
    """Compile, unless another process is at it already: env runners that start together need one compiler."""
    folder = cache_folder()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            import fcntl

            if folder is not None:
                fcntl.flock(stack.enter_context((folder / "lock").open("w")), fcntl.LOCK_EX)
        if folder is None or not (folder / _marker()).exists():
            kernel()


if __name__ == "__main__":
    _main()
