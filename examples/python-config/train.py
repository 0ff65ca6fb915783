"""A whole RLlib config in Python: whatever RLlib can do, plato can train.

`plato.yaml` names the function: `algorithm: train:config`. What belongs to the sim (its spaces, seeds, how
it is run and restarted) is added afterwards; sections in plato.yaml and `--set training.gamma=...` win over
this.
"""

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig


class CountArrivals(RLlibCallback):
    """Adds the metric `arrival_rate`: the share of episodes in which the cart came to rest."""

    def on_episode_end(self, *, episode, metrics_logger, **kwargs):
        arrived = float(episode.get_infos(-1).get("is_at_rest", False))
        metrics_logger.log_value("arrival_rate", arrived, window=100)


def config():
    """The config, as one would write it without plato."""
    return (
        PPOConfig()
        .training(
            lr=[[0, 1e-3], [60_000, 1e-4]],  # falls in a straight line over 60,000 steps
            entropy_coeff=[[0, 0.01], [60_000, 0.0]],
            gamma=0.98,
            train_batch_size_per_learner=2000,
            minibatch_size=250,
            num_epochs=10,
            vf_clip_param=float("inf"),
        )
        .rl_module(
            model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
        )
        .callbacks(CountArrivals)
    )
