"""What differs from RLlib's own defaults, and why: settings by algorithm, and networks."""

from __future__ import annotations

from typing import Any

TRAINING_DEFAULTS: dict[str, dict[str, Any]] = {
    # RLlib's PPO: lr 5e-5, 30 epochs, and a value loss cut off at 10, which stops learning of any return larger than
    # about 3. These are the settings of the PPO paper (arXiv 1707.06347) and of its best-known implementations.
    "PPO": {
        "lr": 3e-4,
        "train_batch_size_per_learner": 4096,
        "minibatch_size": 128,
        "num_epochs": 10,
        "lambda_": 0.95,
        "clip_param": 0.2,
        "vf_clip_param": float("inf"),
        "vf_loss_coeff": 0.5,
        "entropy_coeff": 0.0,
        "grad_clip": 0.5,
        "grad_clip_by": "global_norm",
    },
    "APPO": {"lr": 3e-4, "grad_clip": 0.5, "grad_clip_by": "global_norm"},
    "IMPALA": {"lr": 3e-4, "grad_clip": 40.0},
    # One learning rate for all three, as in the SAC paper (arXiv 1812.05905, table 1).
    "SAC": {
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "lr": None,
        "train_batch_size_per_learner": 256,
        "num_steps_sampled_before_learning_starts": 1000,
    },
    "DQN": {"lr": 5e-4, "train_batch_size_per_learner": 64, "num_steps_sampled_before_learning_starts": 1000},
    "BC": {"lr": 1e-3},
    # RLlib's own CQL is refused by RLlib: it has the lr and the buffer of its old API stack.
    "CQL": {"lr": None, "replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 1}},
}
MODEL_DEFAULTS: dict[str, Any] = {
    "fcnet_hiddens": [64, 64],
    "fcnet_activation": "tanh",
    "vf_share_layers": False,
}
OFF_POLICY_MODEL: dict[str, Any] = {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
