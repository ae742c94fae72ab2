"""Work that goes on in a thread of its own, a few results ahead of who takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 0.1
"""Seconds after which a thread that waits for room looks whether anybody still wants its results."""


@contextmanager
def prefetched(results: Iterator[T], ahead: int = 2) -> Iterator[Iterator[T]]:
    """The same results in the same order, made in a thread while the caller does something else.

    Stages that each take their input from such an iterator form a pipeline: every stage in its thread, and no more than
    ``ahead`` results between two. What a stage raises is raised where its result is taken. When the block ends, however
    it ends, the thread ends after the result that it is at, and closes the generator it ran.

    Args:
        ahead: results that may wait, at least 1; they are all that is held in memory.
    """
    waiting: queue.Queue[tuple[bool, object]] = queue.Queue(ahead)
    left = threading.Event()

    def offer(good: bool, what: object) -> None:
        while not left.is_set():
            try:
                waiting.put((good, what), timeout=_PATIENCE)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for result in results:
                offer(True, result)
                if left.is_set():
                    break
        except BaseException as error:
            offer(False, error)
        else:
            offer(False, None)
        finally:
            if hasattr(results, "close"):
                results.close()

    def taken() -> Iterator[T]:
        while True:
            good, what = waiting.get()
            if good:
                yield what
            elif what is None:
                return
            else:
                raise what

    thread = threading.Thread(target=work, name="lienzo-prefetch", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        left.set()
        thread.join()
