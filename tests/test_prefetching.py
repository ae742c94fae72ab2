"""A stage in a thread gives what it would give without, hands on what it raises, and ends when nobody wants more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from shared.prefetching import prefetched


def test_two_stages_keep_the_order_and_run_in_threads_of_their_own() -> None:
    where = set()

    def counted() -> Iterator[int]:
        for number in range(20):
            where.add(threading.current_thread())
            yield number

    with prefetched(counted()) as numbers, prefetched(number**2 for number in numbers) as squares:
        assert list(squares) == [number**2 for number in range(20)]
    assert where and threading.current_thread() not in where
    assert not any(thread.is_alive() for thread in where)


def test_what_a_stage_raises_arrives_after_what_it_made() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with prefetched(failing()) as numbers:
        assert next(numbers) == 1
        with pytest.raises(ValueError, match="no more"):
            next(numbers)


def test_no_more_is_made_than_may_wait_and_leaving_ends_the_thread() -> None:
    made, closed = [], threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                made.append(len(made))
                yield made[-1]
        finally:
            closed.set()

    with prefetched(endless(), ahead=2) as numbers:
        assert next(numbers) == 0
        time.sleep(0.1)
        assert len(made) <= 4  # one taken, two that wait, one in hand
    assert closed.is_set()
