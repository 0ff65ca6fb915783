"""The command line: each command parses, calls the Python function of its name, and `console` prints.

Nothing heavy is imported before a command runs, so that `plato --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import __version__, console
from .errors import PlatoError, ProjectError

if TYPE_CHECKING:
    from .agents.policy import Policy
    from .project import Project
    from .run import Run

STOPPED = 75
"""Exit code of a training that was stopped and can be resumed (EX_TEMPFAIL)."""
CURVES = "curves.html"
"""The page with a run's learning curve, in its folder."""
LONGEST_EXAMPLE = 60

ProjectPath = Annotated[
    Path | None,
    typer.Option("-C", metavar="PATH", help="The project. Default: the nearest plato.yaml upward."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, and nothing else there.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of plato.yaml by its dotted path. Repeatable."),
]
RunRef = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="A name, the beginning of one, or a path. Default: the newest."),
]
AgentRef = Annotated[
    str | None,
    typer.Argument(metavar="[AGENT]", help="An agent's folder, or a run for its newest one. Default: the newest."),
]
CheckpointRef = Annotated[str, typer.Option(metavar="WHICH", help="best, last, or an iteration.")]


class _Plato(TyperGroup):
    """Takes `--debug` anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        ctx.obj = list(args)
        return super().parse_args(ctx, args)


class _Command(TyperCommand):
    """Turns errors into two lines and an exit code, and reads a bare `--resume` as `--resume last`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for index, word in enumerate(args):
            if word == "--resume" and (index + 1 == len(args) or args[index + 1].startswith("-")):
                args = [*args[: index + 1], "last", *args[index + 1 :]]
                break
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if ctx.find_root().params.get("debug"):
                console.traceback(error)
            elif isinstance(error, PlatoError):
                console.error(error)
            else:
                console.traceback(error, skip_own_frames=True)
            raise typer.Exit(error.exit_code if isinstance(error, PlatoError) else 1) from None


def _examples(*lines: str) -> str:
    """An epilog that keeps its lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    cls=_Plato,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich is slow to load, and plain help is as clear
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "plato init --from simple-adder",
        "plato check",
        "plato train",
        "plato assess",
        "plato export",
    ),
)


def main() -> None:
    """The `plato` command."""
    app(prog_name="plato")


def _version(is_asked: bool) -> None:
    if is_asked:
        console.text(f"plato {__version__}")
        raise typer.Exit


@app.callback()
def plato(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """From a Gymnasium simulator to a trained agent, with Ray RLlib."""


@app.command(
    cls=_Command,
    epilog=_examples("plato init", "plato init --from CartPole-v1", "plato init adder --from simple-adder"),
)
def init(
    path: Annotated[
        Path,
        typer.Argument(metavar="[PATH]", help="The folder; made if need be. Default: here.", show_default=False),
    ] = Path(),
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="WHAT", help="A Gymnasium id, or simple-adder. Default: a sim.py to fill in."),
    ] = None,
    project: Annotated[Path | None, typer.Option("-C", metavar="PATH", help="Where PATH begins.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a project: a commented plato.yaml, and a sim.py to fill in."""
    from . import starters

    folder = (project or Path()) / path
    files = starters.init(folder, source=source)
    if as_json:
        console.json([str(file) for file in files])
    else:
        console.started(folder, files)


@app.command(cls=_Command, epilog=_examples("plato check", "plato check --json", "plato check --set algorithm=SAC"))
def check(
    project: ProjectPath = None,
    overrides: Overrides = None,
    time_limit_s: Annotated[
        float,
        typer.Option("--time-limit", metavar="SECONDS", min=1, help="How long the whole check may take."),
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with the simulator, and how to cure it."""
    from .sims import checks

    loaded = _project(project, overrides)
    with console.waiting(f"Checking {loaded.name}"):
        findings = checks.check(loaded, time_limit_s=time_limit_s)
    if as_json:
        console.json([finding.to_dict() for finding in findings])
    else:
        console.findings(findings, loaded)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command(
    cls=_Command,
    epilog=_examples(
        "plato train",
        "plato train --set training.lr=1e-3 --seed 8",
        "plato train --resume",
        "plato train --run runs/night",
    ),
)
def train(
    ctx: typer.Context,
    project: ProjectPath = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The run's folder: made, or continued when it is there."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="[RUN]", help="Continue a run. Without a RUN: the newest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="The same as --set seed=N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train until a stop rule is met. Ctrl-C saves a checkpoint and exits with 75; --resume goes on."""
    from .learning import supervisor

    if run is not None and resume is not None:
        raise ProjectError(
            "--run and --resume exclude each other.",
            hint="--run PATH continues that folder when it is a run already.",
        )
    changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    if resume is not None:
        resumed = _run(None if resume == "last" else resume, project)
        loaded = resumed.project.override(changes) if changes else resumed.project
    else:
        resumed, loaded = None, _project(project, changes)
    if not supervisor.is_supervised():
        again = [word for change in changes for word in ("--set", change)] + ["--json"] * as_json
        code = supervisor.supervise(
            supervisor.python_command(*ctx.find_root().obj),
            resume_command=lambda folder: supervisor.python_command("train", "--resume", folder, *again),
            tell=console.note,
            step_timeout_s=loaded.step_timeout_s,
        )
        raise typer.Exit(code)
    from .learning import curves, training

    with console.TrainingView() as view:
        trained = training.train(loaded, run=run, resume=resumed, on_event=view)
        view.ended(trained, curves.write_curves([trained], trained.path / CURVES))
    if as_json:
        console.json(_trained(trained))
    raise typer.Exit(STOPPED if trained.status == "stopped" else 0)


@app.command(
    cls=_Command,
    epilog=_examples("plato assess", "plato assess --episodes 500 --seed 1", "plato assess --json"),
)
def assess(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[RUN or AGENT]", help="A run, or an agent's folder. Default: the newest run."),
    ] = None,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="How many episodes to play.")] = 100,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of the episodes; the same seed, the same episodes."),
    ] = None,
    checkpoint: CheckpointRef = "best",
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Play seeded episodes without exploration: how good is it?"""
    from .agents.folders import is_agent, run_of
    from .assessment import assess as assessing

    agent = Path(what) if what is not None and is_agent(what) else None
    found = _run(what, project) if agent is None else run_of(agent)
    with console.counting("Playing") as count:
        assessment = assessing.assess(
            agent or found,
            project=None if found is not None else _project(project, None),
            episodes=episodes,
            seed=assessing.DEFAULT_SEED if seed is None else seed,
            checkpoint=checkpoint,
            on_event=lambda event: count(event["done"], event["episodes"]),
        )
    if as_json:
        console.json({**assessment.summary(), "rows": assessment.rows})
    else:
        console.assessed(assessment, found if agent is None else None)


@app.command(
    cls=_Command,
    epilog=_examples("plato export", "plato export 20261122-2247 --checkpoint last", "plato export --json"),
)
def export(
    run: RunRef = None,
    checkpoint: CheckpointRef = "best",
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Write the agent: a folder that needs no Ray, proven equal."""
    from .agents import export as exporting
    from .agents.manifest import read_manifest

    found = _run(run, project)
    folder = exporting.export(found, checkpoint=checkpoint, on_event=console.exporting)
    manifest, files = read_manifest(folder)
    if as_json:
        console.json(_about_agent(folder, manifest, files))
    else:
        console.exported(folder, found, manifest, _num_bytes(files), _example(found))


@app.command(cls=_Command, epilog=_examples("plato verify", "plato verify runs/night/agent", "plato verify --json"))
def verify(agent: AgentRef = None, project: ProjectPath = None, as_json: AsJson = False) -> None:
    """Replay an agent's recording: does it act as it was trained?"""
    from .agents.agent import Agent

    folder = _agent(agent, project)
    proof = Agent.load(folder).verify()
    if as_json:
        console.json({"agent": str(folder), **proof.to_dict()})
    else:
        console.verified(folder, proof.to_dict())
    if not proof.is_equal:
        raise typer.Exit(1)


@app.command(
    cls=_Command,
    epilog=_examples(
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
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Answer one observation with the best action."""
    text = sys.stdin.read() if observation == "-" else observation
    value, mask_value = _parsed(text, "the observation"), None if mask is None else _parsed(mask, "--mask")
    policy, about = _policy(source, checkpoint, project)
    from . import spaces

    session = policy.session()  # one observation is the first of an episode, for agents with memory too
    action = session.act(spaces.from_json(policy.observation_space, value), mask=mask_value)
    answer = spaces.to_json(policy.action_space, action)
    console.json({"action": answer, **about} if as_json else answer)


@app.command(
    cls=_Command,
    epilog=_examples(
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
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Answer observations over HTTP, until Ctrl-C."""
    from .agents import server

    folder = _agent(agent, project)

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            console.json({"url": event["url"], "agent": str(folder)})
            sys.stdout.flush()
        else:
            console.note(f"{folder} answers at {event['url']} (try it there in a browser; Ctrl-C stops it)")

    key = None if key_file is None else server.read_key(key_file)
    server.serve(folder, host=host, port=port, key=key, workers=workers, on_event=tell)


@app.command(cls=_Command, epilog=_examples("plato runs", "plato runs --json"))
def runs(project: ProjectPath = None, as_json: AsJson = False) -> None:
    """List the runs, newest first."""
    from .learning import curves
    from .run import runs as list_runs

    rows = [curves.summary(found) for found in list_runs(_runs_dir(project))]
    if as_json:
        console.json(rows)
    else:
        console.runs(rows, _runs_dir(project))


@app.command(cls=_Command, epilog=_examples("plato show", "plato show 20261122-2247", "plato show runs/night/agent"))
def show(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN or AGENT]", help="A run, or an agent's folder. Default: the newest run."),
    ] = None,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Show one run with its learning curve, or one agent."""
    from .agents.folders import is_agent

    if run is not None and is_agent(run):
        return _show_agent(Path(run), as_json)
    found = _run(run, project)
    from .learning import curves

    page = curves.write_curves([found], found.path / CURVES)
    summary = curves.summary(found)
    if as_json:
        console.json({**summary, "page": None if page is None else str(page)})
    else:
        console.run(found, summary, page)


@app.command(cls=_Command, epilog=_examples("plato compare 20261122-2247 20261123-0101"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two or more runs, like show's.")],
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: figures, and a page with their curves."""
    if len(runs) < 2:
        raise ProjectError(f"compare takes two runs or more, got {len(runs)}.", hint="plato runs lists them.")
    found = [_run(name, project) for name in runs]
    from .learning import curves

    page = curves.write_curves(found, found[0].path.parent / "compare.html")
    compared = curves.compare(found)
    if as_json:
        console.json({"runs": compared, "page": None if page is None else str(page)})
    else:
        console.compared(compared, page)


@app.command(cls=_Command, epilog=_examples("plato schema > plato.schema.json"))
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="Nothing else is ever printed.")] = False,
) -> None:
    """Print the JSON Schema of plato.yaml, for editors."""
    from .project import Project

    console.json(Project.json_schema())


def _project(path: Path | None, overrides: list[str] | None) -> Project:
    from .project import Project

    return Project.load(Project.find() if path is None else path, overrides=overrides or [])


def _runs_dir(path: Path | None) -> Path:
    """Where the project's runs are: beside the nearest plato.yaml, or here when there is none."""
    from .project import Project

    try:
        root = Project.find(path).parent
    except ProjectError:
        root = path or Path()
    return root / "runs"


def _run(name: str | None, path: Path | None) -> Run:
    from .run import find_run

    return find_run(name, runs_dir=_runs_dir(path))


def _policy(source: str | None, checkpoint: str | None, project: Path | None) -> tuple[Policy, dict[str, Any]]:
    """What acts: an exported agent where there is one, otherwise a run's checkpoint; and what `--json` says of it."""
    from .agents.folders import is_agent, newest_agent

    if source is not None and is_agent(source):
        if checkpoint is not None:
            raise ProjectError(f"--checkpoint names one of a run, and {source} is an agent.", hint="Leave it out.")
        return _agent_policy(Path(source))
    found = _run(source, project)
    agent = None if checkpoint is not None else newest_agent(found)
    if agent is not None:
        return _agent_policy(agent)
    from .learning import policies

    path = policies.find_checkpoint(found, checkpoint or "best")
    policy = policies.load_policy(found, path)
    console.acting(path, policy.has_memory, run=found)
    return policy, {"agent": None, "run": found.name, "checkpoint": path.name}


def _agent_policy(folder: Path) -> tuple[Policy, dict[str, Any]]:
    from .agents.agent import Agent

    agent = Agent.load(folder)
    console.acting(folder, agent.has_memory)
    return agent, {"agent": str(folder), "run": agent.manifest.get("provenance", {}).get("run")}


def _show_agent(folder: Path, as_json: bool) -> None:
    from .agents.manifest import read_manifest

    manifest, files = read_manifest(folder)
    if as_json:
        console.json(_about_agent(folder, manifest, files))
    else:
        console.agent(folder, manifest, _num_bytes(files))


def _about_agent(folder: Path, manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """What `--json` says of an agent: its manifest, less what only programs that load it need."""
    told = {key: value for key, value in manifest.items() if key not in ("adapter", "kind")}
    return {"agent": str(folder), "bytes": _num_bytes(files), **told}


def _num_bytes(files: dict[str, bytes]) -> int:
    return sum(len(data) for data in files.values())


def _agent(name: str | None, path: Path | None) -> Path:
    from .agents.folders import find_agent

    return find_agent(name, runs_dir=_runs_dir(path))


def _trained(run: Run) -> dict[str, Any]:
    """What `plato train --json` says."""
    last = (run.metrics() or [{}])[-1]
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "reason": run.info.get("reason"),
        "iteration": last.get("iteration", 0),
        "env_steps": last.get("env_steps", 0),
        "return_mean": last.get("return_mean"),
        "best": None if run.best is None else str(run.best),
    }


def _example(run: Run) -> str | None:
    """An observation of the run's sim that is short enough to be typed, as JSON."""
    from . import spaces

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


def _parsed(text: str, what: str) -> Any:
    """JSON from the command line.

    Raises:
        ProjectError: It is not JSON (wrong usage: exit code 2).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ProjectError(
            f"{what} is not JSON: {error.msg} at character {error.pos + 1} of {_short(text)}",
            hint="Quote it for the shell, with double quotes inside: plato act '{\"value\": 17}'",
        ) from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
