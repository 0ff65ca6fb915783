"""What the emulator lets through: a body is held to the SDK's model of it, on its way in and on its way out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.azure_emulator import validation
from tests.azure_emulator.routing import Request

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")

WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
COMMAND = {"jobType": "Command", "command": "true", "environmentId": "e"}


def request(body: Any, path: str = f"{WORKSPACE}/jobs/night", method: str = "PUT") -> Request:
    api = {"api-version": "2025-01-01-preview"}
    return Request(method, "management.azure.com", path, api, {}, json.dumps(body).encode() if body else b"")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"distribution": {"distributionType": "PyTorch", "processCountPerInstance": 1}}, None),
        ({"limits": {"jobLimitsType": "Command", "timeout": "PT2H"}}, None),
        ({"comand": "true"}, ".properties.comand: not known to CommandJob"),
        ({"jobType": "Comand"}, ".properties.jobType: 'Comand' is none of JobBaseProperties's kinds"),
        ({"distribution": {"distributionType": "Ray"}}, "'Ray' is none of DistributionConfiguration's kinds"),
        ({"resources": {"instanceCount": "2"}}, ".properties.resources.instanceCount: '2' is not of type int"),
        ({"resources": {"instanceCount": True}}, "True is not of type int"),
        ({"limits": {"jobLimitsType": "Command", "timeout": "2 h"}}, "'2 h' is not of type timedelta"),
        ({"environmentVariables": {"A": 1}}, ".properties.environmentVariables.A: 1 is not of type str"),
        (
            {"outputs": {"run": {"jobOutputType": "uri_folder", "mode": "Mount"}}},
            "'Mount' is not of OutputDeliveryMode",
        ),
        ({"status": "Running"}, ".properties.status: read-only in CommandJob"),
    ],
)
def test_a_wrong_key_value_or_kind_is_told_with_route_and_model(change: dict[str, Any], told: str | None) -> None:
    found = validation.of_request(request({"properties": {**COMMAND, **change}}))
    if told is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(f"PUT management.azure.com{WORKSPACE}/jobs/night: ")
        assert told in found[0]


@pytest.mark.parametrize("left_out", ["command", "environmentId"])
def test_what_is_required_may_not_be_left_out(left_out: str) -> None:
    properties = {key: value for key, value in COMMAND.items() if key != left_out}
    (told,) = validation.of_request(request({"properties": properties}))
    assert f".properties.{left_out}: missing, and required by CommandJob" in told


def test_answers_are_held_to_their_models_too() -> None:
    asked = request(None, method="GET")
    job = {"id": "x", "name": "night", "properties": {**COMMAND, "status": "Running"}}
    assert validation.of_answer(asked, 200, job) == []
    assert (
        "'Sleeping' is not of JobStatus"
        in validation.of_answer(asked, 200, {"properties": {**COMMAND, "status": "Sleeping"}})[0]
    )
    assert validation.of_answer(asked, 404, {"error": {"code": "UserError", "message": "no"}}) == []
    assert "reason: not known to ErrorResponse" in validation.of_answer(asked, 404, {"reason": "no"})[0]
    page = request(None, f"{WORKSPACE}/jobs", "GET")
    assert validation.of_answer(page, 200, {"value": [job]}) == []
    assert "not a page" in validation.of_answer(page, 200, [job])[0]


def test_models_of_other_services_are_known() -> None:
    """Those of run history are of the older make: names and rules in tables."""
    path = WORKSPACE.replace("/subscriptions", "/history/v1.0/subscriptions")
    sent = request({"runId": "night", "selectAll": True}, f"{path}/rundata", "POST")
    sent.host = "westeurope.api.azureml.ms"
    (told,) = validation.of_request(sent)
    assert "selectAll: not known to GetRunDataRequest" in told


def test_what_an_older_model_names_by_its_path_is_found_there() -> None:
    keys = ["name", "properties.location", "properties.about"]
    body = {"name": "night", "properties": {"location": "here", "about": {"a": 1}, "more": 2}}
    assert validation._flattened(body, keys) == {
        "name": "night",
        "properties.location": "here",
        "properties.about": {"a": 1},
        "properties.more": 2,  # which is not known then
    }


def test_what_has_no_model_is_told() -> None:
    (told,) = validation.of_request(request({}, f"{WORKSPACE}/schedules/nightly"))
    assert "no model is known for it" in told
