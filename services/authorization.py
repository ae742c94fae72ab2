"""Who may ask: API keys and their rate, in front of everything but the page and the probes."""

from __future__ import annotations

import ipaddress
import math
from http import HTTPStatus
from typing import Literal

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from services.access import PROBES
from services.http_errors import error_response
from services.keys import KeyRing
from services.request_facts import current, note

OPEN = {"/", "/web", "/swagger", "/docs", "/openapi.json", *PROBES}
"""Routes that need no key. Whatever is added later needs one until it is named here."""
LONGEST_KEY = 200


class RequireKey:
    """Refuses requests without a good key with 401, and those that come too often with 429.

    Args:
        ring: the keys that are good.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing):
        self.app = app
        self.ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = current.get()
        if scope["type"] != "http" or (facts is not None and facts.route in OPEN):
            await self.app(scope, receive, send)
            return
        presented = _presented(Headers(scope=scope))
        key = self.ring.find(presented) if presented else None
        if key is None:
            response = error_response(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "the request's API key is not known." if presented else "the request has no API key.",
                "Send the header Authorization: Bearer KEY, or X-API-Key: KEY; the operator makes keys.",
            )
            response.headers["WWW-Authenticate"] = 'Bearer realm="lienzo"'
            await response(scope, receive, send)
            return
        note(key=key.name)
        if seconds := self.ring.wait(key):
            response = error_response(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate_limited",
                "this API key asks more often than it may.",
                f"Wait {math.ceil(seconds)} s.",
            )
            response.headers["Retry-After"] = str(math.ceil(seconds))
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)


def check_reader(request: Request, readers: Literal["local", "on", "off"]) -> None:
    """Refuse who may not read the metrics, as if there were none.

    Raises:
        HTTPException: 404.
    """
    if readers == "on" or (readers == "local" and _is_local(request)):
        return
    raise HTTPException(HTTPStatus.NOT_FOUND, "there is no /metrics")


def _is_local(request: Request) -> bool:
    """Whether the client is on this machine. Behind a proxy here, X-Forwarded-For has told the server who it is."""
    try:
        return ipaddress.ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False


def _presented(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    return presented[:LONGEST_KEY]
