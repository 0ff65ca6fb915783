"""Mutated bodies, observations and bundles by the thousand: never a 500, a traceback, NaN or a crash."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from gymnasium import spaces
from tests.agents.served import ask, served, with_guard, write_agent

from platotk.agents.agent import Agent
from platotk.errors import SimError
from platotk.spaces import from_json, from_json_batch

TANK = spaces.Dict(
    {
        "level": spaces.Box(0.0, 10.0, (1,), np.float32),
        "valves": spaces.Box(-1.0, 1.0, (2,), np.float32),
        "mode": spaces.Discrete(3, start=1),
        "drift": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        "grid": spaces.Box(-9, 9, (2, 2), np.int16),
        "on": spaces.MultiBinary(2),
        "word": spaces.Text(3, charset="abc"),
        "parts": spaces.Tuple((spaces.Discrete(2), spaces.Box(0.0, 1.0, (), np.float64))),
    }
)
GOOD = {
    "level": 2.5,
    "valves": [0.5, 0.25],
    "mode": 2,
    "drift": 0.0,
    "grid": [[1, 2], [3, 4]],
    "on": [0, 1],
    "word": "ab",
    "parts": [1, 0.5],
}
LEAVES = [None, True, False, "", "a", "\ud800", "1", -1, 0, 1, 1.9, -0.0, 1e300, 3.5e38, 2**53 + 1, 2**63, 2**64]
LEAVES += [10**400, float("nan"), float("inf"), -float("inf"), 5e-324, [], {}, [[]], [1], [0.5, None], {"a": 1}]
LEAVES += [[0] * 5000, {"level": 1}, "x" * 5000]
TOKENS = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b"\\ud800",
    b"\\u0000",
    b"\x00",
    b"\xff",
]
TOKENS += [
    b"9" * 5000,
    b"[" * 70,
    b"]" * 70,
    b"-",
    b"0x10",
    b"1.",
    b".5",
    b"+1",
    b"null",
    b"true",
    b"\xef\xbb\xbf",
    b"//",
]


TIMES = [None, 1.5, 0, -1e300, 1e300, 4e9, time.time()]


def changed(rng: random.Random, value: Any) -> Any:
    """The same JSON with one part replaced, removed or added somewhere in it."""
    if rng.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        return rng.choice(LEAVES)
    if isinstance(value, dict):
        value, key = dict(value), rng.choice(list(value))
        how = rng.random()
        if how < 0.1:
            del value[key]
        elif how < 0.2:
            value[rng.choice(["extra", "client", "state", "", "\ud800"])] = rng.choice(LEAVES)
        else:
            value[key] = changed(rng, value[key])
        return value
    value, at = list(value), rng.randrange(len(value))
    if rng.random() < 0.1:
        return value + value
    value[at] = changed(rng, value[at])
    return value


def garbled(rng: random.Random, body: bytes) -> bytes:
    """The same bytes with a few of them flipped, cut, repeated, or with something put between them."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.randint(1, 8))
        how = rng.randrange(5)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at:to]
        elif how == 2:
            data[at:at] = data[at:to] * rng.randint(1, 4)
        else:
            data[at:at] = rng.choice(TOKENS)
    return bytes(data)


def body_of(rng: random.Random, observation: Any, mask: Any = None) -> tuple[str, bytes]:
    """A route and a body for it: a good one, changed as JSON, as bytes, or both."""
    route = rng.choice(["/act", "/act", "/act", "/act", "/v1/prediction", "/reset"])
    good: Any = {"observation": observation, "client": rng.choice(["pump", "fan"]), "observed_at": rng.choice(TIMES)}
    if route == "/v1/prediction":
        good = observation
    elif route == "/reset":
        good = {"client": "pump"}
    elif rng.random() < 0.4:
        good = {"observations": [observation] * rng.randint(1, 4)}
    if mask is not None and route == "/act":
        good["action_mask"] = [mask] * len(good["observations"]) if "observations" in good else mask
    data = changed(rng, good) if rng.random() < 0.7 else good
    body = json.dumps(data, ensure_ascii=True).encode()
    return route, garbled(rng, body) if rng.random() < 0.5 else body


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"the answer holds {constant}")


def bombard(url: str, num_bodies: int, seed: int, *, observation: Any = GOOD, mask: Any = None) -> dict[int, int]:
    """Send them over one connection; how many answers of each status there were."""
    rng, link = random.Random(seed), http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    seen: dict[int, int] = {}
    for _ in range(num_bodies):
        route, body = body_of(rng, observation, mask)
        link.request("POST", route, body)
        response = link.getresponse()
        content = response.read()
        assert response.status in (200, 413, 422), (response.status, route, body[:300], content)
        answer = json.loads(content, parse_constant=refuse)
        assert "Traceback" not in content.decode()
        if response.status != 200:
            assert set(answer) == {"error", "field"}, answer
            assert len(content) < 2000, content
        seen[response.status] = seen.get(response.status, 0) + 1
    return seen


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(write_agent(tmp_path_factory.mktemp("tank") / "agent", TANK)) as address:
        yield address


def test_five_hundred_mutated_bodies(url: str) -> None:
    seen = bombard(url, 500, seed=1)
    assert seen[200] > 20, "most mutations should be wrong, and some still right"
    assert seen[422] > 200
    assert ask(f"{url}/act", {"observation": GOOD})[0] == 200


@pytest.mark.slow
def test_ten_thousand_mutated_bodies_and_the_memory_stays(tmp_path: Path) -> None:
    with served(write_agent(tmp_path / "agent", TANK)) as url:
        bombard(url, 2_000, seed=2)
        server = max(psutil.Process().children(), key=lambda process: process.create_time())
        before = server.memory_info().rss
        for part in range(5):
            bombard(url, 2_000, seed=100 + part)
        assert server.memory_info().rss - before < 10e6


GUARD: dict[str, Any] = {
    "clamp": {"action": {"low": -5.0, "high": 20.0}},
    "slew": {"action": {"per_step": 3.0, "per_second": 1.0}},
    "step_s": 1.0,
    "forbid": [{"when": {"level": {"below": 1.0}, "mode": {"equals": 2}}, "then": {"action": 0.5}}],
    "stale_s": 1e9,
    "on_stale": "hold",
    "on_missing": "hold",
    "on_out_of_range": "clip",
    "max_holds": 3,
    "fallback": 1.0,
}
CAMERA = spaces.Dict(camera=spaces.Box(0, 255, (12, 16, 3), np.uint8), speed=spaces.Box(-1, 1, (1,), np.float32))
SEEN = {"camera": np.full((12, 16, 3), 7).tolist(), "speed": 0.5}


def kind_of_agent(folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """An agent that does more than sum, and what is good for it."""
    if kind == "image":
        return write_agent(folder, CAMERA, num_rows=3), {"observation": SEEN}
    if kind == "masked":
        return write_agent(folder, TANK, num_choices=4, num_rows=3), {"mask": [0, 1, 1, 0]}
    agent = write_agent(folder, TANK, has_memory=kind != "guarded", num_rows=3)
    return (agent if kind == "recurrent" else with_guard(agent, **GUARD)), {}


KINDS = ("guarded", "recurrent", "recurrent and guarded", "masked", "image")


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_bodies_for_every_kind_of_agent(kind: str, tmp_path: Path) -> None:
    agent, good = kind_of_agent(tmp_path / "agent", kind)
    with served(agent) as url:
        seen = bombard(url, 120, seed=6, **good)
    assert seen[200] > 3, seen
    assert seen[422] > 20, seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_mutated_bodies_for_every_kind_of_agent(kind: str, tmp_path: Path) -> None:
    agent, good = kind_of_agent(tmp_path / "agent", kind)
    with served(agent) as url:
        bombard(url, 1_000, seed=7, **good)
        server = max(psutil.Process().children(), key=lambda process: process.create_time())
        before = server.memory_info().rss
        bombard(url, 2_000, seed=8, **good)
        assert server.memory_info().rss - before < 10e6


def judge(agent: Agent, data: Any) -> None:
    """What is read is in the space, what is acted is finite, and all else is an error that names the leaf."""
    try:
        observation = from_json(agent.observation_space, data)
    except SimError:
        with pytest.raises(SimError, match=r"^observations\[1\]"):
            from_json_batch(agent.observation_space, [GOOD, data], name="observations")
        return
    assert agent.observation_space.contains(observation)
    assert np.isfinite(agent.act(observation)).all()


def mutate_observations(agent: Agent, num_observations: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(num_observations):
        data: Any = GOOD
        for _ in range(rng.randint(1, 3)):
            data = changed(rng, data)
        judge(agent, data)


def test_five_hundred_mutated_observations(tmp_path: Path) -> None:
    mutate_observations(Agent.load(write_agent(tmp_path / "agent", TANK)), 500, seed=3)


@pytest.mark.slow
def test_ten_thousand_mutated_observations(tmp_path: Path) -> None:
    mutate_observations(Agent.load(write_agent(tmp_path / "agent", TANK)), 10_000, seed=4)


BUNDLES = """
import gc, json, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import logging, psutil
from tests.agents.served import request
from tests.agents.test_fuzz import GOOD, garble_bundle
from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.errors import PlatoError
logging.disable()
folder, num_bundles, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
good = {path.name: path.read_bytes() for path in folder.iterdir()}
refused, used, sizes = 0, 0, []
for number in range(num_bundles):
    garble_bundle(rng, folder, good)
    print(number, file=sys.stderr)
    try:
        agent = Agent.load(folder)
        agent.verify()
        status, answer = request(Server(agent), "/act", {"observation": GOOD})
        assert status == 200 or (status in (422, 500) and set(answer) == {"error", "field"}), (status, answer)
        used += 1
    except PlatoError:
        refused += 1
    if number % 50 == 49:
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
grown = max(sizes[1:], default=sizes[0]) - sizes[0]
print(json.dumps({"refused": refused, "used": used, "grown": grown}))
"""


def garble_bundle(rng: random.Random, folder: Path, good: dict[str, bytes]) -> None:
    """One file of the bundle garbled; half of the time the hashes are made right again, as a forger would."""
    from platotk.agents.manifest import write_manifest

    for name, data in good.items():
        (folder / name).write_bytes(data)
    name = rng.choice(sorted(good))
    if name == "parity.json" and rng.random() < 0.6:  # still JSON, and no longer a recording
        recording = json.loads(good[name])
        if rng.random() < 0.7:
            row = rng.randrange(len(recording["rows"]))
            recording["rows"][row] = changed(rng, recording["rows"][row])
        else:
            recording = changed(rng, recording)
        (folder / name).write_bytes(json.dumps(recording).encode())
        sign(folder, good)
        return
    if name == "manifest.json":
        content = changed(rng, json.loads(good[name])) if rng.random() < 0.8 else None
        if isinstance(content, dict) and rng.random() < 0.7:
            for key in ("schema", "kind", "files", "manifest_sha256"):
                content.pop(key, None)
            try:
                write_manifest(folder, content)
            except (ValueError, TypeError, RecursionError):  # NaN has no canonical form
                (folder / name).write_bytes(json.dumps(content).encode())
        else:
            data = good[name] if content is None else json.dumps(content).encode()
            (folder / name).write_bytes(garbled(rng, data))
        return
    (folder / name).write_bytes(garbled(rng, good[name]))
    if rng.random() < 0.8:
        sign(folder, good)


def sign(folder: Path, good: dict[str, bytes]) -> None:
    """Make the hashes right again."""
    from platotk.agents.manifest import write_manifest

    content = json.loads(good["manifest.json"])
    for key in ("schema", "kind", "files", "manifest_sha256"):
        content.pop(key)
    (folder / "manifest.json").unlink()
    write_manifest(folder, content)


def garble_bundles(folder: Path, num_bundles: int, seed: int) -> None:
    """In a process of its own, so that a crash of onnxruntime is seen for what it is."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", BUNDLES, str(folder), str(num_bundles), str(seed), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    seen = json.loads(done.stdout.splitlines()[-1])  # onnxruntime says things on stdout, too
    assert seen["refused"] > num_bundles // 3, seen
    assert seen["used"] > num_bundles // 20, seen
    assert seen["grown"] < 60e6, seen


def whole_agent(folder: Path) -> Path:
    """One with everything in it that a bundle may hold: memory, rows of a recording, guards."""
    agent = write_agent(folder, TANK, has_memory=True, num_rows=20)
    return with_guard(agent, clamp={"action": {"high": 100.0}}, on_missing="hold", fallback=[0.0])


def test_two_hundred_garbled_bundles(tmp_path: Path) -> None:
    garble_bundles(whole_agent(tmp_path / "agent"), 200, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_ten_thousand_garbled_bundles(tmp_path: Path, seed: int) -> None:
    garble_bundles(whole_agent(tmp_path / "agent"), 1000, seed=seed)
