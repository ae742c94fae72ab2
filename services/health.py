"""Services that lack something stay up and say what; the gateway asks them all whether they are ready.

A process that ends because its weights or its gallery are missing would be started again at once, and end again. So a
service whose beginning fails keeps the reason, answers it, and tries again every few seconds.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlparse

import aiohttp
import anyio.to_thread
import bentoml
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import metrics
from services.http_errors import error_response
from services.messages import Unreachable
from services.tracing import request_from_inside
from shared.errors import LienzoError

log = logging.getLogger(__name__)

TRY_AGAIN_SECONDS = 10.0
PROBE_SECONDS = 5.0
_FOLDERS = re.compile(r"(?<=')/(?:[^'/]+/)*|(?<![\w.:/'])/(?:[^\s/'\"]+/)+")

_trying = threading.Lock()


def survives(begin: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a service's ``__init__`` keep what it lacks as ``failure`` instead of raising it."""

    @functools.wraps(begin)
    def begun(service: Any) -> None:
        try:
            begin(service)
        except (LienzoError, OSError) as error:
            log.error("%s cannot work: %s", type(service).__name__, error)
            failure = error if isinstance(error, LienzoError) else LienzoError(f"{error}.")
            service.failure, service.failed = failure, time.monotonic()
        else:
            service.failure = None

    return begun


def revive(service: Any) -> None:
    """Let a service that could not begin try again beside this, where its last try is some seconds ago.

    Raises:
        Unreachable: it cannot work yet; the message says why, without the paths of this machine.
    """
    failure = getattr(service, "failure", None)
    if failure is None:
        return
    if time.monotonic() - service.failed > TRY_AGAIN_SECONDS and _trying.acquire(blocking=False):
        threading.Thread(target=_try_again, args=(service,), name="revive", daemon=True).start()
    raise unready(failure)


def _try_again(service: Any) -> None:
    try:
        service.__init__()
        if service.failure is None:
            log.warning("%s works again", type(service).__name__)
    finally:
        _trying.release()


def unready(error: LienzoError) -> Unreachable:
    """A failure of a service's own, as an answer may tell it."""
    return Unreachable(without_folders(error.message), hint=without_folders(error.hint), code=error.code)


def without_folders(text: str) -> str:
    """``text`` with every absolute path cut to its last part: an answer may leave the house."""
    return _FOLDERS.sub("", text)


class Inside:
    """Around a service behind the gateway: its readiness with the reason, its counts, and a line for every call."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == "/readyz":
            await (await _readiness(bentoml.get_current_service()))(scope, receive, send)
        elif scope["path"] == "/metrics":
            await Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)(scope, receive, send)
        else:
            await self._call(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with request_from_inside(Headers(scope=scope)):
            try:
                await self.app(scope, receive, watched)
            finally:
                milliseconds = round(1000 * (time.perf_counter() - began), 1)
                log.info("called", extra={"method": scope["path"], "status": status, "milliseconds": milliseconds})


async def _readiness(service: Any) -> Response:
    """200, or 503 with the reason. In a thread of its own: a service that paints is ready all the same."""
    try:
        ready = await anyio.to_thread.run_sync(functools.partial(is_ready, service))
    except LienzoError as error:
        return error_response(HTTPStatus.SERVICE_UNAVAILABLE, error.code, error.message, error.hint)
    if not ready:
        return error_response(HTTPStatus.SERVICE_UNAVAILABLE, "unready", "it is not ready.", "Its log says more.")
    return PlainTextResponse("\n")


def is_ready(service: Any) -> bool:
    """What a service's ``__is_ready__`` says.

    Raises:
        Unreachable: the service could not begin, or lacks something.
    """
    revive(service)
    try:
        return bool(service.__is_ready__()) if hasattr(service, "__is_ready__") else True
    except Unreachable:
        raise
    except LienzoError as error:
        raise unready(error) from error


Parts = Mapping[str, "bentoml.Service[Any]"]
"""The services behind a gateway, by name."""


async def check(parts: Parts) -> None:
    """Ask every service whether it is ready.

    Raises:
        Unreachable: one is not; the message names it and the reason.
    """
    for name, answer in (await _ask(parts, "/readyz")).items():
        if answer is None:
            raise Unreachable(
                f"the {name} does not answer.", hint="It starts, stops or has failed; the server's log says more."
            )
        status, body = answer
        if status != HTTPStatus.OK:
            error = json.loads(body)["error"]
            raise Unreachable(f"the {name} is not ready: {error['message']}", hint=error["hint"], code=error["code"])


async def counts(parts: Parts) -> dict[str, bytes | None]:
    """What every service has counted, in Prometheus's text format; None of one that does not answer."""
    answers = await _ask(parts, "/metrics")
    return {name: None if answer is None else answer[1] for name, answer in answers.items()}


async def _ask(parts: Parts, path: str) -> dict[str, tuple[int, bytes] | None]:
    """Status and body that each service answers to a GET; None of one that does not answer in time."""
    return dict(zip(parts, await asyncio.gather(*(_get(part, path) for part in parts.values())), strict=True))


async def _get(part: bentoml.Service[Any], path: str) -> tuple[int, bytes] | None:
    address = urlparse(part.url or "")
    local = address.scheme == "file"  # a socket of this machine
    connector = aiohttp.UnixConnector(unquote(address.path)) if local else None
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(PROBE_SECONDS)) as session,
            session.get(f"{'http://service' if local else part.url}{path}") as answer,
        ):
            return answer.status, await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("no answer from %s: %r", part.name, error)
        return None
