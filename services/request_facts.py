"""What is noted of the request that is being answered, for its line in the log and for the metrics."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Facts:
    """Notes on one request.

    Attributes:
        id: the client's, or one that was made for it.
        route: its template, never the path that was sent.
        key: name of the API key.
        engine, model: what painted.
        code: of the refusal.
        left: the client did not wait for the answer.
    """

    id: str
    route: str
    key: str = ""
    engine: str = ""
    model: str = ""
    code: str = ""
    left: bool = False


current: ContextVar[Facts | None] = ContextVar("facts", default=None)


def note(**facts: str) -> None:
    """Set some of the running request's :class:`Facts`; outside of a request nothing happens."""
    noted = current.get()
    for name, value in facts.items():
        if noted is not None:
            setattr(noted, name, value)
