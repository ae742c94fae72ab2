"""Limits that hold before a request is parsed; headers and compression that answers carry; an answer in any case."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.http_errors import error_response

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
}


class BodyLimit:
    """Refuses a body that is, or grows, larger than ``most`` bytes, without reading the rest of it.

    Args:
        seconds: refuses a body that takes longer to arrive, however it trickles.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float | None = None):
        self.app = app
        self.most = most
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.most:
            await self._refuse(scope, receive, send)
            return
        body, more = bytearray(), scope["method"] in ("POST", "PUT", "PATCH", "DELETE")
        until = None if self.seconds is None else asyncio.get_running_loop().time() + self.seconds
        # Read here, whole: every endpoint needs all of it, and a chunked body does not say how long it is.
        while more:
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                response = error_response(
                    HTTPStatus.REQUEST_TIMEOUT,
                    "body_too_slow",
                    f"the request's body took longer than {self.seconds:g} s to arrive.",
                    "Send a smaller picture, or from a faster network.",
                )
                response.headers["Connection"] = "close"
                await response(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                # Nobody hears this; but without an answer BentoML would wait for one until its timeout.
                response = error_response(HTTPStatus.BAD_REQUEST, "bad_request", "the body ended early.")
                await response(scope, receive, send)
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                await self._refuse(scope, receive, send)
                return
        messages = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body_too_large",
            f"the request's body is larger than {self.most:,} bytes.",
            "Send a smaller picture.",
        )
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


class SecurityHeaders:
    """Adds :data:`SECURITY_HEADERS` to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)


class CompressTexts:
    """Compresses the answers that are text: pictures are compressed already, and would only cost time.

    A strong ETag names bytes (RFC 9110, section 8.8.1), and those of the compressed form are others: it becomes weak.

    Args:
        pictures: the paths, and their beginnings, that answer with pictures.
    """

    def __init__(self, app: ASGIApp, pictures: tuple[str, ...]):
        self.app = app
        self.compressed = GZipMiddleware(app, minimum_size=1000, compresslevel=6)
        self.pictures = pictures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                tag = headers.get("etag", "")
                if tag.startswith('"') and "content-encoding" in headers:
                    headers["etag"] = f"W/{tag}"
            await send(message)

        if scope["type"] != "http" or scope["path"].startswith(self.pictures):
            await self.app(scope, receive, send)
        else:
            await self.compressed(scope, receive, tagged)
