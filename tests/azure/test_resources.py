"""`plato azure up`, `status`, `down` and `doctor` with the unmodified SDKs against the emulator of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running
from typer.testing import CliRunner

from platotk import Project
from platotk.azure import plans, prices, resources
from platotk.azure.client import connect
from platotk.azure.doctor import examine
from platotk.azure.options import AzureOptions
from platotk.cli import app
from platotk.errors import AzureError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/simple-adder"
DISK = "Microsoft.Compute/disks"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator


@pytest.fixture
def azure(started: Emulator) -> Iterator[Emulator]:
    """A subscription in which nothing is yet."""
    before = started.state.take()
    started.state.clear()
    yield started
    started.state.put(before)
    started.faults.clear()
    started.actions, started.quota = ("*",), 100


@pytest.fixture
def settings(azure: Emulator) -> dict[str, Any]:
    return {**azure.options, "resource_group": "rl", "workspace": "rl-ws", "compute": "rl-cpu", "max_nodes": 4}


@pytest.fixture
def options(settings: dict[str, Any]) -> AzureOptions:
    return AzureOptions(**settings)


@pytest.fixture
def project(settings: dict[str, Any], tmp_path: Path) -> Project:
    folder = tmp_path / "adder"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    fields = yaml.safe_load((folder / "plato.yaml").read_text())
    fields["backends"] = {"azure": {**settings, "environment": {"conda_file": "conda.yml"}}}
    (folder / "plato.yaml").write_text(yaml.safe_dump(fields))
    return Project.load(folder / "plato.yaml")


def actions(plan: plans.Plan) -> dict[str, str]:
    return {step.kind: step.action for step in plan.steps}


def put_foreign(azure: Emulator, name: str = "somebodys-disk", group: str = "rl") -> str:
    path = f"/subscriptions/{azure.options['subscription']}/resourceGroups/{group}/providers/{DISK}/{name}"
    azure.state.resources[path] = {"id": path, "name": name, "type": DISK, "location": "westeurope", "tags": None}
    return path


def changes(azure: Emulator, since: int) -> list[str]:
    """What was asked to change something."""
    return [f"{one[0]} {one[2]}" for one in azure.requests[since:] if one[0] != "GET" and "oauth2" not in one[2]]


# ----------------------------------------------------------------------------------------------------- up


def test_up_makes_everything_from_nothing_and_tags_it(azure: Emulator, options: AzureOptions) -> None:
    told: list[str] = []
    resources.up(options, tell=told.append)
    assert [line.split()[:2] for line in told] == [
        ["create", "resource"],
        ["create", "workspace"],
        ["create", "compute"],
    ]
    tag = {"platotk-up": "rl-ws"}
    assert azure.state.resource_groups["rl"]["tags"] == tag
    assert azure.state.workspaces["rl-ws"]["tags"].items() >= tag.items()
    assert len(azure.state.resources) == 4
    assert all(one["tags"].items() >= tag.items() for one in azure.state.resources.values())
    cluster = azure.state.computes["rl-cpu"]
    assert cluster["tags"] == tag
    inner = cluster["properties"]["properties"]
    assert (inner["vmSize"], inner["vmPriority"]) == ("Standard_DS3_v2", "Dedicated")
    assert inner["scaleSettings"] == {"minNodeCount": 0, "maxNodeCount": 4, "nodeIdleTimeBeforeScaleDown": "PT2M"}


def test_up_again_changes_nothing(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    asked = len(azure.requests)
    again = resources.up(options)
    assert again.is_done
    assert set(actions(again).values()) == {"reuse"}
    assert changes(azure, asked) == []


def test_a_plan_changes_nothing_and_says_what_an_hour_costs(azure: Emulator, options: AzureOptions) -> None:
    asked = len(azure.requests)
    plan = plans.plan_up(connect(options))
    assert changes(azure, asked) == []
    assert set(actions(plan).values()) == {"create"}
    assert plan.cost is not None
    assert plan.cost.told().endswith("at 0.27 USD a node-hour: 1.08 USD")
    limited = plans.plan_up(connect(options.model_copy(update={"timeout": 36000.0, "nodes": 2})))
    assert limited.job is not None
    assert limited.job.told().startswith("at most 2 nodes x 10 h = 20 node-hours")
    assert limited.job.worst == pytest.approx(5.4)


def test_low_priority_machines_are_made_and_priced_as_such(azure: Emulator, settings: dict[str, Any]) -> None:
    plan = resources.up(AzureOptions(**{**settings, "tier": "low_priority"}))
    assert azure.state.computes["rl-cpu"]["properties"]["properties"]["vmPriority"] == "LowPriority"
    assert plan.cost is not None
    assert plan.cost.price == 0.054


def test_up_goes_on_where_it_failed(azure: Emulator, options: AzureOptions) -> None:
    azure.faults.add(
        "PUT .*/computes/", status=400, body={"error": {"code": "ClusterCoreQuotaReached", "message": "no"}}
    )
    with pytest.raises(AzureError, match="no") as caught:
        resources.up(options)
    assert "quota" in str(caught.value.hint)
    assert "rl-ws" in azure.state.workspaces
    assert actions(resources.up(options)) == {"resource group": "reuse", "workspace": "reuse", "compute": "create"}


def test_our_cluster_is_scaled_and_keeps_what_others_set(azure: Emulator, settings: dict[str, Any]) -> None:
    resources.up(AzureOptions(**settings))
    azure.state.computes["rl-cpu"]["tags"]["cost-center"] = "7"
    plan = resources.up(AzureOptions(**{**settings, "max_nodes": 9, "idle_s": 300}))
    assert [step.why for step in plan.steps if step.kind == "compute"] == ["max_nodes 4 -> 9, idle_s 120 -> 300"]
    cluster = azure.state.computes["rl-cpu"]
    assert cluster["properties"]["properties"]["scaleSettings"]["maxNodeCount"] == 9
    assert cluster["properties"]["properties"]["scaleSettings"]["nodeIdleTimeBeforeScaleDown"] == "PT5M"
    assert cluster["tags"] == {"platotk-up": "rl-ws", "cost-center": "7"}


def test_size_and_tier_of_a_cluster_are_not_changed_but_told(settings: dict[str, Any]) -> None:
    resources.up(AzureOptions(**settings))
    plan = resources.up(AzureOptions(**{**settings, "size": "Standard_E8ds_v5", "tier": "low_priority"}))
    [cluster] = [step for step in plan.steps if step.kind == "compute"]
    assert cluster.action == "reuse"
    assert "size is Standard_DS3_v2, which no cluster can change" in cluster.why
    assert "tier is dedicated" in cluster.why


def test_somebody_elses_workspace_and_cluster_are_used_as_they_are(azure: Emulator, settings: dict[str, Any]) -> None:
    resources.up(AzureOptions(**settings))
    for things in (azure.state.workspaces, azure.state.computes, azure.state.resource_groups):
        for one in things.values():
            one["tags"] = {}
            one["properties"].pop("description", None)
    asked = len(azure.requests)
    plan = resources.up(AzureOptions(**{**settings, "max_nodes": 9}))
    assert set(actions(plan).values()) == {"reuse"}
    assert "max_nodes is 4; we did not make it" in next(step.why for step in plan.steps if step.kind == "compute")
    assert changes(azure, asked) == []


def test_a_resource_group_needs_a_region(settings: dict[str, Any]) -> None:
    with pytest.raises(AzureError, match="no region is named") as caught:
        plans.plan_up(connect(AzureOptions(**{**settings, "location": None})))
    assert "location: westeurope" in str(caught.value.hint)


def test_the_environment_is_registered_once(azure: Emulator, project: Project) -> None:
    options = AzureOptions(**project.backends["azure"])
    resources.up(options, project)
    [(key, made)] = azure.state.environments.items()
    assert key.startswith("platotk-simple-adder-")
    assert "ray[rllib]" in made["properties"]["condaFile"]
    assert actions(resources.up(options, project))["environment"] == "reuse"


# ----------------------------------------------------------------------------------------------------- down


def test_down_takes_back_what_up_made(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    resources.down(options)
    assert azure.state.resource_groups == {}
    assert azure.state.workspaces == {}
    assert azure.state.resources == {}
    assert resources.down(options).steps == ()  # again: nothing is there


def build_an_image(azure: Emulator, options: AzureOptions, project: Project) -> str:
    """A first job, whose image has to be built: Azure makes a registry for it. Gives the registry's id."""
    from azure.ai.ml import command

    resources.up(options, project)
    (environment,) = azure.state.environments
    job = command(command="true", environment=f"azureml:{environment}", compute=options.compute)
    connect(options).ml.jobs.create_or_update(job)
    named = azure.state.workspaces["rl-ws"]["properties"]["containerRegistry"]
    assert azure.state.resources[named]["tags"] is None
    return str(named)


def test_the_registry_that_azure_makes_for_images_goes_too(
    azure: Emulator, options: AzureOptions, project: Project
) -> None:
    registry = build_an_image(azure, options, project)
    assert all(one["is_ours"] for one in resources.status(options)["resources"])
    azure.faults.add("DELETE .*/workspaces/rl-ws$", status=409)
    with pytest.raises(AzureError):
        resources.down(options)
    assert registry not in azure.state.resources  # before the workspace, which alone names it
    resources.down(options)
    assert (azure.state.resources, azure.state.workspaces, azure.state.resource_groups) == ({}, {}, {})


@pytest.mark.parametrize("whose", ["tagged", "of a workspace that is not ours"])
def test_somebody_elses_registry_stays(azure: Emulator, options: AzureOptions, project: Project, whose: str) -> None:
    registry = build_an_image(azure, options, project)
    if whose == "tagged":
        azure.state.resources[registry]["tags"] = {"team": "rl"}
    else:
        azure.state.workspaces["rl-ws"]["tags"] = {}
    plan = resources.down(options)
    assert registry in azure.state.resources
    assert list(azure.state.resource_groups) == ["rl"]
    assert "we did not make it" in [step.why for step in plan.steps if step.id == registry]


def test_a_cluster_is_known_by_its_mark_should_its_tags_be_gone(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    azure.state.computes["rl-cpu"]["tags"] = {}
    assert resources.status(options)["compute"]["made_by_plato"] is True
    resources.down(options)
    assert azure.state.resource_groups == {}


def test_somebody_elses_resource_keeps_itself_and_the_group(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    disk = put_foreign(azure)
    asked = len(azure.requests)
    plan = resources.down(options)
    assert list(azure.state.resources) == [disk]
    assert azure.state.workspaces == {}
    assert list(azure.state.resource_groups) == ["rl"]
    assert not any(DISK in line for line in changes(azure, asked))
    kept = {step.name: step.why for step in plan.steps if step.action == "keep"}
    assert kept == {f"somebodys-disk ({DISK})": "we did not make it", "rl": "it holds what we did not make"}


def test_a_group_that_was_there_before_stays(azure: Emulator, options: AzureOptions) -> None:
    azure.state.resource_groups["rl"] = {"id": "x", "name": "rl", "location": "westeurope", "tags": {"team": "rl"}}
    resources.up(options)
    resources.down(options)
    assert azure.state.workspaces == {}
    assert list(azure.state.resource_groups) == ["rl"]


def test_another_projects_workspace_in_the_same_group_stays(azure: Emulator, settings: dict[str, Any]) -> None:
    ours, theirs = (
        AzureOptions(**settings),
        AzureOptions(**{**settings, "workspace": "their-ws", "compute": "their-cpu"}),
    )
    resources.up(ours)
    azure.state.computes.clear()  # of one workspace at a time
    resources.up(theirs)
    azure.state.computes.clear()
    resources.down(ours)
    assert list(azure.state.workspaces) == ["their-ws"]
    assert len(azure.state.resources) == 4
    assert list(azure.state.resource_groups) == ["rl"]


@pytest.mark.parametrize("thing", ["a cluster", "an endpoint", "our endpoint"])
def test_a_workspace_with_somebodys_cluster_or_endpoint_stays(
    azure: Emulator, options: AzureOptions, thing: str
) -> None:
    resources.up(options)
    if thing == "a cluster":
        attached = {"computeType": "Kubernetes"}
        azure.state.computes["gpu"] = {"id": "x", "name": "gpu", "tags": {}, "properties": attached}
    else:
        tags = {"platotk": "endpoint"} if thing == "our endpoint" else {}
        about = {"id": "x", "name": "adder", "location": "westeurope"}
        azure.state.endpoints["adder"] = {**about, "tags": tags, "properties": {"authMode": "Key"}}
    plan = resources.down(options)
    assert list(azure.state.workspaces) == ["rl-ws"]
    assert len(azure.state.resources) == 4
    assert "rl-cpu" not in azure.state.computes
    why = next(step.why for step in plan.steps if step.kind == "workspace")
    assert why == "rl-ws holds what we did not make"
    if thing == "our endpoint":
        assert any("plato deploy" in step.why for step in plan.steps)


def test_our_cluster_in_somebodys_workspace_is_all_that_goes(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    for one in [*azure.state.workspaces.values(), *azure.state.resources.values()]:
        one["tags"] = {}
    resources.down(options)
    assert azure.state.computes == {}
    assert list(azure.state.workspaces) == ["rl-ws"]
    assert len(azure.state.resources) == 4


def test_what_came_while_it_was_deleting_saves_the_group(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)

    def tell(line: str) -> None:
        if "keyVaults" in line or "vaults" in line:
            put_foreign(azure, "late")

    with pytest.raises(AzureError, match="holds late, which came meanwhile"):
        resources.down(options, tell=tell)
    assert list(azure.state.resource_groups) == ["rl"]


def test_down_goes_on_where_it_failed(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    azure.faults.add("DELETE .*/storageAccounts/", status=409)
    with pytest.raises(AzureError):
        resources.down(options)
    assert azure.state.workspaces == {}
    resources.down(options)
    assert azure.state.resource_groups == {}


DELETING = {
    "the group": "GET .*/resourceGroups/rl$",
    "its resources": "GET .*/resourceGroups/rl/resources",
    "the clusters": "GET .*/computes$",
    "the endpoints": "GET .*/onlineEndpoints$",
    "a cluster": "DELETE .*/computes/",
    "the workspace": "DELETE .*/workspaces/rl-ws$",
    "how that goes": "GET .*/operations/",
    "the storage": "DELETE .*/storageAccounts/",
    "the group's end": "DELETE .*/resourceGroups/rl$",
}
"""Of `down`, in their order: requests that it makes."""


def each(*statuses: int) -> list[Any]:
    """Each request with one of the statuses every time; the others are slow."""
    pairs = [(step, status) for step in DELETING for status in statuses]
    return [
        pytest.param(*pair, marks=() if at % (len(statuses) + 1) == 0 else pytest.mark.slow)
        for at, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(("step", "status"), each(429, 500, 503))
def test_down_waits_for_what_passes(azure: Emulator, options: AzureOptions, step: str, status: int) -> None:
    resources.up(options)
    azure.faults.add(DELETING[step], status=status, times=2, headers={"Retry-After": "0"})
    resources.down(options)
    assert all(fault.times == 0 for fault in azure.faults.left)
    assert (azure.state.resource_groups, azure.state.workspaces, azure.state.resources) == ({}, {}, {})


@pytest.mark.parametrize(("step", "status"), each(401, 403, 500))
def test_down_says_what_stays_in_one_error(azure: Emulator, options: AzureOptions, step: str, status: int) -> None:
    resources.up(options)
    azure.faults.add(DELETING[step], status=status, times=10**6, headers={"Retry-After": "0"})
    with pytest.raises(AzureError) as caught:
        resources.down(options)
    said = {401: "az login", 403: "Contributor on the resource group", 500: "try again in some minutes"}
    assert said[status] in str(caught.value.hint)
    azure.faults.clear()
    resources.down(options)
    assert azure.state.resource_groups == {}


# ----------------------------------------------------------------------------------------------------- status, doctor


def test_status_says_what_is_there_and_whose_it_is(azure: Emulator, options: AzureOptions) -> None:
    assert resources.status(options)["resource_group"] == {"name": "rl", "is_there": False}
    resources.up(options)
    put_foreign(azure)
    found = resources.status(options)
    assert found["workspace"]["made_by_plato"] is True
    assert found["workspace"]["studio_url"].startswith("https://ml.azure.com/")
    assert (found["compute"]["nodes"], found["compute"]["max_nodes"], found["compute"]["state"]) == (0, 4, "Succeeded")
    assert [one["name"] for one in found["resources"] if not one["is_ours"]] == ["somebodys-disk"]


def found(options: AzureOptions) -> dict[str, Any]:
    return {one.id: one for one in examine(options) if not one.id.startswith(("azure-cli", "azure-packages"))}


def test_doctor_has_nothing_to_say_when_all_is_well(options: AzureOptions) -> None:
    resources.up(options)
    assert found(options) == {}


def test_doctor_says_what_is_not_there_yet(options: AzureOptions) -> None:
    one = found(options)["azure-resources"]
    assert (one.severity, one.message, one.cure) == ("note", "resource group rl is not there yet", "plato azure up")


def test_doctor_knows_the_roles_that_lack(azure: Emulator, options: AzureOptions) -> None:
    azure.actions = ("Microsoft.MachineLearningServices/workspaces/*/read",)
    one = found(options)["azure-permissions"]
    assert one.severity == "error"
    assert "workspaces/jobs/write" in one.message
    assert "az role assignment create" in one.cure
    resources_group = "Microsoft.Resources/subscriptions/resourceGroups/write"
    azure.actions = ("Microsoft.MachineLearningServices/*",)
    assert found(options)["azure-permissions"].message == f"on the subscription you may not: {resources_group}"


def test_doctor_counts_what_fits_the_quota(azure: Emulator, settings: dict[str, Any]) -> None:
    azure.quota = 10
    one = found(AzureOptions(**{**settings, "nodes": 3}))["azure-quota"]
    assert one.severity == "error"
    assert "0 of 10 are used, so 2 nodes of Standard_DS3_v2 fit, not 4" in one.message
    assert "max_nodes: 2" in one.cure
    assert found(AzureOptions(**settings))["azure-quota"].severity == "warning"
    assert "azure-quota" not in found(AzureOptions(**{**settings, "tier": "low_priority"}))


@pytest.mark.parametrize(
    ("wrong", "name", "said"),
    [
        ({"size": "Standard_Z9"}, "azure-size", "westeurope has no Standard_Z9"),
        ({"size": "Standard_M128s", "tier": "low_priority"}, "azure-size", "not to be had at low priority"),
        ({"location": "atlantis"}, "azure-region", "no workspaces in 'atlantis'"),
    ],
)
def test_doctor_knows_what_a_region_has(settings: dict[str, Any], wrong: dict[str, str], name: str, said: str) -> None:
    one = found(AzureOptions(**{**settings, **wrong}))[name]
    assert one.severity == "error"
    assert said in one.message


def test_a_size_that_azure_gives_no_price_for_is_told_in_node_hours(settings: dict[str, Any]) -> None:
    azure = connect(AzureOptions(**{**settings, "size": "Standard_M128s"}))
    told = prices.cost(azure, nodes=2, hours=3).told()
    assert told == "at most 2 nodes x 3 h = 6 node-hours of Standard_M128s (dedicated); its price is not known here"


def test_doctor_goes_on_when_azure_refuses_a_question(azure: Emulator, options: AzureOptions) -> None:
    azure.faults.add(".*/permissions", status=403)
    azure.quota = 4
    assert set(found(options)) == {"azure-permissions", "azure-resources", "azure-quota"}


# ----------------------------------------------------------------------------------------------------- at the prompt


def plato(*words: str, at: Project) -> Any:
    return CliRunner().invoke(app, ["azure", *words, "-C", str(at.root)])


def test_the_whole_way_at_the_prompt(azure: Emulator, project: Project) -> None:
    dry = plato("up", "--dry-run", "--json", at=project)
    assert dry.exit_code == 0, dry.output
    assert [step["action"] for step in json.loads(dry.stdout)["steps"]] == ["create"] * 4
    assert azure.state.resource_groups == {}
    made = plato("up", at=project)
    assert made.exit_code == 0, made.output
    assert "1.08 USD" in made.stderr
    assert "deployment request" not in made.stderr
    assert "train --on azure" in made.stderr
    assert json.loads(plato("status", "--json", at=project).stdout)["compute"]["is_there"] is True
    assert "0 of 0 to 4" in plato("status", at=project).stderr
    assert plato("doctor", at=project).exit_code == 0
    refused = plato("down", at=project)
    assert refused.exit_code == 2
    assert "nothing was deleted" in refused.stderr
    assert "rl-ws" in azure.state.workspaces
    gone = plato("down", "--yes", at=project)
    assert gone.exit_code == 0
    assert "Delete request" not in gone.stderr
    assert azure.state.resource_groups == {}


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ({"match": "GET .*/resourceGroups/rl$", "status": 403, "times": 9}, "You lack a role"),
        ({"match": "PUT .*/resourceGroups/rl$", "status": 409, "times": 9}, "plato azure status"),
        ({"match": "PUT .*/deployments/", "status": 400, "times": 9}, "plato.yaml"),
        ({"match": "PUT .*/computes/", "status": 403, "times": 9}, "You lack a role"),
        ({"match": ".*/workspaces/rl-ws$", "status": 401, "times": 99}, "az login"),
    ],
)
def test_each_refusal_is_one_error_with_the_next_step(
    azure: Emulator, project: Project, fault: dict[str, Any], hint: str
) -> None:
    azure.faults.add(**fault)
    said = plato("up", at=project)
    assert said.exit_code == 1
    assert hint in said.stderr
    assert "Traceback" not in said.output


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_moments_trouble_is_asked_again(azure: Emulator, options: AzureOptions, status: int) -> None:
    azure.faults.add("PUT .*/computes/", status=status, headers={"Retry-After": "0"})
    azure.faults.add("GET .*/resourceGroups/rl$", status=status, headers={"Retry-After": "0"})
    resources.up(options)
    assert "rl-cpu" in azure.state.computes


def test_a_token_that_has_expired_is_fetched_anew(azure: Emulator, options: AzureOptions) -> None:
    resources.up(options)
    azure.sign_in.expire()
    assert resources.status(options)["compute"]["is_there"] is True
