"""The way to Azure: one signed-in client for a workspace, and every failure as one error that says what to do next.

`connect` is given the options and gives an `Azure`, which signs in when it is first used. `asking` turns whatever the
SDKs raise into an `AzureError`; nothing of theirs passes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from ..compute.base import UnreachableError
from ..errors import AzureError, PlatoError, missing_extra
from .options import AzureOptions

Value = TypeVar("Value")
ARM = "https://management.azure.com"
RETRIES: dict[str, Any] = {"retry_total": 5, "retry_backoff_factor": 0.5, "retry_backoff_max": 20}
"""Of azure-core: 429, 408 and 5xx are asked again for about 15 s, or as long as the answer says."""
NO_NETWORK = "Is there a network, and a proxy (HTTPS_PROXY)?"
SECRET_KEYS = re.compile(r"(sig=|(?:account)?key=|secret=|token=)[^&\s\"']+", re.IGNORECASE)


class AzureUnreachableError(UnreachableError, AzureError):
    """Azure did not answer, or asked to be left alone for a while; asking again may help."""


class NotThereError(AzureError):
    """Azure has no such thing."""


def connect(options: AzureOptions, *, workspace: bool = True) -> Azure:
    """A client for what the options name.

    Args:
        options: Subscription, resource group and workspace.
        workspace: Whether the workspace is there already; without it only its resource group is addressed.
    """
    return Azure(options, has_workspace=workspace)


class Azure:
    """Azure as one project sees it; signs in when it is first asked something.

    Attributes:
        options: What plato.yaml says.
    """

    def __init__(self, options: AzureOptions, *, has_workspace: bool = True) -> None:
        self.options = options
        self._has_workspace = has_workspace

    @property
    def group_path(self) -> str:
        """Of the resource group, in the address of Azure Resource Manager."""
        return f"/subscriptions/{self.options.subscription}/resourceGroups/{self.options.resource_group}"

    @property
    def workspace_path(self) -> str:
        """Of the workspace."""
        provider = "providers/Microsoft.MachineLearningServices/workspaces"
        return f"{self.group_path}/{provider}/{self.options.workspace}"

    @cached_property
    def credential(self) -> Any:
        """Environment variables, managed identity, `az login`, in the order of azure-identity.

        Raises:
            MissingExtraError: The extra is not installed.
        """
        try:
            from azure.identity import DefaultAzureCredential
        except ImportError:
            raise missing_extra("azure-identity", "azure") from None
        # What it tried in vain is in its exception, which becomes our error; the log would say it a second time.
        logging.getLogger("azure.identity").setLevel(logging.ERROR)
        return DefaultAzureCredential(exclude_interactive_browser_credential=True)

    @cached_property
    def ml(self) -> Any:
        """`azure.ai.ml.MLClient`, without telemetry and progress bars.

        Raises:
            MissingExtraError: The extra is not installed.
        """
        try:
            from azure.ai.ml import MLClient
        except ImportError:
            raise missing_extra("azure-ai-ml", "azure") from None
        _quiet_sdk()
        with asking("the workspace"):
            return MLClient(
                self.credential,
                self.options.subscription,
                self.options.resource_group,
                self.options.workspace if self._has_workspace else None,
                enable_telemetry=False,
                show_progress=False,
                **RETRIES,
            )

    def arm(
        self, method: str, path: str, api_version: str, body: Any = None, *, what: str = ""
    ) -> dict[str, Any] | None:
        """Ask Azure Resource Manager itself, for what the SDK lacks or gets wrong.

        Args:
            method: GET, PUT, POST, PATCH or DELETE.
            path: From `/subscriptions/` on, or a whole address that Azure gave.
            api_version: Of the resource provider.
            body: JSON.
            what: What is asked, for the error.

        Returns:
            The answer; None for one without content.

        Raises:
            AzureError: It refused; `NotThereError` when there is no such thing.
        """
        with asking(what or f"{method} {path.rpartition('/providers/')[2]}"):
            return self._send(method, path if path.startswith("https://") else f"{ARM}{path}", api_version, body)

    def workspace_get(self, path: str, api_version: str, *, what: str = "") -> dict[str, Any]:
        """GET something of the workspace: `jobs/night`."""
        return self.arm("GET", f"{self.workspace_path}/{path}", api_version, what=what) or {}

    def close(self) -> None:
        """Close what was opened; it opens again when it is used."""
        for name in ("ml", "_pipeline", "credential"):
            kept = self.__dict__.pop(name, None)
            if hasattr(kept, "close"):
                kept.close()

    @cached_property
    def _pipeline(self) -> Any:
        try:
            from azure.core import PipelineClient
            from azure.core.pipeline import policies
        except ImportError:
            raise missing_extra("azure-core", "azure") from None
        steps = [
            policies.HeadersPolicy({"Accept": "application/json"}),
            policies.UserAgentPolicy(base_user_agent="platotk"),
            policies.RetryPolicy(**RETRIES),
            policies.BearerTokenCredentialPolicy(self.credential, f"{ARM}/.default"),
        ]
        return PipelineClient(ARM, policies=steps)

    def _send(self, method: str, url: str, api_version: str, body: Any) -> dict[str, Any] | None:
        from azure.core.exceptions import HttpResponseError
        from azure.core.rest import HttpRequest

        request = HttpRequest(method, url, params={"api-version": api_version}, json=body)
        response = self._pipeline.send_request(request)
        if response.status_code == 401:
            # A token may be refused before its time (a clock that is wrong, a role that is new): once with a new one.
            self.close()
            response = self._pipeline.send_request(request)
        if response.status_code >= 400:
            raise HttpResponseError(response=response)
        text = response.text()
        answer = json.loads(text) if text.strip() else None
        return answer if isinstance(answer, dict) or answer is None else {"value": answer}


def ask(call: Callable[[], Value], what: str) -> Value:
    """Ask Azure one thing; see `asking`."""
    with asking(what):
        return call()


def _quiet_sdk() -> None:
    """Keep off the screen what the SDK says to its developers: that a class of its own is experimental, and such."""
    from azure.ai.ml._artifacts import _blob_storage_helper as uploads

    logging.getLogger("azure.ai.ml").setLevel(logging.WARNING)
    logging.getLogger("azure.ai.ml._utils._experimental").setLevel(logging.ERROR)
    # After each upload it prints the code that ends the colour of a progress bar, also where there was none.
    vars(uploads)["print"] = lambda *_, **__: None


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """What the SDKs raise inside becomes one `AzureError`; our own errors pass.

    Args:
        what: What is asked for, as the subject of the error: "compute rl-cpu".

    Raises:
        AzureError: Azure refused, or its SDK failed; `AzureUnreachableError` when asking again may help.
    """
    try:
        yield
    except PlatoError:
        raise
    except Exception as error:
        raise as_azure_error(error, what) from error


def as_azure_error(error: Exception, what: str) -> AzureError:
    """The one error for anything that azure-core, azure-identity, azure-ai-ml or azure-storage raise."""
    from azure.core import exceptions

    code, text = _code_and_text(error)
    status = getattr(error, "status_code", None)
    silence = (exceptions.ServiceRequestError, exceptions.ServiceResponseError, ConnectionError, TimeoutError)
    if isinstance(error, silence) or (status is None and _is_network(error)):
        return AzureUnreachableError(f"{what}: Azure does not answer: {text}", hint=NO_NETWORK)
    if status is None and isinstance(error, exceptions.ClientAuthenticationError):
        if _has_no_way_to_sign_in(error):
            return AzureUnreachableError(f"{what}: Azure's sign-in does not answer: {text}", hint=NO_NETWORK)
        return AzureError(f"not signed in to Azure: {text}", hint="Sign in with: az login   (then: plato azure doctor)")
    for is_it, kind, hint in _CURES:
        if is_it(status, code, text):
            return kind(f"{what}: {text}", hint=hint)
    name = type(error).__name__
    return AzureError(f"{what}: {text or name}" + (f" ({code})" if code else ""), hint="More with: plato azure doctor")


_QUOTA = re.compile(r"quota|cores? limit|OperationNotAllowed|ClusterCoreQuota|insufficient.{0,20}cores", re.IGNORECASE)
_IMAGE = re.compile(r"image build|ImageBuildFailure|docker build|conda.{0,40}(fail|unsatisf)", re.IGNORECASE)
_NO_ROOM = re.compile(r"AllocationFailed|SkuNotAvailable|ZonalAllocation|capacity", re.IGNORECASE)
_Cure = tuple[Callable[[Any, str, str], bool], type[AzureError], str]
_CURES: tuple[_Cure, ...] = (
    (
        lambda status, code, text: bool(_QUOTA.search(f"{code} {text}")),
        AzureError,
        "Ask for more quota in the portal (Subscription, Usage + quotas), or use fewer nodes or another size. "
        "Dedicated and low priority have quotas of their own: plato azure doctor shows both.",
    ),
    (
        lambda status, code, text: bool(_NO_ROOM.search(f"{code} {text}")),
        AzureError,
        "The region has no such machines at the moment: try another size or location, or later.",
    ),
    (
        lambda status, code, text: bool(_IMAGE.search(f"{code} {text}")),
        AzureError,
        "Read the build's log in the studio (Environments), correct environment: in plato.yaml, and submit again.",
    ),
    (
        lambda status, code, text: status == 401,
        AzureError,
        "Your sign-in is not taken: az login again, and az account set --subscription as in plato.yaml.",
    ),
    (
        lambda status, code, text: status == 403,
        AzureError,
        "You lack a role: ask for AzureML Data Scientist on the workspace (Contributor on the resource group to make "
        "things), and Storage Blob Data Contributor where storage keys are switched off.",
    ),
    (
        lambda status, code, text: code in ("SubscriptionNotFound", "InvalidSubscriptionId"),
        AzureError,
        "Which there are: az account list. Correct subscription: in plato.yaml.",
    ),
    (lambda status, code, text: status == 404, NotThereError, "Make what is missing with: plato azure up"),
    (
        lambda status, code, text: status == 409,
        AzureError,
        "Something else is changing it, or the name is taken. Look with: plato azure status, and try again.",
    ),
    (
        lambda status, code, text: status == 429,
        AzureUnreachableError,
        "Azure asks for fewer requests; wait a minute and try again.",
    ),
    (
        lambda status, code, text: status is not None and (status >= 500 or status == 408),
        AzureUnreachableError,
        "That is Azure's own trouble (https://azure.status.microsoft); try again in some minutes.",
    ),
    (
        lambda status, code, text: status == 400,
        AzureError,
        "Correct what it names under backends: in plato.yaml; --dry-run shows what is sent.",
    ),
)


_CUT_OFF = re.compile(r"NewConnectionError|NameResolutionError|Max retries exceeded|Unable to connect to proxy")


def _has_no_way_to_sign_in(error: Exception) -> bool:
    """Each credential tells in a line of its own why it failed; a managed identity answers on Azure's machines only."""
    return any(_CUT_OFF.search(line) for line in str(error).splitlines() if "ManagedIdentity" not in line)


def cure(text: str) -> str:
    """What to do about a failure that is told in words only: no quota, no machines, no image; empty for others."""
    return next((hint for is_it, _, hint in _CURES if is_it(None, "", text)), "")


def _code_and_text(error: Exception) -> tuple[str, str]:
    """Azure's own code and first sentence; never a secret, never a page of HTML."""
    told = getattr(error, "error", None)
    code = str(getattr(told, "code", "") or "")
    text = str(getattr(told, "message", "") or getattr(error, "message", "") or error)
    inner = _innermost(getattr(error, "response", None))
    if inner is not None:
        code, text = inner
    text = SECRET_KEYS.sub(r"\1...", re.sub(r"<[^>]+>", " ", text))
    text = " ".join(text.split())
    return code, text[:400] or type(error).__name__


def _innermost(response: Any) -> tuple[str, str] | None:
    """`{"error": {"code", "message", "details": [...]}}`, whose details often say more than itself."""
    try:
        told = json.loads(response.text())["error"]
        code, text = str(told.get("code") or ""), str(told.get("message") or "")
        extra = [str(one.get("message") or "") for one in told.get("details") or [] if isinstance(one, dict)]
    except Exception:  # whatever a proxy between here and there made of it
        return None
    return code, " ".join([text, *(one for one in extra if one and one not in text)])


def _is_network(error: Exception) -> bool:
    """requests, urllib3 and http.client have trees of errors of their own."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(kinds & {"requests.ConnectionError", "requests.Timeout", "urllib3.HTTPError", "http.HTTPException"})
