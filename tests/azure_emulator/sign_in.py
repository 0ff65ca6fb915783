"""Signing in with a client secret: the tokens say nothing, and whoever shows none is turned away."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

from .routing import Answer, Request, Route, error

if TYPE_CHECKING:
    from .emulator import Emulator

HOST = r"login\.microsoftonline\.com"
TENANT = "99999999-8888-7777-6666-555555555555"
CLIENT, SECRET = "88888888-7777-6666-5555-444444444444", "of-the-emulator"
LASTS_S = 3600


class SignIn:
    """Hands out tokens and knows those that are good."""

    def __init__(self) -> None:
        self._good: set[str] = set()
        self._lock = threading.Lock()

    def token(self, request: Request) -> Answer:
        """The OAuth2 grant `client_credentials`."""
        from urllib.parse import parse_qs

        given = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        if given.get("client_secret") != SECRET:
            told = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}
            return 401, {}, told
        made = secrets.token_urlsafe(24)
        with self._lock:
            self._good.add(made)
        return 200, {}, {"token_type": "Bearer", "expires_in": LASTS_S, "ext_expires_in": LASTS_S, "access_token": made}

    def admit(self, token: str) -> None:
        """A token that Azure itself gave out: that of a job."""
        with self._lock:
            self._good.add(token)

    def expire(self) -> None:
        """No token is good any more; new ones are."""
        with self._lock:
            self._good.clear()

    def refuses(self, request: Request) -> Answer | None:
        """What somebody without a good token is told."""
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if shown in self._good:
            return None
        return error(401, "InvalidAuthenticationToken", "The access token is invalid or has expired.")


def routes(emulator: Emulator) -> list[Route]:
    """Of the sign-in service."""
    base = f"https://login.microsoftonline.com/{TENANT}"

    def configuration(request: Request) -> Answer:
        return (
            200,
            {},
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            },
        )

    def instances(request: Request) -> Answer:
        names = ["login.microsoftonline.com", "login.windows.net"]
        one = {"preferred_network": names[0], "preferred_cache": names[1], "aliases": names}
        return (
            200,
            {},
            {"tenant_discovery_endpoint": f"{base}/v2.0/.well-known/openid-configuration", "metadata": [one]},
        )

    return [
        Route("GET", rf"{HOST}/[^/]+/v2\.0/\.well-known/openid-configuration", configuration),
        Route("GET", rf"{HOST}/common/discovery/instance", instances),
        Route("POST", rf"{HOST}/[^/]+/oauth2/v2\.0/token", emulator.sign_in.token),
    ]
