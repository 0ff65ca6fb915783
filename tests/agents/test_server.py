"""The server, over a real socket: actions, errors that name the field, keys, limits, memory, and the page."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from playwright.sync_api import expect, sync_playwright
from tests.agents.served import KEY, ask, request, served, started, with_units, write_agent

from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.agents.openapi import openapi
from platotk.agents.requests import body_limit
from platotk.agents.schemas import bare, space_schema
from platotk.agents.server import require_key, serve
from platotk.agents.sessions import ClientSessions
from platotk.errors import ProjectError
from platotk.spaces import adapt, from_json, to_json

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
TANK = spaces.Dict(
    {
        "level": spaces.Box(0.0, 10.0, (1,), np.float32),
        "valves": spaces.Box(-1.0, 1.0, (2,), np.float32),
        "mode": spaces.Discrete(3, start=1),
        "drift": spaces.Box(-np.inf, np.inf, (1,), np.float32),
    }
)
OBSERVATION = {"level": 2.5, "valves": [0.5, 0.25], "mode": 2, "drift": 0.0}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    agent = write_agent(tmp_path_factory.mktemp("tank") / "agent", TANK)
    with_units(agent, observation={"level": "m"}, action={"action": "m3/h"})
    with served(agent) as address:
        yield address


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that remembers the sum of what it has seen."""
    space = spaces.Box(0.0, 100.0, (1,), np.float32)
    return write_agent(tmp_path_factory.mktemp("counter") / "agent", space, has_memory=True)


def test_one_observation_one_action(url: str) -> None:
    assert ask(f"{url}/act", {"observation": OBSERVATION}) == (200, {"action": [4.25]})
    assert ask(f"{url}/act", {"state": OBSERVATION}) == (200, {"action": [4.25]})


def test_a_batch(url: str) -> None:
    other = {**OBSERVATION, "level": 3.5}
    assert ask(f"{url}/act", {"observations": [OBSERVATION, other]}) == (200, {"actions": [[4.25], [5.25]]})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_old_plant_client_changes_only_the_host(url: str, method: str) -> None:
    assert ask(f"{url}/v1/prediction", OBSERVATION, method=method) == (200, 4.25)
    assert ask(f"{url}/v1", method="DELETE") == (204, "")


VALVES = spaces.Dict(
    valve=spaces.Box(0.0, 1.0, (1,), np.float32),
    jets=spaces.Box(0.0, 1.0, (2,), np.float64),
    pump=spaces.Discrete(2),
    gear=spaces.MultiDiscrete([3], start=[1]),
    on=spaces.MultiBinary(1),
    parts=spaces.Tuple((spaces.Box(-5, 5, (1,), np.int32), spaces.Box(0, 1, (), np.float32))),
)


def test_a_client_of_bonsai_reads_numbers() -> None:
    """action.valve is a number there; arrays of one are written as what they hold, on that route alone."""
    value = {"valve": [0.5], "jets": [0.25, 1.0], "pump": 1, "gear": [2], "on": [1], "parts": [[-3], 0.5]}
    written = bare(VALVES, to_json(VALVES, from_json(VALVES, value)))
    assert written == {"valve": 0.5, "jets": [0.25, 1.0], "pump": 1, "gear": 2, "on": 1, "parts": [-3, 0.5]}
    Draft202012Validator(space_schema(VALVES, is_bare=True)).validate(written)
    assert not Draft202012Validator(space_schema(VALVES, is_bare=True)).is_valid(value)
    document = openapi(adapt(TANK, VALVES), name="pump", units={"action": {"valve": "m3/h"}, "observation": {}})
    answers = document["paths"]["/v1/prediction"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    name = answers["$ref"].rpartition("/")[2]
    schema = document["components"]["schemas"][name]
    assert schema["properties"]["valve"] == {
        "type": "number",
        "minimum": 0.0,
        "maximum": 1.0,
        "x-unit": "m3/h",
        "description": "In m3/h.",
    }


def test_an_exported_agent_answers_such_a_client(adder_agent: Path) -> None:
    server = Server(Agent.load(adder_agent))
    (addend,) = request(server, "/act", {"observation": {"value": 17}})[1]["action"]["addend"]
    assert request(server, "/v1/prediction", {"value": 17}) == (200, {"addend": addend})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"observation": {**OBSERVATION, "level": "much"}}, "observation.level"),
        ({"observation": {**OBSERVATION, "level": 11}}, "observation.level"),
        ({"observations": [OBSERVATION, {**OBSERVATION, "valves": [0, 2]}]}, "observations[1].valves[1]"),
        ({"state": {**OBSERVATION, "mode": 0}}, "state.mode"),
        ({}, "observation"),
        ({"observation": OBSERVATION, "state": OBSERVATION}, "observation"),
        ({"observations": []}, "observations"),
        ({"observations": [0] * 4097}, "observations"),
        ({"observation": OBSERVATION, "clinet": "a"}, "clinet"),
        ({"observation": OBSERVATION, "client": 7}, "client"),
        ({"observation": OBSERVATION, "observed_at": "now"}, "observed_at"),
        ({"observation": OBSERVATION, "action_mask": [1]}, "action_mask"),
        (b'{"observation": 1, "observation": 2}', "observation"),
    ],
)
def test_an_error_names_the_field(url: str, body: object, field: str) -> None:
    status, answer = ask(f"{url}/act", body)
    assert (status, answer["field"]) == (422, field), answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"observation": NaN}',
        b'{"observation": {"drift": -Infinity}}',
        b'{"observation": {"level": 1e999, "valves": [0, 0], "mode": 1, "drift": 1e999}}',
        b'{"observation": ' + b"9" * 5000 + b"}",
        b'{"observation": ' + b"[" * 65 + b"]" * 65 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_of_ours_is_refused(url: str, body: bytes) -> None:
    status, answer = ask(f"{url}/act", body)
    assert status == 422
    assert answer["error"]


def test_a_large_body_is_refused_whether_announced_or_not(url: str) -> None:
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413")
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(40):
                connection.sendall(chunk)
        except OSError:
            pass  # refused before all of it was sent
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_unknown_places_and_methods(url: str) -> None:
    assert ask(f"{url}/nowhere")[0] == 404
    assert ask(f"{url}/act", method="GET")[0] == 405


def test_it_tells_how_it_is(url: str) -> None:
    ask(f"{url}/act", {"observation": OBSERVATION})
    assert ask(f"{url}/healthz") == (200, {"status": "alive"})
    assert ask(f"{url}/readyz") == (200, {"status": "ready"})
    assert set(ask(f"{url}/openapi.json")[1]["paths"]) >= {"/act"}
    text = ask(f"{url}/metrics")[1]
    assert 'plato_requests_total{route="/act",status="200"}' in text
    assert 'plato_request_seconds_bucket{le="+Inf"}' in text


def test_other_hosts_and_origins_are_refused(url: str) -> None:
    assert ask(f"{url}/act", {"observation": OBSERVATION}, headers={"Host": "evil.example"})[0] == 403
    assert ask(f"{url}/act", {"observation": OBSERVATION}, headers={"Origin": "http://evil.example"})[0] == 403


def test_a_key_opens_it(tmp_path: Path) -> None:
    agent = write_agent(tmp_path / "agent", TANK)
    with served(agent, host="0.0.0.0", key=KEY) as address:
        place = address.replace("0.0.0.0", "127.0.0.1")
        body = {"observation": OBSERVATION}
        assert ask(f"{place}/act", body)[0] == 401
        assert ask(f"{place}/act", body, headers={"Authorization": f"Bearer {KEY}x"})[0] == 401
        assert ask(f"{place}/act", body, headers={"Authorization": f"Bearer {KEY}"})[0] == 200
        assert ask(f"{place}/act", body, headers={"x-api-key": KEY})[0] == 200
        assert ask(f"{place}/v1/prediction", OBSERVATION, headers={"Authorization": basic("plato", KEY)})[0] == 200
        for wrong in (basic("plato", f"{KEY}x"), basic(KEY, ""), "Basic", "Basic ?", f"Basic {KEY}", KEY):
            assert ask(f"{place}/act", body, headers={"Authorization": wrong})[0] == 401, wrong
        assert challenges(f"{place}/v1/prediction") == ["Bearer", 'Basic realm="plato"']
        assert challenges(f"{place}/form.json") == ["Bearer"]  # a browser would ask for a password over the page
        assert ask(f"{place}/metrics")[0] == 401
        assert ask(f"{place}/form.json")[0] == 401
        assert ask(f"{place}/healthz")[0] == 200


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def challenges(url: str) -> list[str]:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(url, timeout=20)
    return raised.value.headers.get_all("www-authenticate")


CAMERA = spaces.Dict(camera=spaces.Box(0, 255, (250, 400, 3), np.uint8), speed=spaces.Box(-1, 1, (1,), np.float32))


def test_one_observation_always_fits_into_a_body(tmp_path: Path) -> None:
    """300,000 numbers, each of three digits, a comma and a space."""
    assert body_limit(TANK) == 1 << 20
    assert body_limit(CAMERA) > 5 * CAMERA["camera"].low.size
    agent = Agent.load(write_agent(tmp_path / "agent", CAMERA))
    body = json.dumps({"observation": {"camera": np.full((250, 400, 3), 255).tolist(), "speed": 0.5}}).encode()
    assert len(body) > 1_400_000
    status, answer = request(Server(agent), "/act", body)
    assert (status, answer["action"][0]) == (200, pytest.approx(255 * 300_000 + 0.5, rel=1e-6))
    assert request(Server(agent, max_body_bytes=1_000_000), "/act", body)[0] == 413


def test_the_limits_are_set_from_the_shell(counter: Path) -> None:
    with served(counter, max_body_bytes=1000, max_clients=2, memory_ttl_s=0.5) as url:
        assert ask(f"{url}/act", b" " * 1001)[0] == 413
        for client in "abc":
            assert ask(f"{url}/act", {"observation": 1, "client": client}) == (200, {"action": [1.0]})
        assert ask(f"{url}/act", {"observation": 1, "client": "c"}) == (200, {"action": [2.0]})
        assert ask(f"{url}/act", {"observation": 1, "client": "a"}) == (200, {"action": [1.0]})
        time.sleep(0.6)
        assert ask(f"{url}/act", {"observation": 1, "client": "c"}) == (200, {"action": [1.0]})


def test_limits_of_nothing_are_refused(counter: Path) -> None:
    for limits in ({"max_body_bytes": 0}, {"memory_ttl_s": -1.0}, {"max_clients": 0}):
        with pytest.raises(ProjectError, match="not above 0"):
            serve(counter, port=0, **limits)


@pytest.mark.parametrize(("host", "key"), [("0.0.0.0", None), ("plant.example", None), ("127.0.0.1", "short")])
def test_no_open_door(host: str, key: str | None) -> None:
    with pytest.raises(ProjectError, match="key"):
        require_key(host, key)


def test_each_client_has_its_own_memory(counter: Path) -> None:
    with served(counter) as url:
        for client, number, total in [("a", 1, 1.0), ("b", 10, 10.0), ("a", 2, 3.0)]:
            assert ask(f"{url}/act", {"observation": number, "client": client}) == (200, {"action": [total]})
        assert ask(f"{url}/reset", {"client": "a"})[0] == 200
        assert ask(f"{url}/act", {"observation": 5, "client": "a"}) == (200, {"action": [5.0]})
        assert ask(f"{url}/act", {"observation": 5, "client": "b"}) == (200, {"action": [15.0]})
        assert ask(f"{url}/v1/prediction", 7) == (200, 7.0)
        assert ask(f"{url}/v1", method="DELETE")[0] == 204
        assert ask(f"{url}/v1/prediction", 7) == (200, 7.0)
        assert ask(f"{url}/act", {"observations": [1, 2]})[0] == 422


def test_two_machines_that_share_a_memory_without_knowing_are_told(
    counter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(Agent.load(counter))

    def post(host: str, body: dict[str, object]) -> None:
        server._act(json.dumps(body).encode(), {"client": (host, 50000)})

    post("10.0.0.1", {"observation": 1})
    post("10.0.0.1", {"observation": 1})
    post("10.0.0.2", {"observation": 1, "client": "pump-3"})
    assert not caplog.records
    post("10.0.0.2", {"observation": 1})
    post("10.0.0.2", {"observation": 1})
    assert len(caplog.records) == 1
    assert "10.0.0.1 and from 10.0.0.2" in caplog.text


def test_memory_is_forgotten_in_time_and_in_number(counter: Path) -> None:
    now = [0.0]
    sessions = ClientSessions(Agent.load(counter), ttl_s=10.0, limit=2, clock=lambda: now[0])
    first, second = sessions.get("a"), sessions.get("b")
    assert sessions.get("a") is first
    sessions.get("c")  # b was unused for longest
    assert sessions.get("a") is first
    assert sessions.get("b") is not second
    now[0] = 11.0
    assert len(sessions) == 0
    assert sessions.get("a") is not first


def test_several_workers_answer_but_not_with_memory(counter: Path, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="2 workers"):
        serve(counter, workers=2)
    with served(write_agent(tmp_path / "agent", TANK), workers=2) as url:
        for _ in range(20):  # a connection each, so that both workers have their share
            assert ask(f"{url}/act", {"observation": OBSERVATION}) == (200, {"action": [4.25]})
        pages = [ask(f"{url}/metrics")[1] for _ in range(8)]
    for page in pages:
        assert 'plato_requests_total{route="/act",status="200"} 20\n' in page
        assert "plato_actions_total 20\n" in page
    assert 'plato_requests_total{route="/metrics",status="200"} 7\n' in pages[-1]


def test_a_request_under_way_is_answered_before_it_ends(counter: Path) -> None:
    body = b'{"observation": [17.0]}'
    with started(counter) as (url, process):
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            connection.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 23\r\n\r\n" + body[:9])
            assert ask(f"{url}/healthz")[0] == 200  # so that the first half has been read too
            process.terminate()
            deadline = time.monotonic() + 10
            while _takes_connections(place) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert process.poll() is None
            connection.sendall(body[9:])
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'{"action":[17.0]}')


def _takes_connections(place: SplitResult) -> bool:
    try:
        socket.create_connection((place.hostname, place.port), timeout=1).close()
    except OSError:
        return False
    return True


def test_looking_for_the_agent_of_a_project_does_not_open_the_project(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\n")
    agent = write_agent(tmp_path / "runs" / "night" / "agent", TANK)
    (agent.parent / "run.json").write_text("{}")
    script = (
        "import sys\nfrom platotk.agents import server\nfrom platotk.cli import app\n"
        "def serve(folder, **options):\n"
        "    server.Agent.load(folder)\n"
        "    print(folder, [name for name in ('platotk.project', 'yaml', 'ray', 'torch') if name in sys.modules])\n"
        "server.serve = serve\n"
        "app(['serve', '--controllers'], standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f"{agent} []"


def test_a_taken_port_is_said_so(counter: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ProjectError, match="cannot listen"):
        serve(counter, port=taken.getsockname()[1])


def test_a_person_moves_the_inputs_and_sees_the_action(url: str) -> None:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("no Chromium: sudo apt-get update && sudo apt-get install -y chromium")
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else wrong.append(request.url))
        page.goto(f"{url}/")
        page.wait_for_selector("body[data-ready]")
        for label, value in [("level", "2.5"), ("valves[0]", "0.5"), ("valves[1]", "0.25"), ("drift", "1")]:
            page.locator(".row", has_text=label).locator("input[type=number]").fill(value)
        page.locator("select").select_option("2")
        # Never wait_for_function: it evaluates a string, which the page's own policy forbids.
        expect(page.locator("#action")).to_contain_text("5.25")
        slider = page.locator(".row", has_text="level").locator("input[type=range]")
        assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0", "10")
        expect(page.locator(".row", has_text="level").locator("label")).to_have_text("level (m)")
        expect(page.locator("#units")).to_have_text("action in m3/h")
        slider.press("End")
        expect(page.locator("#action")).to_contain_text("12.75")
        page.goto(f"{url}/docs")
        page.wait_for_selector("body[data-ready]")
        assert "POST /act" in page.inner_text("body")
        assert "x-unit" in page.inner_text("body")
        browser.close()
    assert wrong == []


def test_an_exported_agent_is_served(adder_agent: Path) -> None:
    agent = Agent.load(adder_agent)
    with served(adder_agent) as url:
        status, answer = ask(f"{url}/act", {"observation": {"value": 17}})
    assert status == 200
    np.testing.assert_allclose(answer["action"]["addend"], agent.act({"value": 17})["addend"], rtol=1e-6)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
BODIES = (
    st.binary(max_size=64)
    | ANY_JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from(["observation", "observations", "state", "client", "action_mask", "observed_at"]), ANY_JSON
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(dict.fromkeys(OBSERVATION, ANY_JSON)).map(
        lambda value: json.dumps({"observation": value}).encode()
    )
)


def fuzz(url: str, num_bodies: int) -> None:
    @settings(max_examples=num_bodies, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(body=BODIES, route=st.sampled_from(["act", "v1/prediction", "reset"]))
    def send(body: bytes, route: str) -> None:
        assert ask(f"{url}/{route}", body, method="POST")[0] in (200, 422)

    send()


def test_no_body_breaks_it(url: str) -> None:
    fuzz(url, 60)


@pytest.mark.slow
def test_no_body_of_ten_thousand_breaks_it(url: str) -> None:
    fuzz(url, 10_000)
