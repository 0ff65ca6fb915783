"""The column of Stable-Baselines3; run by a Python that has it (it is no dependency of this project).

    python baselines.py PAIR...

Prints one JSON line per pair: two iterations of PPO, with the first of its three policies that takes the spaces.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

LIMIT_S = 60
POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


def main() -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_late)
    import torch

    torch.set_num_threads(1)
    for pair in sys.argv[1:]:
        print(json.dumps({"pair": pair, **cell(pair)}), flush=True)


def cell(pair: str) -> dict[str, Any]:
    """Outcome of one pair; of the errors, the one of the policy that is meant for its observations."""
    began = time.time()
    errors: dict[str, BaseException] = {}
    for policy in POLICIES:
        signal.alarm(LIMIT_S)
        try:
            train(pair, policy)
        except Exception as error:
            errors[policy] = error
        else:
            return {"outcome": "trained", "detail": policy, "seconds": round(time.time() - began, 1)}
        finally:
            signal.alarm(0)
    from gymnasium import spaces
    from pairs import PAIRS

    error = errors["MultiInputPolicy" if isinstance(PAIRS[pair].observation, spaces.Dict) else "MlpPolicy"]
    words = " ".join(str(error).split())
    seconds = round(time.time() - began, 1)
    return {"outcome": "failed", "error": type(error).__name__, "detail": words[:300], "seconds": seconds}


def too_late(*_: Any) -> None:
    raise TimeoutError(f"over {LIMIT_S} s")


def train(pair: str, policy: str) -> None:
    import numpy as np
    import torch
    from pairs import Toy
    from stable_baselines3 import PPO

    torch.manual_seed(0)
    sim = Toy(pair)
    sim.reset(seed=0)
    model = PPO(policy, sim, n_steps=32, batch_size=16, n_epochs=1, seed=0, device="cpu", verbose=0)
    before = [value.detach().numpy().copy() for value in model.policy.parameters()]
    model.learn(total_timesteps=64)
    after = [value.detach().numpy() for value in model.policy.parameters()]
    if model.num_timesteps < 64 or all(map(np.array_equal, before, after)):
        raise RuntimeError("nothing was learned")
    if not all(np.isfinite(value).all() for value in after):
        raise FloatingPointError("weights are not finite")


if __name__ == "__main__":
    main()
