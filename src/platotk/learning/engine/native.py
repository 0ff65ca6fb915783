"""The compiled kernel bound to an RLModule: acts, values and trains in RLlib's own tensors.

Given a `DefaultPPOTorchRLModule` that `refusal` has nothing against, `Native` samples actions, computes values and runs
PPO's whole update over a batch without a call to torch. Weights are the module's and moments are its Adam's, before and
after every call, so that checkpoints, synchronisation and everything else of RLlib goes on as ever. numba is imported
when first needed; `compile_ahead` has it compile in another process while this one does something else.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from . import compilation
from .arena import Arena, Clipping, Hyper, Record, Size, Stat, place
from .network import CATEGORICAL, GAUSSIAN, Layer, NotCovered, Tensor, read_network

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIP_BY = {"global_norm": Clipping.GLOBAL_NORM, "norm": Clipping.NORM, "value": Clipping.VALUE}


@dataclasses.dataclass(frozen=True)
class Acted:
    """What one vector step of sampling gives, all of N rows.

    Attributes:
        actions: Of the module's action space: int64 (N,) for Discrete, int64 (N, k) for MultiDiscrete, float32 (N, k)
            for Box, a dict of these for Dict.
        log_probs: float32 (N,).
        dist_inputs: float32 (N, d), what RLlib calls `action_dist_inputs`.
        values: float32 (N,); None when the module has no critic or they were not asked for.
    """

    actions: Any
    log_probs: NDArray[np.float32]
    dist_inputs: NDArray[np.float32]
    values: NDArray[np.float32] | None


def refusal(module: Any, config: Any = None, optimizer: Any = None) -> str | None:
    """Why the kernel does not apply, in one line; None when it does.

    Args:
        module: The RLModule (of a learner or of an env runner).
        config: The PPOConfig, for what concerns training; None to act only.
        optimizer: The module's torch optimiser; None to act only.
    """
    try:
        read_network(module)
    except NotCovered as reason:
        return str(reason)
    if config is not None:
        if not config.use_critic:
            return "use_critic is off"
        if config._torch_grad_scaler_class or config._torch_lr_scheduler_classes:
            return "torch's own schedulers or gradient scalers are set"
        if config.log_gradients and config.grad_clip_by != "global_norm":
            return "log_gradients is on"
    return None if optimizer is None else _optimizer_refusal(module, optimizer)


class Native:
    """The kernel on one module.

    Not for several threads at once: all calls share one scratch buffer.

    Args:
        module: The RLModule.
        config: The PPOConfig; None to act only.
        optimizer: The torch Adam of the module's parameters; None to act only.
        num_threads: Cores that an update may take. It pays where a minibatch is a millisecond's work (256 x 256) and
            the cores are free: threads wait for each other actively, four times per minibatch.

    Attributes:
        num_threads: As given.
        num_updates: Minibatches trained on since this object was made, skipped ones included.
        num_skipped: Of them, those whose gradients were not finite: nothing was changed by them.

    Raises:
        NotCovered: The kernel does not apply; ask `refusal` first.
    """

    def __init__(self, module: Any, config: Any = None, optimizer: Any = None, *, num_threads: int = 1) -> None:
        reason = refusal(module, config, optimizer)
        if reason is not None:
            raise NotCovered(reason)
        self._kernel = compilation.kernel()

        self._network = read_network(module)
        self._arena = place(self._network, num_threads)
        self.num_threads = num_threads
        self._config, self._optimizer = config, optimizer
        self._none = np.zeros((0, 0), np.float32)
        self.num_updates = self.num_skipped = 0
        self.refresh()

    def refresh(self) -> None:
        """Take over the module's weights. Needed after they were set, before `act` and `values`; `update` does it."""
        for tensor in self._network.tensors:
            self._view(tensor, Size.PARAMETERS)[...] = _numpy(tensor.parameter)
        base = self._arena.memory.ctypes.data
        self._kernel.transpose(base, self._arena.layers, self._arena.sizes, 0, 1)

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """What `act` makes actions of: float32 (*shape, a), normal for numbers, uniform in [0, 1) for categories.

        Drawn from numpy's global generator, whose state belongs to RLlib's seed and to our checkpoints.
        """
        noise = np.random.random_sample((*shape, self._network.num_actions)).astype(np.float32)
        for kind, _, size, column, _ in self._network.parts:
            if kind == GAUSSIAN:
                noise[..., column : column + size] = np.random.standard_normal((*shape, size))
        return noise

    def act(
        self,
        observations: NDArray[np.float32],
        noise: NDArray[np.float32] | None = None,
        masks: NDArray[np.float32] | None = None,
        *,
        with_values: bool = False,
    ) -> Acted:
        """Actions for one vector step.

        Args:
            observations: float32 (N, n), the module's own (filtered, stacked ...).
            noise: float32 (N, a) of `noise`; None for the best action.
            masks: float32 (N, k), 1 allowed and 0 not; None for a space without.
            with_values: Whether to run the critic too.
        """
        network, arena = self._network, self._arena
        number = len(observations)
        actions = np.empty((number, network.num_actions), np.float32)
        log_probs = np.empty(number, np.float32)
        inputs = np.empty((number, network.num_inputs), np.float32)
        with_values = with_values and network.has_critic
        values = np.empty(number if with_values else 0, np.float32)
        self._kernel.act(
            arena.memory,
            arena.layers,
            network.parts,
            arena.sizes,
            network.log_std_clip,
            _floats(observations),
            self._none if masks is None else _floats(masks),
            self._none if noise is None else _floats(noise),
            actions,
            log_probs,
            inputs,
            values,
        )
        return Acted(_of_space(network.action_space, actions), log_probs, inputs, values if with_values else None)

    def values(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """The critic's values (N,) of observations (N, n)."""
        if not self._network.has_critic:
            raise NotCovered("the module has no critic: it was built for inference only")
        values = np.empty(len(observations), np.float32)
        self._kernel.evaluate(self._arena.memory, self._arena.layers, self._arena.sizes, _floats(observations), values)
        return values

    def update(
        self,
        batch: Mapping[str, Any],
        order: NDArray[np.int64],
        minibatch_size: int,
        *,
        entropy_coeff: float,
        kl_coeff: float = 0.0,
    ) -> dict[str, float]:
        """PPO's update: one step of Adam per `minibatch_size` rows of `order`.

        The loss, its gradients' clipping and the step are those of RLlib's PPOTorchLearner. Other than there, a
        minibatch whose gradients are not finite is skipped and counted; there, nan becomes 0.

        Args:
            batch: By RLlib's names, numpy arrays of B rows: obs (or a dict of vector and action_mask), actions,
                advantages (standardised already), action_logp, value_targets; action_dist_inputs with KL.
            order: Rows of the batch, see `batches.row_order`.
            minibatch_size: Rows per step.
            entropy_coeff: As scheduled now.
            kl_coeff: As adapted now; not looked at without `use_kl_loss`.

        Returns:
            RLlib's statistics of the last minibatch under RLlib's names (policy_loss, vf_loss, vf_loss_unclipped,
            vf_explained_var, entropy, mean_kl_loss, total_loss), its gradients' norm before clipping as
            `gradients_global_norm`, and `num_skipped` of this update.
        """
        config, arena, network = self._config, self._arena, self._network
        group = self._optimizer.param_groups[0]
        arena.sizes[Size.HAS_KL] = bool(config.use_kl_loss)
        hyper = np.zeros(len(Hyper))
        hyper[Hyper.CLIP], hyper[Hyper.VF_CLIP] = config.clip_param, config.vf_clip_param
        hyper[Hyper.VF_COEFF], hyper[Hyper.ENTROPY_COEFF] = config.vf_loss_coeff, entropy_coeff
        hyper[Hyper.KL_COEFF] = kl_coeff if config.use_kl_loss else 0.0
        hyper[Hyper.LR], hyper[Hyper.EPS] = float(group["lr"]), group["eps"]
        hyper[Hyper.BETA1], hyper[Hyper.BETA2] = (float(beta) for beta in group["betas"])
        hyper[Hyper.GRAD_CLIP] = config.grad_clip or 0.0
        hyper[Hyper.CLIP_BY] = CLIP_BY[config.grad_clip_by] if config.grad_clip else 0
        hyper[Hyper.LOG_STD_CLIP] = network.log_std_clip
        stats = np.zeros((self.num_threads, int(Stat.PADDING) + 1))
        records = _records(network, batch, bool(config.use_kl_loss))
        self.refresh()
        stats[:, Stat.STEPS] = self._read_moments()
        order = np.ascontiguousarray(order, np.int64)
        tensors = self._tensor_table()
        self._run(arena, network.parts, tensors, records, order, int(minibatch_size), hyper, stats)
        self._write_back(stats[0, Stat.STEPS])
        self.num_updates += -(-len(order) // minibatch_size)
        self.num_skipped += int(stats[0, Stat.SKIPPED])
        return self._summary(stats, hyper)

    def _run(self, arena: Arena, parts: NDArray[np.int64], *rest: Any) -> None:
        """`kernel.update` in as many threads; it holds no interpreter lock."""
        sync = np.zeros(24, np.int64)
        given = (arena.memory, arena.layers, parts, arena.sizes, *rest, sync)
        threads = [
            threading.Thread(target=self._kernel.update, args=(*given, part, self.num_threads))
            for part in range(1, self.num_threads)
        ]
        for thread in threads:
            thread.start()
        self._kernel.update(*given, 0, self.num_threads)
        for thread in threads:
            thread.join()

    def _tensor_table(self) -> NDArray[np.int64]:
        """Where the gradients of torch's parameters lie: first float, rows, columns, stride."""
        rows = []
        for tensor in self._network.tensors:
            layer = self._arena.layers[tensor.layer]
            stride = int(layer[Layer.STRIDE])
            start = int(layer[Layer.WEIGHTS]) + tensor.row * stride + tensor.column
            shape = tensor.parameter.shape
            rows.append([start, shape[1] if len(shape) == 2 else 1, shape[0], stride])
        return np.array(rows, np.int64)

    def _summary(self, stats: NDArray[np.float64], hyper: NDArray[np.float64]) -> dict[str, float]:
        norm, num_skipped = stats[0, Stat.GRAD_NORM], stats[0, Stat.SKIPPED]
        stats = stats.sum(axis=0)
        rows = max(1.0, stats[Stat.ROWS])
        surrogate, vf_loss, unclipped, entropy, kl = (float(total) / rows for total in stats[: Stat.KL + 1])
        with np.errstate(all="ignore"):
            spread, error = (
                (stats[squares] - stats[total] ** 2 / rows) / (rows - 1.0)
                for total, squares in ((Stat.TARGET, Stat.TARGET_2), (Stat.ERROR, Stat.ERROR_2))
            )
            explained = float(np.maximum(-1.0, 1.0 - error / (spread + 1e-6)))
        total = -surrogate + hyper[Hyper.VF_COEFF] * vf_loss - hyper[Hyper.ENTROPY_COEFF] * entropy
        return {
            "policy_loss": -surrogate,
            "vf_loss": vf_loss,
            "vf_loss_unclipped": unclipped,
            "vf_explained_var": explained,
            "entropy": entropy,
            "mean_kl_loss": kl,
            "total_loss": float(total + hyper[Hyper.KL_COEFF] * kl),
            "gradients_global_norm": float(norm),
            "num_skipped": int(num_skipped),
        }

    def _read_moments(self) -> float:
        """Adam's state into the arena; gives back its count of steps."""
        steps = 0.0
        for tensor in self._network.tensors:
            state = self._optimizer.state.get(tensor.parameter, {})
            for name, moment in (("exp_avg", Size.FIRST_MOMENTS), ("exp_avg_sq", Size.SECOND_MOMENTS)):
                self._view(tensor, moment)[...] = _numpy(state[name]) if state else 0.0
            steps = float(state["step"]) if state else 0.0
        return steps

    def _write_back(self, steps: float) -> None:
        """The arena's parameters and moments into torch's tensors."""
        import torch

        for tensor in self._network.tensors:
            _numpy(tensor.parameter)[...] = self._view(tensor, Size.PARAMETERS)
            if not steps:
                continue  # torch has no state before the first step either
            state = self._optimizer.state[tensor.parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(tensor.parameter)
                state["exp_avg_sq"] = torch.zeros_like(tensor.parameter)
            state["step"].fill_(steps)
            _numpy(state["exp_avg"])[...] = self._view(tensor, Size.FIRST_MOMENTS)
            _numpy(state["exp_avg_sq"])[...] = self._view(tensor, Size.SECOND_MOMENTS)

    def _view(self, tensor: Tensor, section: int) -> NDArray[np.float32]:
        """A parameter's place in the arena, shaped as the transpose of the torch tensor."""
        layer = self._arena.layers[tensor.layer]
        start, stride = int(self._arena.sizes[section] + layer[Layer.WEIGHTS]), int(layer[Layer.STRIDE])
        whole = self._arena.memory[start : start + int(layer[Layer.WEIGHT_ROWS]) * stride].reshape(-1, stride)
        if tensor.parameter.ndim == 2:
            outputs, inputs = tensor.parameter.shape
            return whole[:inputs, :outputs]
        return whole[tensor.row, tensor.column : tensor.column + len(tensor.parameter)]


def _optimizer_refusal(module: Any, optimizer: Any) -> str | None:
    import torch

    if type(optimizer) is not torch.optim.Adam:
        return f"the optimiser is {type(optimizer).__name__}, not Adam"
    if len(optimizer.param_groups) != 1:
        return "the optimiser has several groups of parameters"
    group = optimizer.param_groups[0]
    if {id(parameter) for parameter in group["params"]} != {id(parameter) for parameter in module.parameters()}:
        return "the optimiser does not train all of the network"
    for name in ("weight_decay", "amsgrad", "maximize"):
        if group.get(name):
            return f"the optimiser has {name}"
    return None


def _records(network: Any, batch: Mapping[str, Any], has_kl: bool) -> NDArray[np.float32]:
    """Everything about a row side by side, (B, -): a minibatch touches a few cache lines per row."""
    obs = batch["obs"]
    vector = obs["vector"] if isinstance(obs, Mapping) else obs
    start = network.num_observations
    action = start + Record.ACTION
    mask = action + network.num_actions
    old = mask + network.num_logits
    records = np.empty((len(vector), old + (network.num_inputs if has_kl else 0)), np.float32)
    records[:, :start] = vector
    records[:, start + Record.ADVANTAGE] = batch["advantages"]
    records[:, start + Record.LOG_PROB] = batch["action_logp"]
    records[:, start + Record.TARGET] = batch["value_targets"]
    records[:, start + Record.OLD_CONSTANT] = 0.0
    records[:, action:mask] = _columns(network.action_space, batch["actions"])
    if network.num_logits:
        records[:, mask:old] = obs["action_mask"]
    if has_kl:
        constant = records[:, start + Record.OLD_CONSTANT]
        _write_old_policy(network, np.asarray(batch["action_dist_inputs"]), records[:, old:], constant)
    return records


def _write_old_policy(
    network: Any, inputs: NDArray[np.float32], out: NDArray[np.float32], constant: NDArray[np.float32]
) -> None:
    """Probabilities, or means and variances, and the part of the KL divergence that the new policy has no say in."""
    for kind, first, size, _, _ in network.parts:
        part = inputs[:, first : first + size]
        if kind == CATEGORICAL:
            logs = part - part.max(axis=1, keepdims=True)
            logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
            probs = np.exp(logs)
            out[:, first : first + size] = probs
            constant += (probs * logs).sum(axis=1)
        else:
            log_std = inputs[:, first + size : first + 2 * size]
            out[:, first : first + size] = part
            out[:, first + size : first + 2 * size] = np.exp(2.0 * log_std)
            constant -= (log_std + 0.5).sum(axis=1)


def _columns(space: gym.Space[Any], actions: Any) -> NDArray[np.float32]:
    """Actions of the module's space as columns (B, a)."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([_columns(space[key], actions[key]) for key in sorted(space.spaces)], axis=1)
    array = np.asarray(actions)
    return array.reshape(len(array), -1)


def _of_space(space: gym.Space[Any], columns: NDArray[np.float32]) -> Any:
    """Columns (N, a) as actions of the module's space."""
    if isinstance(space, gym.spaces.Dict):
        actions, start = {}, 0
        for key in sorted(space.spaces):
            width = int(np.prod(space[key].shape or ()))
            actions[key] = _of_space(space[key], columns[:, start : start + width])
            start += width
        return actions
    if isinstance(space, gym.spaces.Discrete):
        return columns[:, 0].astype(np.int64)
    return columns.astype(np.int64) if isinstance(space, gym.spaces.MultiDiscrete) else columns


def _numpy(tensor: Any) -> NDArray[np.float32]:
    """A torch tensor's own memory, transposed."""
    array: NDArray[np.float32] = tensor.detach().numpy().T
    return array


def _floats(array: NDArray[Any]) -> NDArray[np.float32]:
    """The array as the kernel was compiled for it: float32, contiguous, writable."""
    if array.dtype == np.float32 and array.flags.carray:  # most are: np.require takes ten times as long to see it
        return array
    return np.require(array, np.float32, ("C", "W"))
