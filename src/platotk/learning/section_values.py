"""Values of a project's sections that cannot be: well-known numbers out of their range, and what RLlib itself refuses.

`out_of_range` needs no RLlib, `refused` asks the finished config; both give the dotted key and what is wrong with it,
so that `plato check` and `plato train` say the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Sections = Mapping[str, Mapping[str, Any]]
Wrong = tuple[str, str]
"""Dotted key of the project, and what is wrong there."""

OFFLINE = ("BC", "MARWIL", "CQL", "IQL")
"""Algorithms that learn from recorded episodes."""
NO_DATA = "{name} learns from recorded episodes, and offline_data names none"
DATA_CURE = "offline_data: {input_: [episodes/]}   # Parquet, for one: see offline data in RLlib's documentation"
UNFIT = {
    "DreamerV3": "RLlib's DreamerV3 has batches and networks of its own kind, and platotk sets up neither; it needs PIL"
}
"""Algorithms of RLlib that cannot be trained here by name, and why."""
CQL_UPDATES = 100
"""Of one iteration: with 1, RLlib 2.60's CQL fails at its first update in this process."""


class Range(NamedTuple):
    """Where a number may lie.

    Attributes:
        low: The least.
        high: The greatest.
        is_above: Whether it must be more than `low`.
        is_whole: Whether it counts something.
        takes: What may stand there instead: the word "auto", a "schedule" of [step, value] pairs, or a "pair".
    """

    low: float
    high: float = math.inf
    is_above: bool = False
    is_whole: bool = False
    takes: str = ""

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if self.high < math.inf:
            between = f"above {self.low:g}, up to" if self.is_above else f"from {self.low:g} to"
            return f"{kind} {between} {self.high:g}"
        return f"{kind} above {self.low:g}" if self.is_above else f"{kind} of {self.low:g} or more"

    def holds(self, value: Any) -> bool:
        """Whether a value may stand there; what is neither text nor number is left to RLlib."""
        if isinstance(value, str):
            return value == self.takes == "auto"
        if isinstance(value, (list, tuple)):
            if self.takes == "schedule":
                return all(
                    isinstance(point, (list, tuple)) and len(point) == 2 and self.holds(point[1]) for point in value
                )
            return self.takes == "pair" and len(value) == 2 and all(map(self.holds, value))
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            return not isinstance(value, (bool, Mapping))
        if math.isnan(value) or (self.is_whole and not float(value).is_integer()):
            return False
        number = float(value)
        return (self.low < number if self.is_above else self.low <= number) and number <= self.high


_SHARE, _NOT_NEGATIVE, _POSITIVE = Range(0, 1), Range(0), Range(0, is_above=True)
_COUNT, _COUNT_OR_NONE = Range(1, is_whole=True), Range(0, is_whole=True)
_RATE = Range(0, takes="schedule")

RANGES: dict[str, dict[str, Range]] = {
    "training": {
        "lr": _RATE,
        "actor_lr": _RATE,
        "critic_lr": _RATE,
        "alpha_lr": _RATE,
        "entropy_coeff": _RATE,
        "gamma": _SHARE,
        "lambda_": _SHARE,
        "clip_param": _POSITIVE,
        "vf_clip_param": _POSITIVE,
        "vf_loss_coeff": _NOT_NEGATIVE,
        "kl_coeff": _NOT_NEGATIVE,
        "kl_target": _NOT_NEGATIVE,
        "grad_clip": _POSITIVE,
        "tau": Range(0, 1, is_above=True),
        "initial_alpha": _POSITIVE,
        "train_batch_size_per_learner": _COUNT,
        "minibatch_size": _COUNT,
        "num_epochs": _COUNT,
        "n_step": Range(1, is_whole=True, takes="pair"),
        "num_steps_sampled_before_learning_starts": _COUNT_OR_NONE,
        "target_network_update_freq": _NOT_NEGATIVE,
    },
    "env_runners": {
        "num_envs_per_env_runner": _COUNT,
        "num_cpus_per_env_runner": _NOT_NEGATIVE,
        "num_gpus_per_env_runner": _NOT_NEGATIVE,
        "rollout_fragment_length": Range(1, is_whole=True, takes="auto"),
        "sample_timeout_s": _NOT_NEGATIVE,
    },
    "learners": {
        "num_learners": _COUNT_OR_NONE,
        "num_cpus_per_learner": Range(0, takes="auto"),
        "num_gpus_per_learner": _NOT_NEGATIVE,
    },
}

_ALONE = {"training": {"lr", "gamma", "lambda_"}, "env_runners": {"num_env_runners", "num_envs_per_env_runner"}}
"""Keys whose range is all there is to say about them; of others RLlib may know more."""


def out_of_range(sections: Sections) -> Iterator[Wrong]:
    """Well-known numbers that are not where they may be."""
    for section, ranges in RANGES.items():
        for key, value in (sections.get(section) or {}).items():
            if value is not None and key in ranges and not ranges[key].holds(value):
                also = {"schedule": ", or a list of [step, value]", "auto": ", or auto", "pair": ", or two"}
                expected = f"{ranges[key]}{also.get(ranges[key].takes, '')}"
                yield f"{section}.{key}", f"{key} is {value!r}; expected {expected}"


def needs_rllib(name: str, sections: Sections) -> bool:
    """Whether there is anything in the sections that only RLlib can judge."""
    given = {(section, key) for section, values in sections.items() for key in values or {}}
    known = {(section, key) for section, keys in _ALONE.items() for key in keys}
    # Some algorithms do not take what all others do, SAC its lr for one.
    return bool(given - known if name in ("PPO", "APPO", "IMPALA", "DQN") else given)


def refused(config: Any, sections: Sections) -> Wrong | None:
    """What RLlib's own validation has against a finished config, or None."""
    try:
        config.copy(copy_frozen=False).validate()
    except Exception as error:
        text = " ".join(str(error).split()).partition(" To suppress all validation errors")[0]
        given = [(section, key) for section, values in sections.items() for key in values or {}]
        named = [f"{section}.{key}" for section, key in given if re.search(rf"\b{re.escape(key)}\b", text)]
        place = next(iter([*named, *(section for section, _ in given)]), "algorithm")
        return place, f"RLlib refuses {'the config' if place == 'algorithm' else place}: {text}"
    kind = getattr(config.algo_class, "__name__", "")
    if kind == "CQL" and not config.num_learners and config.dataset_num_iters_per_learner == 1:
        place = "offline_data.dataset_num_iters_per_learner"
        return place, f"RLlib's CQL fails with {place.partition('.')[2]}: 1; it may be 2 or more, such as {CQL_UPDATES}"
    return None
