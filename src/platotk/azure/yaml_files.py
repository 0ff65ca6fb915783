"""The files that `az ml` takes for what platotk would do itself: workspace, compute, environment, job.

`write` is given the options and the project and writes them into a folder; `commands` gives the lines that use them.
For those who work through the CLI, a pipeline, or want to read what is asked for. Nothing is sent.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import ProjectError
from ..own_package import own_package
from .conda_files import PYTHON, needed
from .environments import CONDA_IMAGE, environment, existing, project_requirements
from .options import AzureOptions

if TYPE_CHECKING:
    from ..project import Project

SCHEMAS = "https://azuremlschemas.azureedge.net/latest"
FILES = ("workspace.yml", "compute.yml", "environment.yml", "conda.yml", "job.yml", "commands.sh")


def write(options: AzureOptions, project: Project, folder: Path) -> list[Path]:
    """Write workspace.yml, compute.yml, environment.yml with its conda file, job.yml and its code, commands.sh.

    Args:
        options: What plato.yaml says.
        project: What is trained.
        folder: Made if need be; files of these names are replaced.

    Returns:
        The files, without those of the code.

    Raises:
        ProjectError: A file that `environment:` names is not there, or the folder is the project's own.
    """
    if folder.resolve() == project.root.resolve():
        raise ProjectError(f"{folder} is the project itself.", hint="Give a folder of its own: --out azure")
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, dict[str, Any]] = {"workspace.yml": _workspace(options), "compute.yml": _compute(options)}
    made["environment.yml"] = _environment(options, project, folder)
    where = made["environment.yml"]
    made["job.yml"] = _job(options, project, f"azureml:{where['name']}:{where['version']}")
    for name, content in made.items():
        (folder / name).write_text(_dumped(content), encoding="utf-8")
    _code(project.root, folder / "code")
    lines = "\n".join(commands(options))
    script = f"# Makes everything and submits one job; lines can be left out.\nset -e\n{lines}\n"
    (folder / "commands.sh").write_text(script, encoding="utf-8")
    return [folder / name for name in FILES if (folder / name).is_file()]


def commands(options: AzureOptions) -> list[str]:
    """The lines of the Azure CLI that use the files, in order."""
    where = f"--resource-group {shlex.quote(options.resource_group)}"
    both = f"{where} --workspace-name {options.workspace}"
    location = options.location or "LOCATION"
    # A cluster that Azure's own Ray makes takes no token.
    needs_token = options.nodes > 1 and options.distribution != "ray"
    token = " --set environment_variables.RAY_AUTH_TOKEN=$(openssl rand -hex 32)" if needs_token else ""
    return [
        f"az account set --subscription {options.subscription}",
        f"az group create --name {shlex.quote(options.resource_group)} --location {location}",
        f"az ml workspace create --file workspace.yml {where}",
        f"az ml compute create --file compute.yml {both}",
        f"az ml environment create --file environment.yml {both}",
        f"az ml job create --file job.yml{token} {both}",
    ]


def _workspace(options: AzureOptions) -> dict[str, Any]:
    about: dict[str, Any] = {"$schema": f"{SCHEMAS}/workspace.schema.json", "name": options.workspace}
    return {**about, **({} if options.location is None else {"location": options.location})}


def _compute(options: AzureOptions) -> dict[str, Any]:
    return {
        "$schema": f"{SCHEMAS}/amlCompute.schema.json",
        "name": options.compute,
        "type": "amlcompute",
        "size": options.size,
        "tier": options.tier,
        "min_instances": options.min_nodes,
        "max_instances": options.max_nodes,
        "idle_time_before_scale_down": int(options.idle_s),
    }


def _environment(options: AzureOptions, project: Project, folder: Path) -> dict[str, Any]:
    """With a conda file, the user's or one of all that a job needs; with the user's image or Dockerfile otherwise."""
    given = options.environment
    schema = {"$schema": f"{SCHEMAS}/environment.schema.json"}
    (folder / "conda.yml").unlink(missing_ok=True)
    if "dockerfile" in given:
        made = environment(options, project, folder)
        build = {"path": "context", "dockerfile_path": made.build.dockerfile_path}
        return {**schema, "name": made.name, "version": made.version, "build": build}
    about = {"image": str(given.get("image", CONDA_IMAGE))}
    content = about["image"]
    if "image" not in given or "conda_file" in given:
        conda = _conda(options, project)
        (folder / "conda.yml").write_text(conda, encoding="utf-8")
        about["conda_file"] = "conda.yml"
        content = f"{content}\n{conda}"
    called = re.sub(r"[^A-Za-z0-9-]+", "-", project.name).strip("-")
    name = str(given.get("name", f"platotk-{called}"))
    version = str(given.get("version", hashlib.sha256(content.encode()).hexdigest()[:12]))
    return {**schema, "name": name, "version": version, **about}


def _conda(options: AzureOptions, project: Project) -> str:
    given = options.environment.get("conda_file")
    if given is not None:
        return existing(project.root, given, "conda_file").read_text(encoding="utf-8")
    # Azure's own Ray starts a dashboard.
    dashboard = ["ray[default]"] if options.distribution == "ray" else []
    pip = [*needed().values(), *dashboard, *project_requirements(options, project.root)]
    content = {"channels": ["conda-forge"], "dependencies": [f"python={PYTHON}", "pip", {"pip": pip}]}
    return yaml.safe_dump(content, sort_keys=False)


def _job(options: AzureOptions, project: Project, where: str) -> dict[str, Any]:
    """The job that `plato train --on` would send, less what belongs to one submission: name, run and secret."""
    from ..compute.azure_ml import FOLDER, AzureBackend
    from ..compute.base import JOB_VARIABLE, PYTHON, RUN, JobSpec

    plain = options.model_copy(update={"environment": {"name": "any", **_variables(options)}})
    spec = JobSpec(
        name=re.sub(r"[^A-Za-z0-9_-]", "-", project.name),
        run=project.root / "runs" / "none",
        command=(PYTHON, "-m", "platotk", "train", "--run", RUN),
        working_dir=project.root,
        nodes=options.nodes,
        timeout_s=options.timeout_s,
    )
    body = AzureBackend("azure", plain).request(spec)
    variables = {key: value for key, value in body["environment_variables"].items() if key != JOB_VARIABLE}
    variables.pop("RAY_AUTH_TOKEN", None)  # given on the line that submits, never in a file
    body.update(environment=where, environment_variables=variables, code="code", display_name=project.name)
    body["command"] = f'export {JOB_VARIABLE}="$AZUREML_RUN_ID"\n{body["command"]}'
    body["outputs"]["run"]["path"] = f"azureml://datastores/{options.datastore}/paths/{FOLDER}/${{{{name}}}}"
    body.pop("name")
    body.pop("tags")
    return body


def _variables(options: AzureOptions) -> dict[str, Any]:
    given = options.environment.get("variables")
    return {} if given is None else {"variables": given}


def _code(root: Path, folder: Path) -> None:
    """The project's files and platotk itself, as `plato train --on` sends them.

    Raises:
        ProjectError: Such a folder is there, and is not one that this wrote.
    """
    from ..compute.snapshot import PACKAGE, snapshot

    if folder.exists() and not (folder / PACKAGE).is_dir():
        raise ProjectError(
            f"{folder} is there already, and plato did not write it.", hint="Give another folder: --out PATH"
        )
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        (folder / PACKAGE).mkdir(parents=True)  # by which the snapshot knows what is no part of the project
        snapshot(root, Path(place) / "code")
        shutil.copytree(Path(place) / "code", folder, dirs_exist_ok=True)
        with zipfile.ZipFile(own_package(Path(place))) as wheel:
            wheel.extractall(folder / PACKAGE)
    (folder / ".amlignore").touch()


def _dumped(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=120)
