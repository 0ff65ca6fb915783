"""An agent with a recording, made without training: what it should answer is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from tests.agents.served import write_agent

from platotk.agents.manifest import write_manifest

TANK = spaces.Dict(level=spaces.Box(0.0, 10.0, (1,), np.float32), flow=spaces.Box(0.0, 1.0, (2,), np.float32))
EPISODE = 60


def write_recorded_agent(folder: Path, *, has_memory: bool = False, offset: float = 0.0, num_rows: int = 300) -> Path:
    """An agent that sends the sum of what it sees (with memory: of all it has seen), called tank.

    Args:
        folder: Made.
        has_memory: Whether it sums over an episode.
        offset: By how much the recording is wrong from row 150 on.
        num_rows: Of the recording; an episode has 60.
    """
    write_agent(folder, TANK, has_memory=has_memory)
    rng, rows, total = np.random.default_rng(0), [], np.float32(0)
    for at in range(num_rows):
        level, flow = rng.uniform(0, 10, 1).astype(np.float32), rng.uniform(0, 1, 2).astype(np.float32)
        total = np.float32(0) if at % EPISODE == 0 or not has_memory else total
        total = np.float32(total + level.sum() + flow.sum())
        rows.append(
            {
                "observation": {"level": level.tolist(), "flow": flow.tolist()},
                "action": [float(total) + (offset if at >= 150 else 0.0)],
                "is_first": at % EPISODE == 0,
                "margin": None,
            }
        )
    (folder / "parity.json").write_text(json.dumps({"rows": rows}))
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for key in ("schema", "kind", "files", "manifest_sha256"):
        del content[key]
    write_manifest(folder, {**content, "name": "tank", "provenance": {"run": None, "checkpoint": None}})
    return folder
