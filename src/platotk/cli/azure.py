"""`plato azure`: make, look at and delete what a project needs at Azure, see what is wrong, write `az ml` files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ProjectError
from .base import AsJson, Command, ProjectPath, Yes, app, examples, load_project, require_yes

if TYPE_CHECKING:
    from ..azure.options import AzureOptions
    from ..project import Project

azure = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("plato azure doctor", "plato azure up", "plato train --on azure", "plato azure down"),
    help="Make what a project needs at Azure; look, delete.",
)
app.add_typer(azure, name="azure")

Name = Annotated[
    str | None, typer.Option("--on", metavar="NAME", help="Which one under backends:. Default: the only one.")
]


@azure.command(cls=Command, epilog=examples("plato azure up --dry-run", "plato azure up", "plato azure up --yes"))
def up(
    on: Name = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and make nothing.")] = False,
    yes: Yes = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Make what is missing: group, workspace, cluster, environment."""
    from ..azure import plans, resources
    from ..azure.client import connect

    loaded, options = _project_and_options(project, on)
    with console.waiting("looking at what is there"):
        plan = plans.plan_up(connect(options), loaded)
    console.azure_plan(plan)
    if not dry_run and not plan.is_done:
        require_yes("Make this?", yes, if_alone=True)
        resources.up(options, loaded, plan=plan, tell=console.note)
    if as_json:
        console.json({**plan.to_dict(), "dry_run": dry_run})
    else:
        console.azure_made(plan, loaded, _name(loaded, on), dry_run=dry_run)


@azure.command(cls=Command, epilog=examples("plato azure status"))
def status(on: Name = None, project: ProjectPath = None, as_json: AsJson = False) -> None:
    """Say what is there, whose it is, and how many nodes are up."""
    from ..azure import resources

    _, options = _project_and_options(project, on)
    with console.waiting("asking Azure"):
        found = resources.status(options)
    if as_json:
        console.json(found)
    else:
        console.azure_status(found)


@azure.command(cls=Command, epilog=examples("plato azure down", "plato azure down --yes"))
def down(on: Name = None, yes: Yes = False, project: ProjectPath = None, as_json: AsJson = False) -> None:
    """Delete what `plato azure up` made, and nothing else."""
    from ..azure import plans, resources
    from ..azure.client import connect

    _, options = _project_and_options(project, on)
    with console.waiting("looking at what is there"):
        plan = plans.plan_down(connect(options))
    console.azure_plan(plan)
    if not plan.is_done:
        if not yes and not console.confirmed("Delete this?"):
            raise ProjectError("nothing was deleted.", hint="plato azure down --yes deletes without asking.")
        plan = resources.down(options, tell=console.note)
    if as_json:
        console.json(plan.to_dict())


@azure.command(cls=Command, epilog=examples("plato azure doctor", "plato azure doctor --json"))
def doctor(on: Name = None, project: ProjectPath = None, as_json: AsJson = False) -> None:
    """Find what Azure would refuse, with its cure; exits with 1."""
    from ..azure.doctor import examine

    loaded, options = _project_and_options(project, on)
    with console.waiting("asking Azure"):
        found = examine(options, loaded.root)
    if as_json:
        console.json([one.to_dict() for one in found])
    else:
        console.azure_findings(found, "plato train --on " + _name(loaded, on))
    if any(one.severity == "error" for one in found):
        raise typer.Exit(1)


@azure.command("yaml", cls=Command, epilog=examples("plato azure yaml", "plato azure yaml --out pipeline"))
def yaml_(
    on: Name = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help="The folder; made.")] = Path("azure"),
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Write files for az ml, and the lines that use them."""
    from ..azure import yaml_files

    loaded, options = _project_and_options(project, on)
    files = yaml_files.write(options, loaded, out)
    if as_json:
        console.json({"files": [str(path) for path in files], "commands": yaml_files.commands(options)})
    else:
        console.azure_files(files, yaml_files.commands(options), out)


@azure.command(cls=Command, epilog=examples("plato azure environment", "plato azure environment --migrate conda.yml"))
def environment(
    on: Name = None,
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Write its build context into this folder.")] = None,
    migrate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Print this conda file with what contradicts platotk cured.")
    ] = None,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Say which environment jobs get, or cure a conda file."""
    if migrate is not None:
        return _migrate(migrate, as_json)
    import tempfile

    from ..azure.environments import environment as made

    loaded, options = _project_and_options(project, on)
    with tempfile.TemporaryDirectory() as place:
        entity = made(options, loaded, out or Path(place))
    told = {"name": entity.name, "version": entity.version, "image": entity.image}
    if out is not None and entity.build is not None:
        told["context"] = str(entity.build.path)
    if as_json:
        console.json(told)
    else:
        console.azure_environment(told)


def _migrate(path: Path, as_json: bool) -> None:
    from ..azure.conda_files import findings_of_conda, migrate

    found, cured = findings_of_conda(path), migrate(path)
    if as_json:
        console.json({"findings": [one.to_dict() for one in found], "conda": cured})
    else:
        console.azure_findings(found)
        console.text(cured.rstrip("\n"))


def _project_and_options(path: Path | None, on: str | None) -> tuple[Project, AzureOptions]:
    """The project and what it says about Azure.

    Raises:
        ProjectError: It says nothing, or more than one thing.
    """
    from ..azure.options import AzureOptions

    loaded = load_project(path, None)
    return loaded, AzureOptions.model_validate(dict(loaded.backends[_name(loaded, on)]))


def _name(project: Project, on: str | None) -> str:
    there: dict[str, Any] = {
        name: options for name, options in project.backends.items() if options.get("type") == "azure_ml"
    }
    if on is None and len(there) == 1:
        return next(iter(there))
    if on is not None and on in there:
        return on
    if not there:
        raise ProjectError(
            "plato.yaml names no Azure.",
            hint="Add: backends: {azure: {type: azure_ml, subscription: ..., resource_group: rl, workspace: rl-ws}}",
        )
    told = "which one is meant is not said" if on is None else f"no backend of type azure_ml is called {on!r}"
    raise ProjectError(f"{told}.", hint=f"Say --on with one of: {', '.join(there)}")
