"""RLlib's imports and, where a training needs them, Ray's processes: both beside everything else that is loaded.

`RayStart` begins the imports in a thread and `ray.init` in another; `wait()` gives the CPUs and GPUs there are.
A project that asks for more than that is refused: Ray itself would wait for ever, without a word. Where it is this
machine alone that trains, `refuse_at_once` does so before anything is loaded.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ProjectError, missing_extra

if TYPE_CHECKING:
    from ..project import Project

logger = logging.getLogger("platotk")


class RayStart:
    """RLlib and Ray coming up in the background, for a `with` block; as Ray was found, it is left.

    Args:
        with_processes: Start Ray's processes at once, beside the imports; otherwise only when `cluster` asks for them.
    """

    _closing: ClassVar[threading.Thread | None] = None
    """Waits for a start that nobody wanted to the end."""

    def __init__(self, *, with_processes: bool) -> None:
        self._error: BaseException | None = None
        self._is_ours = False
        self._is_imported, self._is_up = threading.Event(), threading.Event()
        self._may_end = threading.Event()
        self._starter: threading.Thread | None = None
        self._with_processes = with_processes
        threading.Thread(target=self._import, name="rllib-imports", daemon=True).start()

    def __enter__(self) -> RayStart:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if (
            kind is None
            or not issubclass(kind, KeyboardInterrupt)
            or (self._starter is not None and self._is_up.is_set())
        ):
            self.close()
            return
        # Whoever pressed Ctrl-C does not wait ten seconds for imports and processes. A process that ends now takes
        # Ray's with it.
        RayStart._closing = threading.Thread(target=self.close, name="ray-close", daemon=True)
        RayStart._closing.start()

    def wait(self) -> None:
        """Return once RLlib is imported.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        self._is_imported.wait()
        if self._error is not None:
            raise self._error

    def cluster(self) -> Mapping[str, float]:
        """Resources of the Ray cluster, e.g. `{"CPU": 8.0, "GPU": 1.0}`, once it is up; started when it is not.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        self.wait()
        if self._starter is None:
            self._begin()
        self._is_up.wait()
        if self._error is not None:
            raise self._error
        import ray

        resources: Mapping[str, float] = ray.cluster_resources()
        return resources

    def close(self) -> None:
        """Shut Ray down when it was started here."""
        self._is_imported.wait()
        if self._starter is not None:
            self._is_up.wait()
        if self._is_ours:
            import ray

            ray.shutdown()
        self._may_end.set()

    def _import(self) -> None:
        # Telemetry and colour are the user's business, not ours to switch on.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # As nice as this process is: at Ray's own 15, env runners starve beside any other busy process.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # RLlib's env runners call what Ray itself calls deprecated; the start of the message stands for the warning.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:This API is deprecated and may be removed in future Ray")
        if RayStart._closing is not None:
            RayStart._closing.join()
        try:
            import ray

            if self._with_processes:
                self._begin()
                # First what Ray does not import: two threads that import the same modules in different order could
                # see one half-made.
                import torch  # noqa: F401
            import ray.rllib.algorithms.ppo  # noqa: F401

            quiet_rllib()
        except ImportError as error:
            self._error = missing_extra("Ray RLlib", "train")
            self._error.__cause__ = error
        except BaseException as error:
            self._error = error
        self._is_imported.set()

    def _begin(self) -> None:
        self._starter = threading.Thread(target=self._start, name="ray-start", daemon=True)
        self._starter.start()

    def _start(self) -> None:
        try:
            import ray

            if not ray.is_initialized():
                options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": True}
                if not os.environ.get("RAY_ADDRESS"):
                    options |= {"include_dashboard": False}
                    if gone := left_behind():
                        logger.warning(f"The Ray cluster at {gone} does not answer: a new one starts on this machine.")
                        options["address"] = "local"
                ray.init(**options)
                self._is_ours = True
        except BaseException as error:
            self._error = error
        self._is_up.set()
        # Ray's processes ask the kernel to end them with their parent (PR_SET_PDEATHSIG), and to the kernel the
        # parent is the thread that started them: this one must live as long as they should.
        self._may_end.wait()


def left_behind() -> str | None:
    """The address of a cluster that was killed and not stopped: `ray.init()` would wait for it for ever.

    `ray start` notes its address in a file (`ray_current_cluster`), which only `ray stop` removes.
    """
    from ray._private.utils import read_ray_address

    address = read_ray_address()
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except (OSError, ValueError):
        return str(address)
    return None


def quiet_rllib() -> None:
    """Keep RLlib's greetings (API stacks, deprecations of its own making) off the screen; errors still come through."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    logging.getLogger("ray._common.deprecation").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.utils.util").setLevel(logging.ERROR)  # asks for a package, GPU or not
    # What a sim raises is logged here in full and then raised anyway.
    logging.getLogger("ray.rllib.env.env_runner").setLevel(logging.CRITICAL)


def limit_threads(observation_space: Any) -> None:
    """One torch thread for small networks, where more threads only wait for each other.

    Measured: beside other work on two cores, two threads took tens of times longer than one. OMP_NUM_THREADS is
    respected.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and not has_images(observation_space):
        torch.set_num_threads(1)


def has_images(observation_space: Any) -> bool:
    """Whether an encoded observation space holds images."""
    return any(str(name).startswith("image_") for name in getattr(observation_space, "spaces", ()))


def refuse_at_once(project: Project) -> None:
    """Refuse CPUs that this machine has not, from the project alone: without a probe, RLlib or Ray.

    Nothing is said where a cluster may be used, whose size only Ray knows, nor about GPUs, which torch counts best.

    Raises:
        ProjectError: As `require_resources`, with the place in the project file.
    """
    if may_have_cluster():
        return
    asked = {**(project.env_runners or {}), **(project.learners or {})}
    defaults = {
        "num_env_runners": 0,
        "num_cpus_per_env_runner": 1,
        "num_learners": 0,
        "num_cpus_per_learner": 1,
        "num_aggregator_actors_per_learner": 0,
    }
    # What is no number is "auto", which fits, or a mistake that RLlib names.
    numbers = {
        key: asked[key] if isinstance(asked.get(key), (int, float)) else default for key, default in defaults.items()
    }
    config = SimpleNamespace(**numbers, num_gpus_per_env_runner=0, num_gpus_per_learner=0)
    key = "env_runners.num_env_runners" if numbers["num_env_runners"] else "learners.num_learners"
    available = {"CPU": float(os.cpu_count() or 1)}
    require_resources(config, available, place="this machine", where=f"{project.where(key)}: ")


def may_have_cluster() -> bool:
    """Whether Ray is up in this process, or would join a cluster that is; without importing it."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    if os.environ.get("RAY_ADDRESS") or (is_initialized is not None and is_initialized()):
        return True
    # Where `ray start` notes the address of its cluster, as ray._private.utils.get_ray_address_file says.
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return (Path(folder) / "ray" / "ray_current_cluster").exists()


def require_resources(
    config: Any, available: Mapping[str, float], *, place: str = "the Ray cluster", where: str = ""
) -> None:
    """Refuse a config that asks for more than there is.

    Args:
        config: An `AlgorithmConfig`, or what has its numbers.
        available: As `ray.cluster_resources()`.
        place: Who has no more.
        where: Put before the message: the place in the project file.

    Raises:
        ProjectError: With what is asked for, what there is, and what would fit.
    """
    num_runners = int(config.num_env_runners or 0)
    num_learners = int(config.num_learners or 0)
    cpus = num_runners * float(config.num_cpus_per_env_runner or 0)
    if num_learners:
        per_learner = config.num_cpus_per_learner
        cpus += num_learners * float(per_learner if isinstance(per_learner, (int, float)) else 1)
    aggregators = int(getattr(config, "num_aggregator_actors_per_learner", 0) or 0) * max(1, num_learners)
    cpus += aggregators
    gpus = num_runners * float(config.num_gpus_per_env_runner or 0)
    gpus += max(1, num_learners) * float(config.num_gpus_per_learner or 0)
    has_cpus, has_gpus = float(available.get("CPU", 0)), float(available.get("GPU", 0))
    if cpus > has_cpus:
        raise ProjectError(
            f"{where}{num_runners} env runners and {num_learners} learners need {cpus:g} CPUs; "
            f"{place} has {has_cpus:g}.",
            hint=f"Ray would wait for ever. Say env_runners: {{num_env_runners: {max(0, int(has_cpus) - 1)}}}.",
        )
    if gpus > has_gpus:
        raise ProjectError(
            f"{where}the learners and env runners need {gpus:g} GPUs; {place} has {has_gpus:g}.",
            hint="Use learners: {num_gpus_per_learner: 0}, or a cluster with GPUs.",
        )
