"""Optimisations over HTTP: a request that waits for its painting, and the jobs of those that do not."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from services.access import running
from services.jobs import Job, JobStore, no_such_job
from services.pipeline import Outcome
from services.request_facts import current
from services.responses import PAINTING, count_distances, described, header_schemas, painting
from services.schemas import EXAMPLE_JOB, ErrorAnswer, ErrorBody, Id, JobLinks, JobStatus, LossPoint
from services.settings import settings
from shared.errors import NotFound
from shared.images import DecodeLimits
from shared.optimized_painting import prepare

POLL_SECONDS = 0.1
EVENT_SECONDS = 0.25
"""Least time between two events."""
HEARTBEAT_SECONDS = 15.0
"""Comments come this often where nothing happens, so that nobody on the way takes the connection for a dead one."""

COMMISSIONED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobStatus,
        "description": "not painted yet: a job, whose address is in Location",
        "headers": header_schemas(Location={"type": "string", "pattern": "^/v1/jobs/"}),
    }
}
Prefer = Annotated[
    str | None,
    Header(
        description="`wait=N`: answer 202 with the job's address after N seconds (RFC 7240); `respond-async`: at once"
    ),
]

_FACTS = ("content", "content_title", "style", "style_title", "content_distance", "style_distance")
_FACTS += ("engine", "model", "model_distance", "format", "seconds")
_JOB = "/v1/jobs/{id}"
_GONE: dict[int | str, dict[str, Any]] = {
    410: {"model": ErrorAnswer, "description": "the job expired or was cancelled"}
}
# OpenAPI 3.1 has no word of its own for the schema of one event.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "for the header Last-Event-ID"},
        "event": {"enum": ["state", "progress"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobStatus"},
        },
    },
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "events, each like this",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "nothing comes any more after the last event that the client has"},
}


def _store(request: Request) -> JobStore:
    return request.app.state.services().jobs


Jobs = Annotated[JobStore, Depends(_store)]


def _known(id: Annotated[Id, PathParameter(description="a job's id", examples=[EXAMPLE_JOB])], jobs: Jobs) -> str:
    """The id of a job that the request's API key may know: those of other keys are not there for it."""
    owner, asker = jobs.job(id).owner, _asker()
    if owner is not None and asker is not None and owner != asker:
        raise no_such_job(id)
    return id


def _asker() -> str | None:
    """Name of the API key of the request that is being answered; None where no keys are asked for."""
    facts = current.get()
    return (facts.key or None) if facts else None


JobId = Annotated[str, Depends(_known)]


async def answer(
    request: Request, store: JobStore, commission: Callable[[], Outcome], *, prefer: str | None, wait: float
) -> Response:
    """The painting that a request asks for; where the optimiser has to make it and needs longer, the job instead.

    A client that leaves while it waits cancels the job, which only it knew.

    Args:
        commission: chooses the pictures and paints, but leaves the optimiser's part in the outcome's ``order``.
        prefer: the request's header.
        wait: seconds to wait at most; the header only shortens that, or asks for up to ``LIENZO_WAIT`` where this is 0.

    Raises:
        LienzoError: whatever is wrong with the request, or the one that the job failed with.
    """
    outcome = await run_in_threadpool(commission)
    count_distances(outcome)
    if outcome.order is None:
        return painting(outcome)
    wished = _wished(prefer)
    if wished is not None:
        wait = min(wished[1], settings().wait)
    job = await run_in_threadpool(_submit, store, outcome)
    job = await _ended(request, store, job.id, wait)
    if job.over:
        response = await run_in_threadpool(_painted, store, job.id)
    else:
        response = JSONResponse(
            status(job).model_dump(mode="json"),
            status_code=HTTPStatus.ACCEPTED,
            headers={"Location": _JOB.format(id=job.id)},
        )
    if wished is not None:
        response.headers["Preference-Applied"] = f"wait={wait:.0f}" if wished[0] == "wait" else wished[0]
    return response


def add_job_routes(app: FastAPI) -> None:
    """Add the endpoints under ``/v1/jobs``."""

    @app.get(_JOB, tags=["jobs"])
    def job(id: JobId, jobs: Jobs, response: Response) -> JobStatus:
        """How far a job is: its state, its place in the queue, its steps and losses."""
        response.headers["Cache-Control"] = "no-store"
        return status(jobs.job(id))

    @app.delete(_JOB, tags=["jobs"])
    def cancel(id: JobId, jobs: Jobs) -> JobStatus:
        """Cancel a job; the optimiser stops at its next step. One that has ended stays as it is."""
        return status(jobs.cancel(id))

    @app.get(f"{_JOB}/result", tags=["jobs"], response_class=Response, responses=described(**PAINTING) | _GONE)
    def result(id: JobId, jobs: Jobs) -> Response:
        """The painting of a job that is done, with the headers of every painting."""
        return _painted(jobs, id)

    @app.get(f"{_JOB}/preview", tags=["jobs"], response_class=Response, responses=described("image/jpeg"))
    def preview(id: JobId, jobs: Jobs) -> Response:
        """A small picture of how far the painting is."""
        return Response(jobs.preview(id), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.get(
        f"{_JOB}/events",
        tags=["jobs"],
        response_class=StreamingResponse,
        responses=_EVENTS,
    )
    async def events(
        id: JobId,
        jobs: Jobs,
        last_event_id: Annotated[str | None, Header(description="go on after this event")] = None,
    ) -> Response:
        """Follow a job by server-sent events, until it ends.

        The event `state` tells that it begins, ends, or moves up in the queue, `progress` that steps were made. The
        data of both is what `GET /v1/jobs/{id}` answers, with only those losses that are new.
        """
        version, step = _seen(last_event_id)
        current = await run_in_threadpool(jobs.job, id)
        if current.over and current.version == version:
            return Response(status_code=HTTPStatus.NO_CONTENT)  # tells a browser not to come back
        return StreamingResponse(
            _events(jobs, current, version, step),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def status(job: Job, *, after: int = -1) -> JobStatus:
    """A job as the interface tells it, with the losses of the steps after ``after``."""
    address = _JOB.format(id=job.id)
    error = job.error
    return JobStatus(
        id=job.id,
        state=job.state,
        position=job.position,
        step=job.step,
        steps=job.steps,
        losses=[LossPoint(**point) for point in job.losses if point["step"] > after],
        created=_time(job.created),
        started=_time(job.started),
        ended=_time(job.ended),
        error=error and ErrorBody(code=error.code, message=error.message, hint=error.hint, field=error.field),
        links=JobLinks(
            status=address,
            events=f"{address}/events",
            result=f"{address}/result",
            # A new address for every picture, or a browser would show the one it has.
            preview=None if job.preview is None else f"{address}/preview?step={job.preview}",
        ),
    )


def _submit(store: JobStore, outcome: Outcome) -> Job:
    config, order = settings(), dict(outcome.order)
    limits = DecodeLimits(max_pixels=config.max_pixels, max_bytes=config.max_body_bytes)
    content, style = prepare(order.pop("content"), order.pop("style"), size=order["size"], limits=limits)
    facts = {name: value for name, value in asdict(outcome).items() if name in _FACTS}
    return store.submit(order, content, style, facts, owner=_asker())


def _painted(store: JobStore, id: str) -> Response:
    job, data = store.result(id)
    facts: Mapping[str, Any] = job.facts
    waited = {"queue": job.started - job.created, "paint": job.ended - job.started}
    return painting(
        Outcome(
            **{name: facts[name] for name in _FACTS if name != "seconds"},
            seconds=facts["seconds"] | waited | facts["painting_seconds"],
            steps=facts["steps"],
            provider=facts["device"],
            data=data,
        )
    )


async def _ended(request: Request, store: JobStore, id: str, wait: float) -> Job:
    """The job when it has ended, or as it is after ``wait`` seconds."""
    until = time.monotonic() + wait
    while True:
        job = await run_in_threadpool(store.job, id)
        if job.over or running.draining.is_set() or time.monotonic() >= until:
            return job
        if await request.is_disconnected():
            return await run_in_threadpool(store.cancel, id)
        await asyncio.sleep(POLL_SECONDS)


async def _events(store: JobStore, job: Job, version: int, step: int) -> AsyncIterator[str]:
    """The stream of a job's events after the one of ``version``, which told everything up to ``step``."""
    yield "retry: 2000\n\n"
    before: Job | None = job if job.version == version else None
    quiet_since = time.monotonic()
    while True:
        changed = before is None or (job.version, job.position) != (before.version, before.position)
        if changed:
            moved = before is None or (job.state, job.position) != (before.state, before.position)
            if job.step < step:  # taken up anew
                step = -1
            data = status(job, after=step).model_dump_json()
            yield f"id: {job.version}-{job.step}\nevent: {'state' if moved else 'progress'}\ndata: {data}\n\n"
            before, step, quiet_since = job, job.step, time.monotonic()
        elif time.monotonic() - quiet_since >= HEARTBEAT_SECONDS:
            yield ": still here\n\n"
            quiet_since = time.monotonic()
        if job.over or running.draining.is_set():
            return
        await asyncio.sleep(EVENT_SECONDS)
        try:
            job = await run_in_threadpool(store.job, job.id)
        except NotFound:  # it was forgotten meanwhile
            return


def _seen(last_event_id: str | None) -> tuple[int, int]:
    """Version and step of the last event that a client has."""
    found = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", last_event_id or "")
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def _wished(prefer: str | None) -> tuple[str, float] | None:
    """What the header ``Prefer`` names, ``wait`` or ``respond-async``, and the seconds that it means.

    What it says otherwise is ignored, as RFC 7240 wants.
    """
    for preference in (prefer or "").lower().split(","):
        name, _, value = (part.strip() for part in preference.partition(";")[0].partition("="))
        if name == "respond-async":
            return name, 0.0
        if name == "wait" and re.fullmatch(r"[0-9]{1,9}", value.strip('"')):
            return name, float(value.strip('"'))
    return None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
