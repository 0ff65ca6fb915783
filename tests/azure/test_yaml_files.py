"""`plato azure yaml`: files that the SDK loads as `az ml` does, and what is in them is what platotk would do itself."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.azure.wire import as_sent
from typer.testing import CliRunner

from platotk import Project
from platotk.azure import yaml_files
from platotk.azure.options import AzureOptions
from platotk.cli import app
from platotk.compute import snapshot
from platotk.errors import ProjectError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/simple-adder"
NEEDED = {
    "type": "azure_ml",
    "subscription": "01234567-89ab-cdef-0123-456789abcdef",
    "resource_group": "rl",
    "workspace": "rl-ws",
    "location": "westeurope",
    "max_nodes": 3,
    "nodes": 2,
    "timeout": "2h",
    "tier": "low_priority",
}


def options(**more: Any) -> AzureOptions:
    return AzureOptions(**{**NEEDED, **more})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project") / "adder"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    return Project.load(folder / "plato.yaml", overrides=[f"backends={yaml.safe_dump({'azure': NEEDED})}"])


@pytest.fixture(scope="module")
def folder(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    yaml_files.write(options(requirements=["scipy"]), project, made)
    return made


def test_the_workspace_loads(folder: Path) -> None:
    from azure.ai.ml import load_workspace

    made = load_workspace(folder / "workspace.yml")
    assert (made.name, made.location) == ("rl-ws", "westeurope")


def test_the_cluster_loads_and_is_the_one_that_up_makes(folder: Path) -> None:
    from azure.ai.ml import load_compute

    sent = as_sent(load_compute(folder / "compute.yml")._to_rest_object())["properties"]["properties"]
    assert (sent["vmSize"], sent["vmPriority"]) == ("Standard_DS3_v2", "LowPriority")
    assert sent["scaleSettings"] == {"minNodeCount": 0, "maxNodeCount": 3, "nodeIdleTimeBeforeScaleDown": "PT2M"}


def test_the_environment_loads_with_its_conda_file(folder: Path) -> None:
    from azure.ai.ml import load_environment

    made = load_environment(folder / "environment.yml")
    assert made.name == "platotk-simple-adder"
    pip = made.conda_file["dependencies"][-1]["pip"]
    assert "scipy" in pip
    assert any(line.startswith("ray[rllib]") for line in pip)


def test_the_job_loads_and_is_the_one_that_train_sends(folder: Path, project: Project) -> None:
    from azure.ai.ml import load_environment, load_job

    made = load_job(folder / "job.yml")
    environment = load_environment(folder / "environment.yml")
    assert made.environment.removeprefix("azureml:") == f"{environment.name}:{environment.version}"
    assert made.resources.instance_count == 2
    assert made.distribution.type == "pytorch"
    assert made.limits.timeout == 2 * 3600 + 60 + 900
    assert made.outputs["run"].path.endswith("/paths/platotk/runs/${{name}}")
    assert "platotk node -- " in made.command
    assert "platotk train --run" in made.command
    assert "RAY_AUTH_TOKEN" not in made.environment_variables
    code = folder / made.code
    assert (code / "sim.py").read_text() == (project.root / "sim.py").read_text()
    assert (code / ".platotk/platotk/__init__.py").is_file()


def test_the_lines_name_the_files_and_make_the_secret_themselves(folder: Path) -> None:
    lines = yaml_files.commands(options())
    given = [shlex.split(line) for line in lines]
    named = {words[words.index("--file") + 1] for words in given if "--file" in words}
    assert named == {path.name for path in folder.glob("*.yml")} - {"conda.yml"}
    assert any("RAY_AUTH_TOKEN=$(openssl rand -hex 32)" in line for line in lines)
    assert not any("RAY_AUTH_TOKEN" in line for line in yaml_files.commands(options(nodes=1)))
    assert (folder / "commands.sh").read_text().splitlines()[2:] == lines


def test_azures_own_ray_takes_no_token_and_starts_a_dashboard(project: Project, tmp_path: Path) -> None:
    theirs = options(distribution="ray")
    assert not any("RAY_AUTH_TOKEN" in line for line in yaml_files.commands(theirs))
    yaml_files.write(theirs, project, tmp_path)
    assert "RAY_AUTH_TOKEN" not in (tmp_path / "commands.sh").read_text() + (tmp_path / "job.yml").read_text()
    assert yaml.safe_load((tmp_path / "job.yml").read_text())["distribution"] == {"type": "ray"}
    assert "ray[default]" in yaml.safe_load((tmp_path / "conda.yml").read_text())["dependencies"][-1]["pip"]


def test_the_users_image_conda_file_and_dockerfile_are_kept(project: Project, tmp_path: Path) -> None:
    from azure.ai.ml import load_environment

    yaml_files.write(options(environment={"image": "acme.azurecr.io/rl:7"}), project, tmp_path / "image")
    assert load_environment(tmp_path / "image/environment.yml").image == "acme.azurecr.io/rl:7"
    assert not (tmp_path / "image/conda.yml").exists()
    yaml_files.write(options(environment={"conda_file": "conda.yml", "name": "ours"}), project, tmp_path / "conda")
    assert (tmp_path / "conda/conda.yml").read_text() == (EXAMPLE / "conda.yml").read_text()
    assert load_environment(tmp_path / "conda/environment.yml").name == "ours"
    (project.root / "docker").mkdir()
    (project.root / "docker/Dockerfile").write_text("FROM acme/rl\n")
    yaml_files.write(options(environment={"dockerfile": "docker/Dockerfile"}), project, tmp_path / "docker")
    build = load_environment(tmp_path / "docker/environment.yml").build
    assert (tmp_path / "docker" / Path(str(build.path)).name / "Dockerfile").is_file()


def test_again_into_the_project_holds_no_earlier_files(project: Project) -> None:
    for _ in range(2):
        yaml_files.write(options(), project, project.root / "azure")
    assert not list((project.root / "azure/code").rglob("job.yml"))
    assert not (project.root / "azure/code/azure").exists()
    assert (project.root / "azure/code/sim.py").is_file()
    # Nor does a job take it along.
    sent = {path.relative_to(project.root).parts[0] for path in snapshot.files(project.root)}
    assert "sim.py" in sent
    assert "azure" not in sent


def test_what_is_the_users_own_is_not_replaced(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is the project itself"):
        yaml_files.write(options(), project, project.root)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mine.py").write_text("x = 1\n")
    with pytest.raises(ProjectError, match="plato did not write it"):
        yaml_files.write(options(), project, tmp_path)
    assert (tmp_path / "code/mine.py").is_file()


def test_the_command_prints_the_lines_and_writes_the_files(project: Project, tmp_path: Path) -> None:
    fields = {**yaml.safe_load((project.root / "plato.yaml").read_text()), "backends": {"azure": NEEDED}}
    (project.root / "plato.yaml").write_text(yaml.safe_dump(fields))
    said = CliRunner().invoke(app, ["azure", "yaml", "-C", str(project.root), "--out", str(tmp_path / "az")])
    assert said.exit_code == 0, said.output
    assert said.stdout.splitlines() == yaml_files.commands(options())
    assert sorted(path.name for path in (tmp_path / "az").iterdir()) == sorted([*yaml_files.FILES, "code"])


# What people have from before: the job of the toolkit this one succeeds.
JOB = """\
$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json
code: src
command: >-
  python main.py --test-local ${{inputs.local}}
inputs:
  local: false
environment: azureml:aml-environment@latest
compute: azureml:cpu-cluster
display_name: simple-adder
experiment_name: simple-adder
distribution:
  type: mpi
resources:
  instance_count: 2
"""


def test_an_earlier_toolkits_job_loads(tmp_path: Path) -> None:
    from azure.ai.ml import load_job

    (tmp_path / "src").mkdir()
    (tmp_path / "job.yml").write_text(JOB)
    made = load_job(tmp_path / "job.yml")
    assert made.distribution.type == "mpi"
    assert made.distribution.process_count_per_instance is None
    assert made.resources.instance_count == 2
    assert re.search(r"main\.py", made.command)
