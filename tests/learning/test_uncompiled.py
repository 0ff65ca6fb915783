"""A training leaves torch's compiler out, learns the same as with it, and does not stand in the way of who compiles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRAINING = """
import json, sys
import platotk
if sys.argv[1] == "with":
    import torch._inductor.config
project = platotk.Project(
    sim="CartPole-v1", training={"train_batch_size_per_learner": 256}, stop={"iterations": 2}, seed=3
)
lines = [[line["return_mean"], line["env_steps"]] for line in platotk.train(project).metrics()]
is_loaded = "torch._dynamo" in sys.modules
import torch
is_deterministic = torch.are_deterministic_algorithms_enabled()
import torch._inductor.config
torch.use_deterministic_algorithms(True)
assert torch._inductor.config.deterministic
doubled = torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([is_loaded, is_deterministic, doubled, lines]))
"""


def train(how: str, folder: Path) -> list[Any]:
    folder.mkdir()
    words = [sys.executable, "-c", TRAINING, how]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow  # that it is left out: tests/learning/test_local.py, too
def test_a_training_leaves_the_compiler_out_and_learns_the_same(tmp_path: Path) -> None:
    without, with_compiler = (train(how, tmp_path / how) for how in ("without", "with"))
    assert without[:3] == [False, True, [2.0, 2.0]]
    assert with_compiler[:3] == [True, True, [2.0, 2.0]]
    assert without[3] == with_compiler[3]
    assert len(without[3]) == 2
