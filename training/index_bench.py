"""Measurements of the exact vector index: how long a search takes, and what memory it needs."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared.vector_index import ExactIndex

_PROBE_BYTES = 2**28
_ROWS_AT_ONCE = 8000


@dataclass(frozen=True)
class SearchCosts:
    """What searching costs.

    Attributes:
        matrix_bytes: of all vectors as stored.
        bandwidth: bytes that the memory gave a second, when a large array was summed up.
        open_seconds: to open the index and hold it against its hash.
        seconds: median time of a search, by the number of queries in it.
        memory_bytes: by which the process' peak of resident memory grew; pages of the mapped file are in it.
        threads: that the process computed with.
    """

    matrix_bytes: int
    bandwidth: float
    open_seconds: float
    seconds: Mapping[int, float]
    memory_bytes: int
    threads: int

    @property
    def predicted_seconds(self) -> float:
        """Of a search that does nothing but read the matrix once."""
        return self.matrix_bytes / self.bandwidth


def search_costs(
    rows: int,
    dimensions: int,
    *,
    dtype: str = "float16",
    batches: Sequence[int] = (1, 32),
    k: int = 10,
    rounds: int = 9,
    on_rows: Callable[[int], None] | None = None,
) -> SearchCosts:
    """Search an index of random unit vectors in a temporary folder, in a process of its own.

    Args:
        batches: numbers of queries to search for at once.
        rounds: searches of each batch, after one that is not timed.
        on_rows: told how many rows are written.
    """
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="lienzo-bench-") as name:
        folder = Path(name)
        index = ExactIndex.create(folder, encoder="random", dimensions=dimensions, dtype=dtype)
        for begin in range(0, rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, rows - begin)
            vectors = generator.standard_normal((count, dimensions), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            index.upsert([str(begin + i) for i in range(count)], vectors)
            if on_rows is not None:
                on_rows(begin + count)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_time_searches, (folder, tuple(batches), k, rounds))


def _time_searches(folder: Path, batches: Sequence[int], k: int, rounds: int) -> SearchCosts:
    before = _peak()
    began = time.perf_counter()
    index = ExactIndex.open(folder)
    opened = time.perf_counter() - began
    generator, seconds = np.random.default_rng(1), {}
    for batch in batches:
        queries = generator.standard_normal((batch, index.header.dimensions))
        seconds[batch] = _median(lambda queries=queries: index.search(queries, k), rounds)
    size = sum(path.stat().st_size for path in folder.glob("*.npy"))
    memory = _peak() - before  # before the array that the bandwidth is measured with
    return SearchCosts(size, _bandwidth(rounds), opened, seconds, memory, torch.get_num_threads())


def _bandwidth(rounds: int) -> float:
    array = torch.ones(_PROBE_BYTES // 4)
    return _PROBE_BYTES / _median(array.sum, rounds)


def _median(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _peak() -> int:
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])
