"""What is known of a request while it is answered, and the one line and the counts when that is over."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import metrics
from services.http_errors import error_response
from services.request_facts import Facts, current
from services.tracing import request_from_outside

log = logging.getLogger(__name__)

NOWHERE = "/{path:path}"
"""Template of the route that takes what no other does."""
PROBES = ("/livez", "/healthz", "/readyz", "/metrics")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def template(app: Starlette, scope: Scope) -> str:
    """The route that takes a request, as it is written in the application: ``/v1/pictures/{id}``, ``/web``."""
    found = NOWHERE
    for route in app.routes:
        match, _ = route.matches(scope)
        if match is Match.FULL and route.path != NOWHERE:
            return route.path
        if match is Match.PARTIAL and found == NOWHERE:  # it takes the path, with another method
            found = route.path
    return found


class Running:
    """The requests that are being answered, and whether new ones are taken."""

    def __init__(self) -> None:
        self.count = 0
        self.draining = threading.Event()
        self._changed = threading.Condition()

    def enter(self) -> None:
        with self._changed:
            self.count += 1

    def leave(self) -> None:
        with self._changed:
            self.count -= 1
            self._changed.notify_all()

    def wait_until_none(self, seconds: float) -> bool:
        """Whether all were answered within ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: self.count == 0, seconds)


running = Running()
"""Those of the gateway in this process."""


class Access:
    """Outermost of the application: ids, the access line and the counts.

    Args:
        app: the application with everything in it.
        routes: the same, to look up what its routes are called.
    """

    def __init__(self, app: ASGIApp, routes: Starlette):
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with request_from_outside(Headers(scope=scope)) as id:
            facts = Facts(id, template(self.routes, scope))
            token = current.set(facts)
            try:
                await self._answer(scope, receive, send, facts)
            finally:
                current.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, facts: Facts) -> None:
        began = time.perf_counter()
        status, size, ended = 0, 0, False

        async def counted(message: Message) -> None:
            nonlocal status, size, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = facts.id
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
                ended = not message.get("more_body", False)
            await send(message)

        def departed() -> None:
            facts.left = facts.left or not ended

        watched = facts.route not in PROBES
        departure = _Departure(receive, departed)
        if watched:
            running.enter()
        try:
            await self.app(scope, departure.receive, counted)
        except Exception:
            # The application has answered and logged this one already.
            if not ended:
                raise
        finally:
            departure.stop()
            if watched:
                running.leave()
            self._tell(scope, facts, status or HTTPStatus.INTERNAL_SERVER_ERROR, size, time.perf_counter() - began)

    def _tell(self, scope: Scope, facts: Facts, status: int, size: int, seconds: float) -> None:
        route = "other" if facts.route == NOWHERE else facts.route
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics.requests.labels(route, method, int(status), facts.engine, facts.model).inc()
        metrics.request_seconds.labels(route, facts.engine).observe(seconds)
        if facts.code:
            metrics.refusals.labels(facts.code).inc()
        if facts.left:
            metrics.departures.labels(route).inc()
        if facts.route in PROBES and status == HTTPStatus.OK:
            return  # probes come every few seconds
        log.info(
            "answered",
            extra={
                "method": method,
                "route": route,
                "status": int(status),
                "milliseconds": round(1000 * seconds, 1),
                "bytes": size,
                "engine": facts.engine,
                "model": facts.model,
                "key": facts.key,
                "code": facts.code,
                "left": facts.left or "",
            },
        )


class RefuseWhileStopping:
    """A server that stops takes nothing new but the probes.

    Inside of what lets pages of other origins read answers, or they would see no refusal but a broken network.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = current.get()
        refused = running.draining.is_set() and facts is not None and facts.route not in PROBES
        await (_stopping() if refused else self.app)(scope, receive, send)


class _Departure:
    """Listens for the client's leaving once its request is here whole: nothing else does while a painting is made."""

    def __init__(self, receive: Receive, on_departure: Callable[[], object]):
        self._receive = receive
        self._on_departure = on_departure
        self._listening: asyncio.Future[Message] | None = None

    async def receive(self) -> Message:
        if self._listening is not None:
            return await asyncio.shield(self._listening)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._on_departure()
        elif not message.get("more_body", False):
            self._listening = asyncio.ensure_future(self._receive())
            self._listening.add_done_callback(self._heard)
        return message

    def stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    def _heard(self, listening: asyncio.Future[Message]) -> None:
        if not listening.cancelled() and listening.exception() is None:
            self._on_departure()


def _stopping() -> ASGIApp:
    response = error_response(
        HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "this server is being stopped.", "Try again in a few seconds."
    )
    response.headers["Connection"] = "close"
    return response
