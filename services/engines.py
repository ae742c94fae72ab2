"""How much each engine may have to do at once. What is beyond is refused at once: a queue that grows serves nobody."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from services import metrics
from services.messages import Busy
from services.request_facts import note
from services.settings import settings

RETRIEVAL = "retrieval"

_running: Counter[str] = Counter()
_lock = threading.Lock()


def limits() -> dict[str, int]:
    """Most requests at once, by engine. Of optimisations the store of the jobs takes only so many."""
    config = settings()
    return {"fast": config.fast_queue, "instant": config.instant_queue, RETRIEVAL: config.retrieval_queue}


@contextmanager
def at_work(engine: str) -> Iterator[None]:
    """Count a request among those of ``engine`` while the block runs.

    Raises:
        Busy: the engine has as many already as it may.
    """
    if engine != RETRIEVAL:
        note(engine=engine)  # also of a request that fails
    most = limits().get(engine)
    with _lock:
        if most is not None and _running[engine] >= most:
            raise Busy(
                f"{most} requests for {engine} are running or waiting, and no more are taken.",
                hint="Try again in a few seconds.",
            )
        _running[engine] += 1
    metrics.in_flight.labels(engine).inc()
    try:
        yield
    finally:
        metrics.in_flight.labels(engine).dec()
        with _lock:
            _running[engine] -= 1
