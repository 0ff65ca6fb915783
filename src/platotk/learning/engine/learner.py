"""The learner of the engine: RLlib's PPO learner with its inner loop laid bare.

`EngineLearner` is plugged in as RLlib's learner class. Fragments of the engine's env runner are learned from in
columns: one pass for values and advantages, minibatches by index, a closed-form gradient of the loss, a fused
optimiser, and statistics of the last minibatch only, the one that RLlib keeps. State, schedules, metrics and
checkpoints are RLlib's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns as Names
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    LEARNER_CONNECTOR,
    LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_IN,
    LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_OUT,
)

from ..encoders import VECTOR
from .batches import TrainBatch, batch_columns, row_order, with_advantages
from .columns import taken
from .compiled import KernelChoice
from .fragments import Fragment, joined
from .heads import heads_of
from .memory import sequence_length
from .objective import CONSTANTS, Objective
from .optimisation import Descent, descent_for
from .recurrent import RecurrentForward, is_covered
from .runner import EngineRunner
from .sequences import SequenceBatch, Sequences, of_steps, sequences_of
from .timing import log_pipeline, log_steps

if TYPE_CHECKING:
    from .native import Native

NUM_SKIPPED = "num_nonfinite_updates"
"""Minibatches that were left out because their gradient was not finite, of the last iteration."""
GRADIENT_NORM = "gradients_default_optimizer_global_norm"


def overlap(*, algorithm: Any, **_: Any) -> None:
    """`on_algorithm_init`: where an env runner samples in the learner's process, its sims go on while it learns."""
    group, runner = algorithm.learner_group, algorithm.env_runner
    if isinstance(runner, EngineRunner) and group is not None and group.is_local:
        group._learner.meanwhile = runner.go_on


class EngineLearner(PPOTorchLearner):  # type: ignore[misc]
    """Learns from fragments; from anything else as RLlib does.

    Args:
        **kwargs: RLlib's own: `config`, `module_spec` ...

    Attributes:
        meanwhile: What to do while the kernel learns in a thread of its own; called with a function that tells whether
            it is done. None: it learns in this thread.
    """

    meanwhile: Callable[[Callable[[], bool]], None] | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        shares = "several learners share each update" if self.config.num_learners > 1 else None
        self._kernel = KernelChoice(self.config, shares)
        self._descent: Descent | None = None

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """RLlib's Adam, in its fused form."""
        parameters = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, fused=True),
            params=parameters,
            lr_or_lr_schedule=config.lr,
        )

    def update(self, *args: Any, training_data: TrainingData | None = None, **kwargs: Any) -> Any:
        """Learn from a batch; takes and gives back what RLlib's learner does."""
        if training_data is None and "episodes" in kwargs:
            training_data = TrainingData(episodes=kwargs.pop("episodes"))
        if training_data is None:
            return super().update(*args, **kwargs)
        training_data.validate()
        training_data.solve_refs()
        episodes = training_data.episodes
        if not episodes or not all(isinstance(one, Fragment) for one in episodes):
            return super().update(*args, training_data=training_data, **kwargs)
        return self._update_from(joined([one for one in episodes if len(one)]), **kwargs)

    def _update_from(
        self,
        fragment: Fragment,
        *,
        timesteps: dict[str, Any] | None = None,
        num_total_minibatches: int = 0,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        _no_metrics_reduce: bool = False,
        **_: Any,
    ) -> Any:
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        self._weights_seq_no += 1
        size, num_rows = minibatch_size or len(fragment), len(fragment)
        sequences = self._sequences(fragment)
        if sequences is not None:
            size, num_rows = sequences.per_minibatch(size), len(sequences)
        order = row_order(
            num_rows,
            size,
            num_epochs=num_epochs,
            num_minibatches=num_total_minibatches,
            shuffle=shuffle_batch_per_epoch and size < num_rows,
        )
        native = self._native() if sequences is None else None
        if native is not None:
            num_skipped = self._learn_compiled(native, fragment, order, size)
        else:
            num_skipped = self._learn(self._train_batch(fragment, sequences), order, size)
        self.metrics.log_value((DEFAULT_MODULE_ID, NUM_SKIPPED), num_skipped, reduce="sum")
        num_steps = len(order) if sequences is None else int(sequences.lengths[order].sum())
        lag = float(self._weights_seq_no - fragment.weights_seq_no)
        log_steps(self, num_steps, num_steps / (len(order) // size), lag=lag)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return None if _no_metrics_reduce else self.metrics.reduce()

    def _sequences(self, fragment: Fragment) -> Sequences | None:
        """A fragment in sequences, for a network with memory."""
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        return sequences_of(fragment, sequence_length(module)) if module.is_stateful() else None

    def _train_batch(self, fragment: Fragment, sequences: Sequences | None = None) -> TrainBatch:
        """Values, advantages and tensors of what was sampled."""
        began = time.perf_counter()
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        given = {"gamma": self.config.gamma, "lambda_": self.config.lambda_}
        if sequences is None:
            batch = TrainBatch(fragment, module.compute_values, self._device, **given)
        else:
            batch = SequenceBatch(fragment, sequences, module, self._device, **given)
        self._log_batch(len(fragment), time.perf_counter() - began)
        return batch

    def _log_batch(self, num_steps: int, seconds: float) -> None:
        """What RLlib measures of its learner connectors."""
        measured = {"general_advantage_estimation": seconds}
        log_pipeline(self.metrics, (ALL_MODULES, LEARNER_CONNECTOR), self._learner_connector, measured)
        for name in (LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_IN, LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_OUT):
            self.metrics.log_value((ALL_MODULES, name), num_steps)

    def _native(self) -> Native | None:
        """The compiled kernel, when it covers this network and is compiled."""
        return self._kernel.ask(lambda: (self.module[DEFAULT_MODULE_ID], self.config, self._optimizer()))

    def _learn_compiled(self, native: Native, fragment: Fragment, order: Any, size: int) -> int:
        """All minibatches of an update in one call of the kernel; how many of them were left out."""
        began = time.perf_counter()
        observations = fragment.observations
        native.refresh()
        values = native.values(observations[VECTOR] if isinstance(observations, dict) else observations)
        columns = with_advantages(fragment, values, gamma=self.config.gamma, lambda_=self.config.lambda_)
        columns[Names.OBS] = taken(observations, fragment.rows)
        self._log_batch(len(fragment), time.perf_counter() - began)
        entropy_coeff = self.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].get_current_value()
        kl_coeff = self.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]
        coefficients = {"entropy_coeff": float(entropy_coeff), "kl_coeff": float(kl_coeff)}
        said = self._with_meanwhile(lambda: native.update(columns, order, size, **coefficients))
        num_skipped = int(said.pop("num_skipped"))
        norm = said.pop("gradients_global_norm")
        self.metrics.log_dict(said, key=DEFAULT_MODULE_ID, window=1)
        self._log_norm(norm if math.isfinite(norm) else None)
        return num_skipped

    def _with_meanwhile(self, learn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.meanwhile is None:
            return learn()
        with ThreadPoolExecutor(1) as pool:  # whatever happens here, the update is ended first
            learning = pool.submit(learn)
            self.meanwhile(learning.done)
        return learning.result()

    def _learn(self, batch: TrainBatch, order: Any, size: int) -> int:
        """All minibatches of an update; how many of them were left out."""
        module = self.module[DEFAULT_MODULE_ID]
        module.train()
        objective = self._objective(module.unwrapped())
        if objective is not None:
            batch.columns[CONSTANTS] = objective.constants(batch.columns)
        # RLlib's forward_train switches every submodule into training mode again at each call.
        is_plain = type(module).forward_train is TorchRLModule.forward_train
        forward = module._forward_train if is_plain else module.forward_train
        if is_plain and is_covered(module):
            forward = RecurrentForward(module)
        descent = self._descent
        if descent is None:
            descent = self._descent = descent_for(self._optimizer(), self.config)
        descent.begin()
        num_left, num_skipped = len(order) // size, 0
        for columns in batch.minibatches(order, size):
            num_left -= 1
            seen = batch_columns(columns)
            out = forward(seen)
            if objective is None:
                norm = self._step_by_rllibs_loss(descent, seen, out)
            else:
                norm = self._step(descent, objective, columns, out, keep=num_left == 0)
            num_skipped += norm is None
        descent.finish()
        return num_skipped

    def _objective(self, module: Any) -> Objective | None:
        """The objective as it stands now, or None when the action distribution is one that only RLlib knows."""
        config = self.config
        heads = heads_of(module.get_train_action_dist_cls(), module.action_space)
        if heads is None:
            return None
        entropy_coeff = self.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].get_current_value()
        return Objective(
            heads,
            clip=config.clip_param,
            value_clip=config.vf_clip_param,
            value_coeff=config.vf_loss_coeff,
            entropy_coeff=float(entropy_coeff),
            kl_coeff=float(self.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) if config.use_kl_loss else None,
        )

    def _step(
        self, descent: Descent, objective: Objective, columns: dict[str, Any], out: dict[str, Any], *, keep: bool
    ) -> float | None:
        """Go one step down; the norm of the gradient, or None when it was not finite and nothing was done."""
        inputs = out[Names.ACTION_DIST_INPUTS]
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        values = module.compute_values(columns, embeddings=out.get(Names.EMBEDDINGS))
        inputs, values, columns = of_steps(columns, inputs, values)
        with torch.no_grad():
            gradients = objective.gradients(inputs, values, columns)
            kept = objective.statistics(inputs, values, columns) if keep else None
        ends = [
            (output, gradient)
            for output, gradient in zip((inputs, values), gradients, strict=True)
            if output.requires_grad
        ]
        descent.zero()
        if ends:
            torch.autograd.backward([output for output, _ in ends], [gradient for _, gradient in ends])
        norm = descent.step()
        if kept is not None:
            self.metrics.log_dict(kept, key=DEFAULT_MODULE_ID, window=1)
            self._log_norm(norm)
        return norm

    def _step_by_rllibs_loss(self, descent: Descent, batch: dict[str, Any], out: dict[str, Any]) -> float | None:
        """The same with RLlib's loss and torch's gradient of it, for distributions of the user's own."""
        config = self.config.get_config_for_module(DEFAULT_MODULE_ID)
        loss = self.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=config, batch=batch, fwd_out=out)
        descent.zero()
        if loss.requires_grad:
            loss.backward()
        norm = descent.step()
        self.metrics.log_value((DEFAULT_MODULE_ID, self.TOTAL_LOSS_KEY), loss.detach(), window=1)
        self._log_norm(norm)
        return norm

    def _log_norm(self, norm: float | None) -> None:
        """Where RLlib does."""
        config = self.config
        if norm is not None and (config.log_gradients or (config.grad_clip and config.grad_clip_by == "global_norm")):
            self.metrics.log_value((DEFAULT_MODULE_ID, GRADIENT_NORM), norm, window=1)

    def _optimizer(self) -> Any:
        return self.get_optimizer(DEFAULT_MODULE_ID)

    def _get_optimizer_state(self) -> Any:
        """As RLlib's own Adam would say it, so that RLlib restores it as its own."""
        state = super()._get_optimizer_state()
        for entry in state.values():
            for group in entry["state"]["param_groups"]:
                group["fused"] = None
        return state

    def _set_optimizer_state(self, state: Any) -> None:
        """What RLlib's Adam or ours has saved; the fused form stays."""
        super()._set_optimizer_state(state)
        for optimizer in self._named_optimizers.values():
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = True, None
