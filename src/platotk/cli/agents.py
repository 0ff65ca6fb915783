"""`plato export`, `verify`, `act` and `serve`: what training is for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import PlatoError, ProjectError
from .base import (
    AgentRef,
    AsJson,
    CheckpointRef,
    Command,
    Controllers,
    ProjectPath,
    RunRef,
    app,
    controllers_root,
    examples,
    find_runs_dir,
    load_trained,
    parse_json,
)

if TYPE_CHECKING:
    from ..agents.policy import Policy
    from ..run import Run


LONGEST_EXAMPLE = 60


@app.command(
    cls=Command,
    epilog=examples("plato export", "plato export 20261122-2247 --checkpoint last", "plato export --json"),
)
def export(
    run: RunRef = None,
    checkpoint: CheckpointRef = "best",
    as_zip: Annotated[bool, typer.Option("--zip", help="Write it as one file too, beside the folder.")] = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Write the agent: a folder that needs no Ray, proven equal."""
    from ..agents import export as exporting
    from ..agents.archive import write_archive
    from ..agents.manifest import read_manifest

    found = load_trained(run, project)
    folder = exporting.export(found, checkpoint=checkpoint, on_event=console.exporting)
    archive = write_archive(folder) if as_zip else None
    manifest, files = read_manifest(folder)
    if as_json:
        about = about_agent(folder, manifest, files)
        console.json(about if archive is None else {**about, "archive": str(archive)})
    else:
        console.exported(folder, found, manifest, num_bytes(files), _example(found), archive=archive)


@app.command(cls=Command, epilog=examples("plato verify", "plato verify runs/night/agent", "plato verify --json"))
def verify(agent: AgentRef = None, project: ProjectPath = None, as_json: AsJson = False) -> None:
    """Replay an agent's recording: does it act as it was trained?"""
    from ..agents.agent import Agent

    folder = agent_folder(agent, project)
    proof = Agent.load(folder).verify()
    if as_json:
        console.json({"agent": str(folder), **proof.to_dict()})
    else:
        console.verified(folder, proof.to_dict())
    if not proof.is_equal:
        raise typer.Exit(1)


@app.command(
    cls=Command,
    epilog=examples(
        "plato act '{\"value\": 17}'",
        "plato act '[0.1, 0, 0, 0]' --from runs/night/agent",
        "plato act - < obs.json",
    ),
)
def act(
    observation: Annotated[
        str,
        typer.Argument(metavar="JSON", help="An observation in the sim's own space; - reads it from stdin."),
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="WHAT", help="An agent's folder, or a run. Default: the newest run."),
    ] = None,
    mask: Annotated[str | None, typer.Option(metavar="JSON", help="The action mask, where the sim has one.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Ask this checkpoint of the run: best, last, or an iteration."),
    ] = None,
    controllers: Controllers = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Answer one observation with the best action."""
    text = sys.stdin.read() if observation == "-" else observation
    value, mask_value = parse_json(text, "the observation"), None if mask is None else parse_json(mask, "--mask")
    policy, about = _policy(source, checkpoint, project, controllers)
    from .. import spaces
    from ..agents.guarded import read_observation

    session = policy.session()  # one observation is the first of an episode, for agents with memory too
    action = session.act(read_observation(policy, value), mask=mask_value)
    answer, did = spaces.to_json(policy.action_space, action), list(getattr(session, "guarded", ()))
    if did and not as_json:
        console.note("guarded: " + ", ".join(f"{one['guard']} {one['leaf']}" for one in did))
    console.json({"action": answer, **({"guarded": did} if did else {}), **about} if as_json else answer)


@app.command(
    cls=Command,
    epilog=examples(
        "plato serve", "plato serve runs/night/agent --port 9000", "plato serve --host 0.0.0.0 --key-file key"
    ),
)
def serve(
    agent: AgentRef = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Any but a loopback address needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Holds the key that clients must send. Default: $PLATO_SERVE_KEY."),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes that answer.")] = 1,
    max_body: Annotated[
        int | None,
        typer.Option(metavar="BYTES", min=1, help="Of a request. Default: 1 MiB, more for large observations."),
    ] = None,
    memory_ttl: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Forget a client that did not call for so long.")
    ] = 3600.0,
    max_clients: Annotated[int, typer.Option(metavar="N", min=1, help="Clients with a memory at one time.")] = 1000,
    controllers: Controllers = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Answer observations over HTTP, until Ctrl-C."""
    from ..agents import server

    folder = agent_folder(agent, project)

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            console.json({"url": event["url"], "agent": str(folder)})
            sys.stdout.flush()
        else:
            console.note(f"{folder} answers at {event['url']} (try it there in a browser; Ctrl-C stops it)")

    key = None if key_file is None else server.read_key(key_file)
    allowed = controllers_root(project) if controllers else False
    server.serve(
        folder,
        host=host,
        port=port,
        key=key,
        workers=workers,
        max_body_bytes=max_body,
        memory_ttl_s=memory_ttl,
        max_clients=max_clients,
        controllers=allowed,
        on_event=tell,
    )


def _policy(
    source: str | None, checkpoint: str | None, project: Path | None, controllers: bool
) -> tuple[Policy, dict[str, Any]]:
    """What acts: an exported agent where there is one, otherwise a run's checkpoint; and what `--json` says of it."""
    from ..agents.folders import is_agent, newest_agent

    if source is not None and is_agent(source):
        if checkpoint is not None:
            raise ProjectError(f"--checkpoint names one of a run, and {source} is an agent.", hint="Leave it out.")
        return _agent_policy(Path(source), controllers_root(project) if controllers else False)
    found = load_trained(source, project)
    agent = None if checkpoint is not None else newest_agent(found)
    if agent is not None:
        return _agent_policy(agent, controllers_root(project) if controllers else False)
    from ..agents.guarded import guard_policy
    from ..learning import policies

    path = policies.find_checkpoint(found, checkpoint or "best")
    policy = policies.load_policy(found, path)
    console.acting(path, policy.has_memory, run=found)
    return guard_policy(policy, found.project), {"agent": None, "run": found.name, "checkpoint": path.name}


def _agent_policy(folder: Path, controllers: bool | Path) -> tuple[Policy, dict[str, Any]]:
    from ..agents.agent import Agent

    agent = Agent.load(folder, controllers=controllers)
    console.acting(folder, agent.has_memory)
    return agent, {"agent": str(folder), "run": agent.manifest.get("provenance", {}).get("run")}


def about_agent(folder: Path, manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """What `--json` says of an agent: its manifest, less what only programs that load it need."""
    told = {key: value for key, value in manifest.items() if key not in ("adapter", "kind")}
    return {"agent": str(folder), "bytes": num_bytes(files), **told}


def num_bytes(files: dict[str, bytes]) -> int:
    """The size of an agent."""
    return sum(len(data) for data in files.values())


def agent_folder(name: str | None, path: Path | None) -> Path:
    """The agent of that name or path; the newest without one."""
    from ..agents.folders import find_agent, is_agent

    if name is not None and is_agent(name):
        return Path(name)  # without looking for a project, which takes a third of the time until `serve` answers
    return find_agent(name, runs_dir=find_runs_dir(path))


def _example(run: Run) -> str | None:
    """An observation of the run's sim that is short enough to be typed, as JSON."""
    from .. import spaces

    space = spaces.space_from_json(run.info["spaces"]["observation"])
    space.seed(0)
    exact = spaces.to_json(space, space.sample())
    for example in (_rounded(exact), exact):
        try:
            spaces.from_json(space, example)
        except PlatoError:
            continue  # rounded out of the bounds
        text = json.dumps(example)
        return text if len(text) <= LONGEST_EXAMPLE else None
    return None


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value
