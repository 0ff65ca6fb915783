"""Whatever the SDKs raise becomes one error that says what to type next."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from platotk.azure.client import AzureUnreachableError, NotThereError, as_azure_error, ask
from platotk.errors import AzureError, ProjectError

exceptions = pytest.importorskip("azure.core.exceptions", reason="needs the extra azure")


def refusal(status: int, code: str = "", message: str = "no") -> Exception:
    """What azure-core raises for an answer."""
    body = json.dumps({"error": {"code": code, "message": message, "details": [{"code": "X", "message": "because"}]}})
    response = SimpleNamespace(status_code=status, reason="", text=lambda *_: body, headers={}, request=None)
    error: Exception = exceptions.HttpResponseError(message=message, response=response)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "next_step"),
    [
        (refusal(401), AzureError, "az login"),
        (refusal(403, "AuthorizationFailed"), AzureError, "AzureML Data Scientist"),
        (refusal(404, "ResourceNotFound"), NotThereError, "plato azure up"),
        (refusal(404, "SubscriptionNotFound"), AzureError, "az account list"),
        (refusal(409), AzureError, "plato azure status"),
        (refusal(429), AzureUnreachableError, "wait a minute"),
        (refusal(503), AzureUnreachableError, "some minutes"),
        (refusal(400, "ClusterCoreQuotaReached"), AzureError, "more quota"),
        (refusal(409, "OperationNotAllowed", "exceeding approved cores quota"), AzureError, "more quota"),
        (refusal(400, "UserError", "Image build failed"), AzureError, "the build's log"),
        (refusal(400), AzureError, "--dry-run"),
        (exceptions.ServiceRequestError("no route"), AzureUnreachableError, "proxy"),
        (exceptions.ClientAuthenticationError("DefaultAzureCredential failed"), AzureError, "az login"),
        (
            exceptions.ClientAuthenticationError(
                "DefaultAzureCredential failed\n\tEnvironmentCredential: NewConnectionError(host='login')"
            ),
            AzureUnreachableError,
            "proxy",
        ),
        (
            exceptions.ClientAuthenticationError(
                "DefaultAzureCredential failed\n\tManagedIdentityCredential: Max retries exceeded\n\tAzureCli: az login"
            ),
            AzureError,
            "az login",
        ),
        (ValueError("binascii: Incorrect padding"), AzureError, "plato azure doctor"),
        (KeyError("properties"), AzureError, "plato azure doctor"),
    ],
)
def test_each_failure_has_a_next_step(error: Exception, kind: type[AzureError], next_step: str) -> None:
    told = as_azure_error(error, "compute rl-cpu")
    assert type(told) is kind
    assert next_step in str(told.hint)


def test_it_says_what_azure_said_but_no_secret() -> None:
    told = as_azure_error(refusal(400, "Bad", "no: https://a.blob/x?sv=1&sig=AbC%2Fd and AccountKey=ss=="), "job night")
    assert told.message.startswith("job night: no:")
    assert "because" in told.message
    assert "AbC" not in told.message
    assert "ss==" not in told.message


def test_our_own_errors_and_ctrl_c_pass() -> None:
    def ours() -> Any:
        raise ProjectError("ours")

    def stop() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(ProjectError):
        ask(ours, "x")
    with pytest.raises(KeyboardInterrupt):
        ask(stop, "x")
