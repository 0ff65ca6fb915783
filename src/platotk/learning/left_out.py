"""What RLlib 2.60 leaves out of its checkpoints: collected when one is saved, put back when it is restored.

RLlib saves weights, target networks, optimisers, connectors and metrics. It leaves out, and a restored
algorithm starts from the config again with: PPO's and APPO's KL coefficient, SAC's log-alpha, MARWIL's
advantage norm, the step of the last target-network update (DQN, SAC, APPO), the present value of schedules,
torch's learning-rate schedulers and gradient scalers, learner connectors, replay buffers, random
generators, and Trainable's totals. `collect` gives them as arrays and JSON, without pickle; `apply` puts
them back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from . import replay
from .packing import Packer, Unpackable, unpack
from .randomness import SetLearnerRandomState, learner_random_state, random_state, set_random_state

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

SCHEMA = 1
FILES = "the checkpoint's left_out files"
SETTLE_LIMIT_S = 30.0

FROM_CONFIG = {"target_entropy", "expectile"}
"""Learner variables that are constants of the config, not state."""

TOTALS = ("_time_total", "_timesteps_total", "_episodes_total")


def collect(algo: Algorithm) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What RLlib's own checkpoint of `algo` lacks.

    Args:
        algo: An algorithm of RLlib's new API stack, between two calls of `train()`.

    Returns:
        Flat arrays by dtype name, and a JSON value that says what they are; `notes` in it lists, in words,
        what could not be kept.
    """
    notes: list[str] = []
    packer = Packer()
    learners = _foreach_learner(algo, learner_state)
    parts = learners[0] if learners else {}
    meta: dict[str, Any] = {
        "schema": SCHEMA,
        "learner": {name: _packed(packer, f"the learner's {name}", part, notes) for name, part in parts.items()},
        "random": {
            "driver": packer.pack(random_state()),
            "learners": [] if _is_local(algo) else packer.pack(_foreach_learner(algo, learner_random_state)),
        },
        "totals": {name: getattr(algo, name, None) for name in TOTALS},
        "learning_starts": getattr(algo.config, "num_steps_sampled_before_learning_starts", None),
        "replay": {},
    }
    for name, buffer in replay.find_buffers(algo).items():
        meta["replay"][name] = _collect_buffer(packer, buffer, notes)
    meta["texts"] = packer.text_table()
    meta["notes"] = notes
    return packer.arrays(), meta


def apply(algo: Algorithm, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> list[str]:
    """Put back what `collect` gave; to be called after `algo.restore_from_path`.

    Returns:
        Notes in words on what goes on otherwise than it would have without the interruption.

    Raises:
        CheckpointError: `arrays` and `meta` do not belong together or to this algorithm.
    """
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{FILES} have schema {meta.get('schema')!r}; this platotk reads {SCHEMA}.",
            hint="Open it with the version of platotk that wrote it (see run.json).",
        )
    texts = list(meta["texts"])
    try:
        saved = {name: unpack(part, arrays, texts) for name, part in meta["learner"].items()}
        # Learners are alike: what one says, all would.
        notes: list[str] = next(iter(_foreach_learner(algo, _SetLearnerState(saved))), [])
        for name, value in meta["totals"].items():
            if value is not None:
                setattr(algo, name, value)
        notes += _apply_buffers(algo, arrays, meta, texts)
        random_states = unpack(meta["random"]["learners"], arrays, texts)
        if random_states and not _is_local(algo):
            _foreach_learner(algo, SetLearnerRandomState(random_states))
        # Last, because building and restoring draw random numbers themselves.
        set_random_state(unpack(meta["random"]["driver"], arrays, texts))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{FILES} do not fit this algorithm: {type(error).__name__}: {error}",
            hint="Resume with the project and the versions that the run was started with (see its run.json).",
        ) from error
    return notes


def settle(algo: Algorithm) -> bool:
    """Wait until the learner threads of IMPALA and APPO have used up what is queued.

    Otherwise weights and optimiser could be of two different updates.

    Returns:
        False when a thread was still learning after 30 s.
    """
    return all(_foreach_learner(algo, _settle_learner))


def learner_state(learner: Any) -> dict[str, Any]:
    """What RLlib's `Learner.get_state()` leaves out, without the random generators; nested, numpy only.

    Found by looking through the learner: every mapping from module to tensor, number or schedule, and every
    tensor. This holds for all of RLlib's learners, and for a user's own as far as they follow RLlib's ways.
    """
    variables, counters, schedules, tensors = {}, {}, {}, {}
    for name, value in vars(learner).items():
        if name in FROM_CONFIG:
            continue
        if _is_tensor(value):
            tensors[name] = _to_numpy(value)
        if not _is_by_module(learner, value):
            continue
        if all(_is_tensor(item) for item in value.values()):
            variables[name] = {module: _to_numpy(item) for module, item in value.items()}
        elif all(type(item) in (int, float) for item in value.values()):
            counters[name] = dict(value)
        elif all(_is_schedule(item) for item in value.values()):
            schedules[name] = {
                module: float(item.get_current_value()) for module, item in value.items() if item.use_schedule
            }
    connector = learner._learner_connector
    return {
        "variables": variables,
        "counters": counters,
        "schedules": schedules,
        "tensors": tensors,
        "lr_schedules": _lr_schedules(learner),
        "torch_lr_schedulers": {
            module: {
                optimizer: [_plain(scheduler.state_dict()) for scheduler in schedulers]
                for optimizer, schedulers in by_optimizer.items()
            }
            for module, by_optimizer in learner._lr_schedulers.items()
        },
        "grad_scalers": {module: dict(scaler.state_dict()) for module, scaler in (learner._grad_scalers or {}).items()},
        "connector": None if connector is None else connector.get_state(),
    }


def set_learner_state(learner: Any, state: Mapping[str, Any]) -> list[str]:
    """Put `learner_state` back, in place, so that optimisers keep hold of the same tensors.

    Returns:
        Notes on tensors for which a new learner has no place; some are made only while learning.
    """
    tensors = [(name, vars(learner).get(name), saved) for name, saved in (state["tensors"] or {}).items()]
    for name, by_module in (state["variables"] or {}).items():
        for module, saved in by_module.items():
            tensors.append((f"{name}[{module!r}]", _item(learner, name, module), saved))
    notes = [
        f"the learner's {name} was not restored: there is none of that shape before it learns"
        for name, tensor, saved in tensors
        if not _copy(tensor, saved)
    ]
    for name, by_module in (state["counters"] or {}).items():
        getattr(learner, name).update(by_module)
    for name, by_module in (state["schedules"] or {}).items():
        for module, current in by_module.items():
            _set_schedule(getattr(learner, name)[module], current)
    by_name = learner._named_optimizers
    for name, current in (state["lr_schedules"] or {}).items():
        _set_schedule(learner._optimizer_lr_schedules[by_name[name]], current)
    _set_torch_lr_schedulers(learner, state["torch_lr_schedulers"])
    for module, saved in (state["grad_scalers"] or {}).items():
        if learner._grad_scalers is not None:
            learner._grad_scalers[module].load_state_dict(saved)
    if learner._learner_connector is not None and state["connector"]:
        learner._learner_connector.set_state(state["connector"])
    return notes


class _SetLearnerState:
    """`set_learner_state` with its argument, in a form that travels to remote learners."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def __call__(self, learner: Any) -> list[str]:
        return set_learner_state(learner, self.state)


def _foreach_learner(algo: Algorithm, function: Callable[[Any], Any]) -> list[Any]:
    group = getattr(algo, "learner_group", None)
    if group is None:
        return []
    results: list[Any] = [result.get() for result in group.foreach_learner(function)]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _is_local(algo: Algorithm) -> bool:
    group = getattr(algo, "learner_group", None)
    return group is None or bool(group.is_local)


def _packed(packer: Packer, what: str, value: Any, notes: list[str]) -> Any:
    """The packed value, or None and a note."""
    try:
        return packer.pack(value)
    except Unpackable as error:
        notes.append(f"{what} is not kept in the checkpoint: {error}")
        return None


def _collect_buffer(packer: Packer, buffer: Any, notes: list[str]) -> dict[str, Any]:
    size = replay.num_bytes(buffer)
    about: dict[str, Any] = {"steps": len(buffer), "bytes": size, "state": None, "why": None}
    if size > replay.MAX_REPLAY_BYTES:
        about["why"] = f"its {size / 1e6:,.0f} MB are more than {replay.MAX_REPLAY_BYTES / 1e6:,.0f} MB"
    else:
        try:
            about["state"] = packer.pack(replay.buffer_state(buffer))
        except Unpackable as error:
            about["why"] = str(error)
    if about["why"] is not None:
        notes.append(f"the replay buffer is not kept in the checkpoint: {about['why']}")
    return about


def _apply_buffers(
    algo: Algorithm, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], texts: list[str]
) -> list[str]:
    """Fill the replay buffers, or have the algorithm fill them anew before it learns."""
    notes: list[str] = []
    starts = meta["learning_starts"]
    for name, buffer in replay.find_buffers(algo).items():
        saved = meta["replay"].get(name)
        if saved is None:
            continue
        why = saved["why"]
        if why is None:
            try:
                replay.set_buffer_state(buffer, unpack(saved["state"], arrays, texts))
            except ValueError as error:
                why = str(error)
        if why is None:
            # The threshold may have been raised by an earlier resume that is still refilling.
            _raise_learning_starts(algo, starts)
        else:
            refill = _num_steps_to_refill(algo, saved["steps"])
            _raise_learning_starts(algo, _num_steps_sampled(algo) + refill)
            notes.append(f"the replay buffer was not restored ({why}): {refill:,} steps refill it before it learns on")
    return notes


def _num_steps_to_refill(algo: Algorithm, num_before: int) -> int:
    """As many steps as RLlib collects before it first learns, and ten batches; fewer if there were fewer."""
    config: Any = algo.config
    wanted = max(config.num_steps_sampled_before_learning_starts or 0, 10 * config.total_train_batch_size)
    return int(min(wanted, max(num_before, config.total_train_batch_size)))


def _num_steps_sampled(algo: Algorithm) -> int:
    """What DQN and SAC compare with `num_steps_sampled_before_learning_starts`."""
    if getattr(algo.config, "count_steps_by", "env_steps") == "agent_steps":
        by_agent = algo.metrics.peek(("env_runners", "num_agent_steps_sampled_lifetime"), default={})
        return int(sum(by_agent.values()))
    return int(algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0))


def _raise_learning_starts(algo: Algorithm, value: int | None) -> None:
    config: Any = algo.config
    if value is None or value <= (config.num_steps_sampled_before_learning_starts or 0):
        return
    config = config.copy(copy_frozen=False)
    config.num_steps_sampled_before_learning_starts = value
    config.freeze()
    algo.config = config


def _settle_learner(learner: Any) -> bool:
    """Wait until the learner's threads have empty queues and wait for more."""
    if getattr(learner, "_learner_thread", None) is None:
        return True
    threads = [learner._learner_thread, *getattr(learner, "_gpu_loader_threads", [])]
    queues = [learner._gpu_loader_in_queue, learner._learner_thread_in_queue]
    deadline = time.monotonic() + SETTLE_LIMIT_S
    num_idle = 0
    # More than once: for some microseconds, a thread that has just taken the last batch looks idle.
    while num_idle < 5:
        if time.monotonic() > deadline:
            return False
        is_idle = all(queue.qsize() == 0 for queue in queues) and not any(map(_is_busy, threads))
        num_idle = num_idle + 1 if is_idle else 0
        time.sleep(0.002)
    return True


def _is_busy(thread: Any) -> bool:
    """Whether a thread is anywhere but in its queue's `get`; APPO's does not count what it gave out."""
    frame = sys._current_frames().get(thread.ident)
    if frame is None:
        return False
    while frame is not None:
        caller = frame.f_back
        if caller is not None and frame.f_code.co_name == "get" and caller.f_code.co_name in ("step", "_step"):
            return False
        frame = caller
    return True


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds every value of it.
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
    return array


def _item(learner: Any, name: str, module: str) -> Any:
    """One module's value; RLlib's mappings make it when it is first asked for."""
    try:
        return vars(learner)[name][module]
    except KeyError:
        return None


def _copy(tensor: Any, saved: Any) -> bool:
    import torch

    if not _is_tensor(tensor) or tuple(tensor.shape) != np.shape(saved):
        return False
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.asarray(saved)))
    return True


def _is_schedule(value: Any) -> bool:
    from ray.rllib.utils.schedules.scheduler import Scheduler

    return isinstance(value, Scheduler)


def _is_by_module(learner: Any, value: Any) -> bool:
    """Whether a value is a mapping from (some of) the learner's modules."""
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        return False
    return set(value) <= set(learner.module.keys())


def _lr_schedules(learner: Any) -> dict[str, float]:
    """The present value of RLlib's learning-rate schedules, by the optimiser's name."""
    names = {id(optimizer): name for name, optimizer in learner._named_optimizers.items()}
    return {
        names[id(optimizer)]: float(schedule.get_current_value())
        for optimizer, schedule in learner._optimizer_lr_schedules.items()
        if schedule.use_schedule
    }


def _set_schedule(schedule: Any, value: float) -> None:
    """Only of a schedule that is one: a fixed value is the config's, maybe changed on purpose."""
    if schedule.use_schedule:
        schedule.get_current_value().fill_(value)


def _set_torch_lr_schedulers(learner: Any, saved: Mapping[str, Any]) -> None:
    """RLlib makes torch's schedulers at the first update; make them now, and give them their state."""
    classes = learner._lr_scheduler_classes
    if not saved or classes is None:
        return
    for module, by_optimizer in saved.items():
        learner._lr_schedulers[module] = {}
        for name, states in by_optimizer.items():
            optimizer = learner.get_optimizer(module, name)
            # Making a scheduler sets the optimiser's learning rate, which has been restored already.
            before = [dict(group) for group in optimizer.param_groups]
            schedulers = [kind(optimizer) for kind in (classes[module] if isinstance(classes, dict) else classes)]
            for scheduler, state in zip(schedulers, states, strict=True):
                scheduler.load_state_dict(state)
            for group, values in zip(optimizer.param_groups, before, strict=True):
                group.update({key: value for key, value in values.items() if key in ("lr", "initial_lr")})
            learner._lr_schedulers[module][name] = schedulers


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a torch scheduler's state that are data; functions come from its constructor."""
    kept = {}
    for key, value in state.items():
        try:
            Packer().pack(value)
        except Unpackable:
            continue
        kept[key] = value
    return kept
