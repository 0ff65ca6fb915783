"""The environment of jobs: what is built, when it is built anew, and what conda files may say. Nothing is sent."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.azure.wire import as_sent

from platotk import Project
from platotk.azure.conda_files import findings_of_conda, migrate
from platotk.azure.environments import environment
from platotk.azure.options import AzureOptions
from platotk.errors import ProjectError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/simple-adder"
PAGE = ROOT / "docs/where/azure-resources.md"
SEED = """\
# conda.yml
channels:
- anaconda
- conda-forge
dependencies:
- python=3.8.5
- pip=22.3.1
- pip:
   # Dependencies for Ray on AML
   - azureml-mlflow
   - azureml-defaults
   - ray-on-aml
   - ray[data]==2.3.0
   - ray[rllib]==2.3.0
   # Dependencies for RLlib
   - tensorflow==2.11.1
   # Dependencies for the Simulator
   - gymnasium
   - numpy==1.24.2
"""


def options(**more: Any) -> AzureOptions:
    return AzureOptions(
        type="azure_ml",
        subscription="01234567-89ab-cdef-0123-456789abcdef",
        resource_group="rl",
        workspace="rl-ws",
        **more,
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "adder"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    return Project.load(folder / "plato.yaml")


def test_by_default_an_image_is_built_from_the_project_and_this_platotk(project: Project, tmp_path: Path) -> None:
    (project.root / "requirements.txt").write_text("scipy>=1.14\n")
    made = environment(options(requirements=["pandas"]), project, tmp_path / "sent")
    context = Path(made.build.path)
    dockerfile = (context / made.build.dockerfile_path).read_text()
    [wheel] = context.glob("platotk-*.whl")
    assert f"./{wheel.name}[train,serve,azure]" in dockerfile
    assert "openmpi" not in dockerfile
    assert (context / "requirements.txt").read_text().split() == ["pandas", "scipy>=1.14"]
    assert "ray==2.60.0" in (context / "constraints.txt").read_text()
    assert made.name.startswith("platotk-simple-adder-")


def test_what_the_user_pins_is_not_constrained(project: Project, tmp_path: Path) -> None:
    made = environment(options(requirements=["NumPy==2.2.0"]), project, tmp_path)
    constraints = (Path(made.build.path) / "constraints.txt").read_text()
    assert "\ntorch==" in constraints
    assert "\nnumpy==" not in constraints


def test_mpi_needs_mpi_in_the_image_and_a_gpu_needs_cuda(project: Project, tmp_path: Path) -> None:
    def dockerfile(**more: Any) -> str:
        made = environment(options(**more), project, tmp_path / str(len(more)) / "-".join(more))
        return (Path(made.build.path) / "Dockerfile").read_text()

    assert "openmpi-bin" in dockerfile(distribution="mpi")
    assert "download.pytorch.org/whl/cpu" in dockerfile()
    assert "download.pytorch.org/whl/cpu" not in dockerfile(size="Standard_NC6s_v3")


def test_the_same_content_has_the_same_name_and_other_content_another(project: Project, tmp_path: Path) -> None:
    one = environment(options(), project, tmp_path / "1")
    assert environment(options(), project, tmp_path / "2").name == one.name
    assert environment(options(requirements=["scipy"]), project, tmp_path / "3").name != one.name


def test_a_named_environment_has_its_content_in_the_version(project: Project, tmp_path: Path) -> None:
    made = environment(options(environment={"name": "ours", "image": "acme.azurecr.io/rl:7"}), project, tmp_path)
    assert (made.name, made.image) == ("ours", "acme.azurecr.io/rl:7")
    assert re.fullmatch("[0-9a-f]{12}", made.version)
    given = options(environment={"name": "ours", "version": 3, "image": "acme.azurecr.io/rl:7"})
    assert environment(given, project, tmp_path).version == "3"


def test_a_dockerfile_of_the_user_is_taken_with_its_folder(project: Project, tmp_path: Path) -> None:
    (project.root / "docker").mkdir()
    (project.root / "docker/Dockerfile").write_text("FROM acme/rl\nCOPY tool.deb .\n")
    (project.root / "docker/tool.deb").write_text("x")
    (project.root / "docker/secret.key").write_text("x")
    made = environment(options(environment={"dockerfile": "docker/Dockerfile"}), project, tmp_path)
    assert sorted(path.name for path in Path(made.build.path).iterdir()) == [".amlignore", "Dockerfile", "tool.deb"]
    assert made.build.dockerfile_path == "Dockerfile"


def test_requirements_with_hashes_are_installed_as_they_are(project: Project, tmp_path: Path) -> None:
    lock = "scipy==1.14.1 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    (project.root / "requirements.lock").write_text(lock)
    context = Path(environment(options(), project, tmp_path).build.path)
    assert "--require-hashes" in (context / "Dockerfile").read_text()
    assert (context / "locked.txt").read_text() == lock


@pytest.mark.parametrize("line", ["-e .", "./wheels/mine.whl", "mine @ file:///home/me/mine", "-r other.txt"])
def test_files_of_this_machine_are_refused_with_their_line(project: Project, tmp_path: Path, line: str) -> None:
    (project.root / "requirements.txt").write_text(f"scipy\n{line}\n")
    with pytest.raises(ProjectError, match=r"requirements\.txt:2") as caught:
        environment(options(), project, tmp_path)
    assert "dockerfile" in str(caught.value.hint)


def test_a_file_that_is_not_there_is_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"there is no file .*conda\.yml"):
        environment(options(environment={"conda_file": "none/conda.yml"}), project, tmp_path)


# ------------------------------------------------------------------------------------------------- conda files


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    path = tmp_path / "conda.yml"
    path.write_text(SEED)
    return path


def test_pins_that_contradict_are_found_with_the_line_to_write(seed: Path) -> None:
    found = {(one.where, one.severity): one.cure for one in findings_of_conda(seed)}
    assert found["conda.yml:6", "error"] == "- python=3.11"
    assert found["conda.yml:13", "error"] == "- ray[data,rllib]<2.61,>=2.60"
    assert found["conda.yml:14", "error"] == "- ray[rllib]<2.61,>=2.60"
    assert found["conda.yml:19", "error"] == "- numpy<3,>=1.26"
    assert {where for where, severity in found if severity == "warning"} == {f"conda.yml:{n}" for n in (11, 12, 16)}
    assert "- torch>=2.6" in str(found["conda.yml", "error"]).splitlines()


def test_a_migrated_file_works_and_keeps_the_rest(seed: Path, tmp_path: Path, project: Project) -> None:
    cured = tmp_path / "cured.yml"
    cured.write_text(migrate(seed))
    assert [one for one in findings_of_conda(cured) if one.severity != "note"] == []
    assert "# Dependencies for the Simulator" in cured.read_text()
    assert "- pip=22.3.1" in cured.read_text()
    shutil.copy(cured, project.root / "conda.yml")
    made = environment(options(environment={"conda_file": "conda.yml"}), project, tmp_path)
    assert made.image.startswith("mcr.microsoft.com/azureml/")
    assert "python=3.11" in made.conda_file["dependencies"]


@pytest.mark.parametrize(
    "text",
    [
        "dependencies: [python=3.8, numpy=1.24.2, {pip: ['ray[rllib]==2.3.0', tensorflow]}]",
        "dependencies:\n- python>=3.7,<3.9\n- numpy\n",
        "name: x\ndependencies:\n  - pip:\n    - torch\n",
        "dependencies:\n  - conda-forge::ray-rllib=2.3.0=py38h_1\n  - pytorch=1.13\n",
        "dependencies: []\n",
        "dependencies:\n- python=3.11\n- pip: ['ray==2.3.0']\n- numpy\n",
        "dependencies:\n- python\n- numpy\n",
        "dependencies:\n- python=3.11\n- pip:\n  - -r nowhere.txt\n  - -e .\n  - ./wheels/own.whl\n",
    ],
)
def test_any_conda_file_is_taken_and_cured(tmp_path: Path, text: str) -> None:
    path = tmp_path / "conda.yml"
    path.write_text(text)
    assert any(one.severity == "error" for one in findings_of_conda(path))
    path.write_text(migrate(path))
    assert [one for one in findings_of_conda(path) if one.severity != "note"] == []
    assert set(yaml.safe_load(text)) <= set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "line",
    ["python=3.12", "python >=3.9", "numpy=2", "numpy>=1.24", "numpy=2.2.6=py311h_0", "pytorch>=2.5,<3"],
)
def test_pins_that_agree_are_left_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "conda.yml"
    path.write_text((EXAMPLE / "conda.yml").read_text().replace("  - python=3.11", f"  - {line}"))
    about = {one.id for one in findings_of_conda(path) if one.severity == "error"}
    assert about <= {"conda-missing"}  # the line took the place of python's


def test_files_of_this_machine_do_not_travel_with_a_conda_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "# ours\nscipy==1.15.2 \\\n    --hash=sha256:00\nray[tune]==2.3.0  # old\n"
    )
    path = tmp_path / "conda.yml"
    path.write_text((EXAMPLE / "conda.yml").read_text().rstrip() + "\n      - -r requirements.txt\n")
    (one,) = [one for one in findings_of_conda(path) if one.id == "conda-local"]
    assert (one.severity, one.cure) == ("error", "- scipy==1.15.2\n- ray[tune]==2.3.0")
    assert one.message == "-r requirements.txt names a file of this machine, and only the conda file is sent"
    path.write_text(migrate(path))
    assert "      - scipy==1.15.2\n      - ray[rllib,tune]<2.61,>=2.60\n" in path.read_text()
    assert [one for one in findings_of_conda(path) if one.severity == "error"] == []


def test_every_finding_has_a_cure(seed: Path) -> None:
    assert all(one.cure for one in findings_of_conda(seed))


def test_a_job_is_not_sent_with_a_file_that_contradicts(seed: Path, project: Project, tmp_path: Path) -> None:
    shutil.copy(seed, project.root / "old.yml")
    with pytest.raises(ProjectError, match="platotk needs Python") as caught:
        environment(options(environment={"conda_file": "old.yml"}), project, tmp_path)
    assert caught.value.hint == "Write a working one with: plato azure environment --migrate old.yml > new.yml"


@pytest.mark.parametrize("text", ["", "dependencies: numpy", "[", "- python=3.11"])
def test_what_is_no_conda_file_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "conda.yml").write_text(text)
    with pytest.raises(ProjectError, match=r"conda\.yml"):
        findings_of_conda(tmp_path / "conda.yml")


def test_the_examples_conda_file_has_no_findings() -> None:
    assert findings_of_conda(EXAMPLE / "conda.yml") == []


def test_the_line_in_the_docs_makes_an_environment() -> None:
    """`az ml environment create`, read as the CLI reads it, is an Environment that the SDK takes."""
    from azure.ai.ml.entities import Environment

    [line] = re.findall(r"^az ml environment create --name .*--conda-file .*$", PAGE.read_text(), re.MULTILINE)
    words = shlex.split(line)
    given = {words[at]: words[at + 1] for at in range(4, len(words) - 1, 2)}
    made = Environment(
        name=given["--name"], image=given["--image"], conda_file=str(EXAMPLE / given["--conda-file"]), version="1"
    )
    sent = as_sent(made._to_rest_object())["properties"]
    assert sent["image"] == given["--image"]
    assert "python=3.11" in yaml.safe_load(sent["condaFile"])["dependencies"]
    assert {"--resource-group", "--workspace-name"} <= set(given)
