"""What the SDKs may send and what Azure may answer: every body is held to a model of the SDK that is installed.

`TABLE` says which model stands for a request, by its method and path. A body fits when each of its keys is known to
the model, those that are required are there, and every value has the type, and is of the enumeration, that the model
says. A request that is neither there nor in `OTHERS` is a problem, too.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import functools
import importlib
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .history import REGION
from .history import WORKSPACE as REGION_WORKSPACE
from .resource_manager import AML, GROUP, SUBSCRIPTION, WORKSPACE
from .routing import Request

PACKAGES = {
    "ml": "azure.ai.ml._restclient.arm_ml_service.models",
    "history": "azure.ai.ml._restclient.runhistory.models",
    "data": "azure.ai.ml._restclient.dataset_dataplane.models",
    "groups": "azure.ai.ml._vendor.azure_resources.models",
    "files": "azureml.mlflow._restclient.run_artifact.models",
}
"""Where models are; `ml` where none is named. A model in brackets is a page of them."""
BY_VERSION = ("azure.ai.ml._restclient.v{}.models", "azure.ai.ml._restclient.v{}_tsp.models")
"""Before 1.35 azure-ai-ml has models for each version of the service; they go before those of `ml`."""
ASSETS = rf"{WORKSPACE}/(?:environments|codes|models)/[^/]+"
RUN = rf"{REGION}/history/v1\.0{REGION_WORKSPACE}/experiment(?:ids|s)/[^/]+/runs/[^/]+"
ENDPOINT = rf"{WORKSPACE}/onlineEndpoints/[^/]+"
PLACE = rf"{SUBSCRIPTION}/providers/{re.escape(AML)}/locations/[^/]+"
PROVIDERS = rf"{GROUP}(?:/providers/Microsoft\.Resources)?"
TABLE: tuple[tuple[str, str, str, str], ...] = (
    # method, host and path, model of the request, model of the answer
    ("GET", rf"{SUBSCRIPTION}/providers/[^/]+", "", "groups:Provider"),
    ("GET", GROUP, "", "groups:ResourceGroup"),
    ("PUT", GROUP, "groups:ResourceGroup", "groups:ResourceGroup"),
    ("DELETE", GROUP, "", ""),
    ("GET", rf"{GROUP}/resources", "", "[groups:GenericResourceExpanded]"),
    ("PUT", rf"{PROVIDERS}/deployments/[^/]+", "groups:Deployment", "groups:DeploymentExtended"),
    ("GET", rf"{PROVIDERS}/deployments/[^/]+/operations", "", "[groups:DeploymentOperation]"),
    ("GET", WORKSPACE, "", "Workspace"),
    ("GET", rf"{WORKSPACE}/computes", "", "[ComputeResource]"),
    ("(?:GET|PUT)", rf"{WORKSPACE}/computes/[^/]+", "ComputeResource", "ComputeResource"),
    ("GET", rf"{WORKSPACE}/environments/[^/]+", "", "EnvironmentContainer"),
    ("(?:GET|PUT)", rf"{WORKSPACE}/environments/[^/]+/versions/[^/]+", "EnvironmentVersion", "EnvironmentVersion"),
    ("GET", rf"{PLACE}/vmSizes", "", "VirtualMachineSizeListResult"),
    ("GET", rf"{PLACE}/usages", "", "[Usage]"),
    ("GET", rf"{WORKSPACE}/datastores", "", "[Datastore]"),
    ("GET", rf"{WORKSPACE}/datastores/[^/]+", "", "Datastore"),
    ("POST", rf"{WORKSPACE}/datastores/[^/]+/listSecrets", "SecretExpiry", "DatastoreSecrets"),
    ("GET", rf"{WORKSPACE}/codes/[^/]+/versions", "", "[CodeVersion]"),
    ("POST", rf"{ASSETS}/versions/[^/]+/startPendingUpload", "PendingUploadRequestDto", "PendingUploadResponseDto"),
    ("(?:GET|PUT)", rf"{WORKSPACE}/codes/[^/]+/versions/[^/]+", "CodeVersion", "CodeVersion"),
    ("GET", rf"{WORKSPACE}/models/[^/]+", "", "ModelContainer"),
    ("GET", rf"{WORKSPACE}/models/[^/]+/versions", "", "[ModelVersion]"),
    ("(?:GET|PUT)", rf"{WORKSPACE}/models/[^/]+/versions/[^/]+", "ModelVersion", "ModelVersion"),
    ("GET", rf"{WORKSPACE}/jobs", "", "[JobBase]"),
    ("(?:GET|PUT)", rf"{WORKSPACE}/jobs/[^/]+", "JobBase", "JobBase"),
    ("POST", rf"{WORKSPACE}/jobs/[^/]+/cancel", "", ""),
    ("GET", rf"{WORKSPACE}/onlineEndpoints", "", "[OnlineEndpoint]"),
    ("(?:GET|PUT)", ENDPOINT, "OnlineEndpoint", "OnlineEndpoint"),
    ("POST", rf"{ENDPOINT}/listKeys", "", "EndpointAuthKeys"),
    ("GET", rf"{ENDPOINT}/deployments", "", "[OnlineDeployment]"),
    ("(?:GET|PUT)", rf"{ENDPOINT}/deployments/[^/]+", "OnlineDeployment", "OnlineDeployment"),
    ("POST", rf"{ENDPOINT}/deployments/[^/]+/getLogs", "DeploymentLogsRequest", "DeploymentLogs"),
    ("DELETE", rf"{GROUP}/providers/.*", "", ""),
    ("GET", rf"{REGION}/history/v1\.0{REGION_WORKSPACE}/runs/[^/]+/details", "", "history:RunDetails"),
    ("GET", rf"{REGION}/history/v1\.0{REGION_WORKSPACE}/runs/[^/]+", "", "history:Run"),
    (
        "POST",
        rf"{REGION}/history/v1\.0{REGION_WORKSPACE}/rundata",
        "history:GetRunDataRequest",
        "history:GetRunDataResult",
    ),
    ("GET", rf"{RUN}/artifacts", "", "files:PaginatedArtifactList"),
    ("GET", rf"{RUN}/artifacts/contentinfo", "", "files:ArtifactContentInformation"),
    (
        "POST",
        rf"{RUN}/artifacts/batch/metadata",
        "files:ArtifactPathList",
        "files:BatchArtifactContentInformationResult",
    ),
    (
        "POST",
        rf"{REGION}/data/v1\.0{REGION_WORKSPACE}/dataversion/batchGetResolvedUris",
        "data:BatchGetResolvedURIs",
        "data:BatchDataUriResponse",
    ),
)
OTHERS = (
    r"login\.microsoftonline\.com/.*",  # OAuth2: msal reads it without models
    r".*\.blob\.core\.windows\.net/.*",  # Azurite's own business
    rf"{REGION}/mlflow/.*",  # a real MLflow server holds it to its protocol
    rf"{REGION}/discovery(?:/.*)?",  # the SDK reads one key of it
    r".*\.inference\.ml\.azure\.com(?:/.*)?",  # what an agent takes and answers
    rf"{SUBSCRIPTION}",  # this and the next belong to packages that nobody has installed
    rf"{SUBSCRIPTION}(?:/.*)?/providers/Microsoft\.Authorization/permissions",
    rf"{SUBSCRIPTION}/operations/[^/]+",  # azure-core reads `status` of an operation
    rf"{PLACE}/mfeOperationsStatus/[^/]+",
)
"""Requests for which there is no model, and why."""


DEVIATIONS = (".properties.properties.hash_version: 202208 is not of type str",)
"""What the SDK itself sends against its own models."""


def of_request(request: Request) -> list[str]:
    """What is wrong with what was sent."""
    line = f"{request.method} {request.host}{request.path}"
    if any(re.fullmatch(pattern, request.host + request.path, re.IGNORECASE) for pattern in OTHERS):
        return []
    found = _found(request)
    if found is None:
        return [f"{line}: no model is known for it"]
    body = request.json
    name = found[0] if request.method != "GET" else ""
    if not name:
        return [] if not body else [f"{line}: a body, {body}, where none is expected"]
    wrong = _fits(name, request.api, body, is_sent=True)
    return [f"{line}: {why}" for why in wrong if not why.startswith(DEVIATIONS)]


def of_answer(request: Request, status: int, body: Any) -> list[str]:
    """What is wrong with what is answered; `body` is what JSON says."""
    found = _found(request)
    if found is None:
        return []
    name = ("ErrorResponse" if request.host == "management.azure.com" else "") if status >= 400 else found[1]
    if not name or (body is None and status in (202, 204)):
        return []
    line = f"{status} to {request.method} {request.host}{request.path}"
    return [f"{line}: {why}" for why in _fits(name, request.api, body, is_sent=False)]


def _found(request: Request) -> tuple[str, str] | None:
    """The models of a request and of its answer."""
    for method, pattern, sent, answered in TABLE:
        if re.fullmatch(method, request.method) and re.fullmatch(pattern, request.host + request.path, re.IGNORECASE):
            return sent, answered
    return None


def _fits(name: str, api: str, body: Any, *, is_sent: bool) -> Iterator[str]:
    if name.startswith("["):
        if not isinstance(body, dict) or set(body) - {"value", "nextLink"} or not isinstance(body.get("value"), list):
            yield f"not a page of {name}: {body}"
        else:
            for number, one in enumerate(body["value"]):
                yield from _wrong(model(name[1:-1], api), one, f".value.{number}", is_sent)
    else:
        yield from _wrong(model(name, api), body, "", is_sent)


@functools.cache
def model(name: str, api: str) -> type:
    """A model by its name, `history:Run`, in the service's version, such as 2024-01-01-preview."""
    package, _, name = name.rpartition(":")
    if not package:
        for versioned in BY_VERSION:
            with contextlib.suppress(ModuleNotFoundError, AttributeError):
                return typing.cast(
                    type, getattr(importlib.import_module(versioned.format(api.replace("-", "_"))), name)
                )
        package = "ml"
    return typing.cast(type, getattr(importlib.import_module(PACKAGES[package]), name))


# --- a value and its type


@dataclass(frozen=True)
class _Key:
    kind: Any
    is_required: bool
    is_read_only: bool = False
    is_write_only: bool = False


def _wrong(kind: Any, value: Any, at: str, is_sent: bool) -> Iterator[str]:
    """What is wrong with a value, as `where: what`; `at` is where, with a dot before it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in (Any, object):
        return
    if origin in (typing.Union, types.UnionType):
        yield from _wrong_choice(
            [one for one in inner if one is not type(None)], value, at, is_sent, type(None) in inner
        )
    elif origin is typing.Literal:
        if value not in [one.value if isinstance(one, enum.Enum) else one for one in inner]:
            yield f"{at}: {value!r} is not {inner}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{at}: {value!r} is not a list"
        else:
            for number, one in enumerate(value):
                yield from _wrong(inner[0], one, f"{at}.{number}", is_sent)
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{at}: {value!r} is not an object"
        else:
            for key, one in value.items():
                yield from _wrong(inner[1], one, f"{at}.{key}", is_sent)
    elif issubclass(kind, enum.Enum):
        if value not in [one.value for one in kind]:
            yield f"{at}: {value!r} is not of {kind.__name__}"
    elif hasattr(kind, "_attribute_map") or hasattr(kind, "_is_model"):
        yield from _wrong_model(kind, value, at, is_sent)
    elif not _is_plain(kind, value):
        yield f"{at}: {value!r} is not of type {kind.__name__}"


def _wrong_choice(kinds: list[Any], value: Any, at: str, is_sent: bool, may_be_null: bool) -> Iterator[str]:
    if value is None:
        if not may_be_null:
            yield f"{at}: null"
        return
    enums = [one for one in kinds if isinstance(one, type) and issubclass(one, enum.Enum)]
    tried = [list(_wrong(one, value, at, is_sent)) for one in enums or kinds]
    if all(tried):
        yield from tried[0]


def _wrong_model(kind: type, value: Any, at: str, is_sent: bool) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}: {value!r} is not a {kind.__name__}"
        return
    kind, why = _variant(kind, value)
    if why:
        yield f"{at}.{why}"
        return
    keys, is_open = keys_of(kind)
    value = _flattened(value, keys)
    name = kind.__name__
    for key, one in value.items():
        if key not in keys:
            if not is_open:
                yield f"{at}.{key}: not known to {name}"
        elif is_sent and keys[key].is_read_only:
            yield f"{at}.{key}: read-only in {name}"
        else:
            yield from (f"{why} ({name})" for why in _wrong(keys[key].kind, one, f"{at}.{key}", is_sent))
    for key, about in keys.items():
        if about.is_required and key not in value and not (about.is_read_only if is_sent else about.is_write_only):
            yield f"{at}.{key}: missing, and required by {name}"


def _flattened(value: dict[str, Any], keys: typing.Iterable[str]) -> dict[str, Any]:
    """Models before 1.35 name some of what lies deeper by its path: `properties.description`."""
    made: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, dict) and any(path.startswith(f"{key}.") for path in keys):
            made |= _flattened({f"{key}.{name}": inner for name, inner in one.items()}, keys)
        else:
            made[key] = one
    return made


def _variant(kind: Any, value: dict[str, Any]) -> tuple[type, str]:
    """The model that a discriminator chooses, and what is wrong with it."""
    if "__mapping__" in vars(kind):
        keys_of(kind)
        key = next(one._rest_name for one in kind._attr_to_rest_field.values() if one._is_discriminator)
        variants = kind.__mapping__
    elif getattr(kind, "_subtype_map", None) and "_subtype_map" in vars(kind):
        ((attribute, names),) = kind._subtype_map.items()
        key = kind._attribute_map[attribute]["key"]
        variants = {word: getattr(importlib.import_module(_package(kind)), name) for word, name in names.items()}
    else:
        return kind, ""
    if value.get(key) not in variants:
        return kind, f"{key}: {value.get(key)!r} is none of {kind.__name__}'s kinds, {', '.join(sorted(variants))}"
    return _variant(variants[value[key]], value)


@functools.cache
def keys_of(kind: Any) -> tuple[dict[str, _Key], bool]:
    """The keys of a model as they are on the wire; and whether others may stand beside them."""
    if hasattr(kind, "_is_model"):
        kind.__new__(kind)  # fills in what comes next
        hints = typing.get_type_hints(kind, localns={"_models": importlib.import_module(_package(kind))})
        return {
            about._rest_name: _Key(
                hints[name],
                not (
                    typing.get_origin(hints[name]) in (typing.Union, types.UnionType)
                    and type(None) in typing.get_args(hints[name])
                ),
                about._visibility == ["read"],
                about._visibility is not None and "read" not in about._visibility,
            )
            for name, about in kind._attr_to_rest_field.items()
        }, False
    made: dict[str, _Key] = {}
    for name, about in kind._attribute_map.items():
        rules = kind._validation.get(name, {})
        is_read_only = bool(rules.get("readonly"))
        is_required = bool(rules.get("required"))
        one = _named(about["type"], kind)
        key = about["key"].replace("\\.", ".")
        made[key] = _Key(one if is_required else one | None, is_required, is_read_only)
    return made, "additional_properties" in kind._attribute_map


def _package(kind: type) -> str:
    return kind.__module__.rpartition(".")[0]


def _named(name: str, kind: type) -> Any:
    """The type that a generated client calls so."""
    if name[0] == "[":
        return list[_named(name[1:-1], kind)]  # type: ignore[misc]
    if name[0] == "{":
        return dict[str, _named(name[1:-1], kind)]  # type: ignore[misc]
    plain = {
        "object": object,
        "str": str,
        "bool": bool,
        "int": int,
        "long": int,
        "float": float,
        "bytearray": str,
        "iso-8601": datetime.datetime,
        "duration": datetime.timedelta,
    }
    return plain[name] if name in plain else getattr(importlib.import_module(_package(kind)), name)


def _is_plain(kind: type, value: Any) -> bool:
    from msrest.serialization import Deserializer

    if kind in (datetime.datetime, datetime.timedelta):
        read = Deserializer.deserialize_iso if kind is datetime.datetime else Deserializer.deserialize_duration
        try:
            return isinstance(value, str) and read(value) is not None
        except Exception:
            return False
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
