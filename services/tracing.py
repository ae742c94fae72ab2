"""Which request, and which W3C trace, a process works for: from the headers of each request, on to the next service.

OpenTelemetry's middleware, which BentoML puts around every service, is not asked: on a connection that is kept open,
the event loop may start a request in the context of the one before it, and the middleware takes that one's trace for
the new one's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from starlette.datastructures import Headers

from services import logs

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
BAGGAGE = "lienzo-request"
"""Name of the request's id in W3C baggage, which BentoML's calls between services carry along."""


@contextmanager
def request_from_outside(headers: Headers) -> Iterator[str]:
    """Work for a client's request: the block's log lines and its calls to other services carry its id and its trace.

    Yields:
        The id: the client's ``X-Request-ID`` where it is well-formed, else a new one.
    """
    given = headers.get("x-request-id", "")
    id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
    # Nothing else that a stranger put into the baggage goes along.
    with _working(baggage.set_baggage(BAGGAGE, id, context=baggage.clear(_traced(headers))), id):
        yield id


@contextmanager
def request_from_inside(headers: Headers) -> Iterator[None]:
    """Work for a request that another service hands on."""
    carried = _traced(headers)
    given = str(baggage.get_baggage(BAGGAGE, carried) or "")
    with _working(carried, given if REQUEST_ID.fullmatch(given) else ""):
        yield


def _traced(headers: Headers) -> Context:
    """What the headers carry, with a new trace where they have none."""
    carried = propagate.extract(headers, context=Context())
    if trace.get_current_span(carried).get_span_context().is_valid:
        return carried
    new = trace.SpanContext(secrets.randbits(128) or 1, secrets.randbits(64) or 1, is_remote=False)
    return trace.set_span_in_context(trace.NonRecordingSpan(new), carried)


@contextmanager
def _working(carried: Context, id: str) -> Iterator[None]:
    token, named = context.attach(carried), logs.request_id.set(id)
    try:
        yield
    finally:
        logs.request_id.reset(named)
        context.detach(token)
