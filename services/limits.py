"""Limits that hold before a request is parsed; headers and compression that answers carry; an answer in any case."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.http_errors import error_response

log = logging.getLogger(__name__)

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
    """Refuses a body that is, or grows, larger than ``most`` bytes, without reading the rest of it."""

    def __init__(self, app: ASGIApp, most: int):
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.most:
            await self._refuse(scope, receive, send)
            return
        body, more = bytearray(), scope["method"] in ("POST", "PUT", "PATCH", "DELETE")
        # Read here, whole: every endpoint needs all of it, and a chunked body does not say how long it is.
        while more:
            message = await receive()
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

    Args:
        pictures: the paths, and their beginnings, that answer with pictures.
    """

    def __init__(self, app: ASGIApp, pictures: tuple[str, ...]):
        self.app = app
        self.compressed = GZipMiddleware(app, minimum_size=1000, compresslevel=6)
        self.pictures = pictures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] != "http" or scope["path"].startswith(self.pictures)
        await (self.app if plain else self.compressed)(scope, receive, send)


class AnswerAlways:
    """Answers where BentoML's own handlers end in an error without one.

    `/readyz` does so while a service that it asks takes longer than five seconds, as it may when it starts. BentoML
    then waits for the answer until its timeout, and the process could not be stopped for so long.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            log.warning("%s ended without an answer: %r", scope["path"], error)
            response = error_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "unreachable",
                "a part of the service does not answer.",
                "Try again in a few seconds.",
            )
            await response(scope, receive, send)
