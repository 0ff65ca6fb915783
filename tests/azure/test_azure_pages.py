"""What docs/where/ says of Azure's own ways: the SDK's lines run, the CLI's are read as `az` reads them, errors exist.

`az` itself is not here; what its lines name goes through the SDK that it is made of.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.azure.wire import as_sent
from tests.azure_emulator.emulator import SUBSCRIPTION, Emulator
from tests.azure_emulator.fixtures import running
from tests.docs_blocks import ROOT, blocks

from platotk.azure import plans
from platotk.azure.client import connect
from platotk.azure.options import AzureOptions

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")

WHERE = ROOT / "docs/where"
RESOURCES = (WHERE / "azure-resources.md").read_text("utf-8")
EXAMPLE = ROOT / "examples/simple-adder"
EXAMPLE_ID = "01234567-89ab-cdef-0123-456789abcdef"
KINDS = ["workspace", "compute", "environment", "job"]


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Emulator]:
    with running(tmp_path / "azure") as emulator:
        emulator.state.clear()
        yield emulator


def sdk_block() -> str:
    (block,) = [block for block in blocks(RESOURCES) if block.language == "py"]
    return block.text


def az_lines() -> list[list[str]]:
    """Every `az` line of the resources page, as words."""
    lines = [row for block in blocks(RESOURCES) if block.language == "azurecli" for row in block.text.splitlines()]
    return [shlex.split(row) for row in lines if row.startswith("az ")]


def given(*words: str) -> dict[str, str]:
    """The options of the one line that begins with `words`."""
    (line,) = [line for line in az_lines() if tuple(line[: len(words)]) == words]
    rest = line[len(words) :]
    assert len(rest) % 2 == 0, line
    assert all(option.startswith("--") for option in rest[::2]), line
    return dict(zip(rest[::2], rest[1::2], strict=True))


def test_what_the_sdk_makes_is_what_up_would_make(azure: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's lines, then the plan of `plato azure up`: nothing is left to do."""
    options = AzureOptions(**{**azure.options, "resource_group": "rl", "workspace": "rl-ws"})
    path = f"/subscriptions/{SUBSCRIPTION}/resourcegroups/rl"
    connect(options, workspace=False).arm("PUT", path, "2024-03-01", {"location": "westeurope"})
    monkeypatch.chdir(EXAMPLE)
    exec(compile(sdk_block().replace(EXAMPLE_ID, SUBSCRIPTION), "azure-resources.md", "exec"), {})
    plan = plans.plan_up(connect(options))
    assert {step.kind: step.action for step in plan.steps} == dict.fromkeys(
        ("resource group", "workspace", "compute"), "reuse"
    )
    inner = azure.state.computes["rl-cpu"]["properties"]["properties"]
    assert inner["scaleSettings"] == {"minNodeCount": 0, "maxNodeCount": 4, "nodeIdleTimeBeforeScaleDown": "PT2M"}
    assert any(name.startswith("aml-environment") for name in azure.state.environments)


def test_the_line_for_the_cluster_makes_the_sdks_cluster() -> None:
    from azure.ai.ml.entities import AmlCompute

    line = given("az", "ml", "compute", "create")
    assert line.pop("--type") == "amlcompute"
    assert (line.pop("--resource-group"), line.pop("--workspace-name")) == ("rl", "rl-ws")
    fields: dict[str, Any] = {option[2:].replace("-", "_"): value for option, value in line.items()}
    for number in ("min_instances", "max_instances", "idle_time_before_scale_down"):
        fields[number] = int(fields[number])
    made = as_sent(AmlCompute(**fields)._to_rest_object())
    (call,) = [
        node
        for node in ast.walk(ast.parse(sdk_block()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AmlCompute"
    ]
    sdk = AmlCompute(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})
    assert made == as_sent(sdk._to_rest_object())


def test_the_line_for_the_environment_and_the_sdks_environment_are_the_same() -> None:
    line = given("az", "ml", "environment", "create")
    assert f'name="{line["--name"]}"' in sdk_block()
    assert f'image="{line["--image"]}"' in sdk_block()
    assert f'conda_file="{line["--conda-file"]}"' in sdk_block()


def test_the_other_lines_are_those_that_az_has() -> None:
    known = {"login", "account set", "extension add", "group create", "ml workspace create", "ml compute create"}
    known |= {"ml environment create"}
    said = {" ".join(word for word in line[1:4] if not word.startswith("-")).split(" --")[0] for line in az_lines()}
    assert {line for line in said if not any(line.startswith(one) for one in known)} == set()
    assert given("az", "account", "set")["--subscription"] == EXAMPLE_ID
    assert given("az", "ml", "workspace", "create") == {"--name": "rl-ws", "--resource-group": "rl"}


def test_each_file_that_the_tutorial_gives_to_az_loads_as_az_loads_it(tmp_path: Path) -> None:
    """`az ml X create --file F` is `load_X(F)` of the SDK, and `plato azure yaml` writes F."""
    import azure.ai.ml

    from platotk import Project
    from platotk.azure import yaml_files

    text = (WHERE / "azure-tutorial.md").read_text("utf-8")
    lines = re.findall(r"(?m)^az ml (\w+) create --file (\S+)", text)
    assert [kind for kind, _ in lines] == KINDS
    options = AzureOptions(
        type="azure_ml",
        subscription=EXAMPLE_ID,
        resource_group="rl",
        workspace="rl-ws",
        location="westeurope",
        nodes=2,
        timeout="1h",
    )
    yaml_files.write(options, Project.load(EXAMPLE / "plato.yaml"), tmp_path)
    assert all(line in text for line in yaml_files.commands(options))
    made = [getattr(azure.ai.ml, f"load_{kind}")(tmp_path / file) for kind, file in lines]
    assert [one.name for one in made] == ["rl-ws", "rl-cpu", "platotk-simple-adder", None]  # Azure names the job
    assert made[-1].resources.instance_count == 2


# ---------------------------------------------------------------------------------------------- troubleshooting


def texts() -> list[str]:
    """Every string in the source; what is filled in later stands as a NUL."""
    found = []
    for path in (ROOT / "src/platotk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def symptoms() -> list[str]:
    """What the first column of the tables of symptoms quotes."""
    page = (WHERE / "azure-ml.md").read_text("utf-8").partition("## When something goes wrong")[2]
    first = [row.split("|")[1].strip() for row in page.splitlines() if row.startswith("| `")]
    return [cell.strip("`") for cell in first]


@pytest.mark.parametrize("symptom", symptoms())
def test_an_error_that_the_page_names_is_one_that_is_raised(symptom: str) -> None:
    """Numbers and quoted names are examples."""
    pieces = re.split(r"('[^']+'|\d+)", symptom)
    asked = "".join(
        f"(?:'?\0'?|{re.escape(piece)})" if number % 2 else re.escape(piece) for number, piece in enumerate(pieces)
    )
    assert any(re.search(asked, text) for text in texts()), symptom


def test_the_page_names_a_dozen_errors_and_no_made_up_one_passes() -> None:
    assert len(symptoms()) >= 8
    assert not any("the moon is out of quota" in text for text in texts())
