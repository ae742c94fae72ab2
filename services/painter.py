"""The painter: a thread of the Optimizer that takes jobs from the store and paints them, one at a time."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from services import metrics
from services.jobs import LEASE_SECONDS, Claim, JobStore, thinned
from shared.errors import LienzoError
from shared.images import encode, thumbnail, to_picture
from shared.optimized_painting import OptimizedPainting
from shared.optimizer import Iteration

log = logging.getLogger(__name__)

PREVIEW_SIDE = 256
PREVIEW_SECONDS = 2.0
"""Least time between two previews; the first comes with the first step."""
REPORT_SECONDS = 0.2
"""Least time between two reports. With each the painter learns whether it is to stop."""
IDLE_SECONDS = 0.25
SWEEP_SECONDS = 10.0


class Paint(Protocol):
    """How a job is painted."""

    def __call__(
        self, *, content: bytes, style: bytes, on_iteration: Callable[[Iteration], bool | None], **request: Any
    ) -> OptimizedPainting: ...


class Painter:
    """Paints the jobs of a store until it is stopped.

    Args:
        paint: see :func:`shared.optimized_painting.paint_optimized`; the job's request are its other arguments.
        facts: join the facts of every job that is done.
    """

    def __init__(self, store: JobStore, paint: Paint, facts: Mapping[str, Any]):
        self._store, self._paint, self._facts = store, paint, facts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="painter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """End after the step that is being made, and give the job back to the queue.

        Args:
            seconds: wait for that no longer; as long as it takes where not given.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        swept = -SWEEP_SECONDS
        while not self._stop.is_set():
            try:
                if time.monotonic() - swept >= SWEEP_SECONDS:
                    swept = time.monotonic()
                    self._store.sweep()
                claim = self._store.claim() if self._store.waiting() else None
                if claim is not None:
                    self._carry_out(claim)
                    continue
            except Exception:  # a full disk, perhaps: the jobs wait until there is room. Nobody would start this anew
                log.exception("the painter cannot go on with the jobs, and tries again")
                self._stop.wait(SWEEP_SECONDS)
            self._stop.wait(IDLE_SECONDS)

    def _carry_out(self, claim: Claim) -> None:
        run = _Run(self._store, claim, self._stop)
        try:
            with run:
                painting = self._paint(
                    content=claim.content, style=claim.style, on_iteration=run.on_iteration, **claim.request
                )
        except LienzoError as error:
            self._store.fail(claim, error)
        except sqlite3.Error:
            raise
        except Exception:
            log.exception("a painting failed")
            bug = LienzoError("this is a bug of the service.", hint="Its log has the details.", code="bug")
            self._store.fail(claim, bug)
        else:
            if self._stop.is_set() and run.stopped:
                self._store.hand_back(claim)
            elif not run.stopped:
                facts = {**self._facts, "steps": painting.steps, "painting_seconds": dict(painting.seconds)}
                losses = run.losses_with(painting.steps, painting.losses)
                self._store.finish(claim, painting.data, painting.steps, losses, facts)


class _Run:
    """One job being painted: keeps its claim, and reports."""

    def __init__(self, store: JobStore, claim: Claim, stop: threading.Event):
        self._store, self._claim, self._stop = store, claim, stop
        self._losses: list[dict[str, float]] = []
        self._reported = self._previewed = float("-inf")
        self._lost, self._over = threading.Event(), threading.Event()
        # A step may take longer than the lease.
        self._keeper = threading.Thread(target=self._keep, name="claim", daemon=True)
        self.stopped = False

    def __enter__(self) -> _Run:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 8):
            try:
                if not self._store.renew(self._claim):
                    self._lost.set()
                    return
            except sqlite3.Error:
                log.exception("a claim was not renewed")

    def on_iteration(self, iteration: Iteration) -> bool:
        metrics.steps.inc()
        now = time.monotonic()
        if self._stop.is_set() or self._lost.is_set():
            self.stopped = True
        elif now - self._reported >= REPORT_SECONDS or iteration.step == iteration.steps:
            self._reported, preview = now, None
            if now - self._previewed >= PREVIEW_SECONDS:
                self._previewed = now
                preview = encode(thumbnail(to_picture(iteration.picture()), PREVIEW_SIDE), "jpeg", quality=80)
            if math.isfinite(iteration.losses["total"]):  # the optimiser will say that it is not, and fail
                self._losses = thinned([*self._losses, {"step": iteration.step, **iteration.losses}])
            self.stopped = not self._store.progress(self._claim, iteration.step, self._losses, preview)
        return not self.stopped

    def losses_with(self, step: int, losses: Mapping[str, float] | None) -> list[dict[str, float]]:
        """All losses, with those after the last step."""
        if losses is None or (self._losses and self._losses[-1]["step"] == step):
            return self._losses
        return thinned([*self._losses, {"step": step, **losses}])
