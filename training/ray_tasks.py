"""Jobs on the workers of a Ray cluster (Moritz et al. 2018), or of one that Ray starts on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import InvalidInput

ENGINES = ("local", "ray")

J = TypeVar("J")


def check_engine(engine: str, workers: int | None) -> None:
    """Refuse an engine that does not exist, and fewer workers than 1.

    Raises:
        InvalidInput: naming what is expected.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine is '{engine}', expected one of {', '.join(ENGINES)}.", field="engine")
    if workers is not None and workers < 1:
        raise InvalidInput(f"workers is {workers}, expected at least 1.", field="workers")


def run_on_ray(
    function: Callable[[J, int, Path], Any], jobs: Sequence[J], workers: int | None = None
) -> Iterator[tuple[J, Any]]:
    """Each job with its result, or with the exception that it ended in, as they are done.

    The workers must see the same folders as this process.

    Args:
        function: called with the job, the processors it may use, and this process' folder, in a worker's process.
        workers: jobs at a time; as many as there is room for where not given.

    Raises:
        InvalidInput: Ray is not installed.
    """
    # An extra of its own: a quarter of a gigabyte that one machine does not need.
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"engine 'ray' needs the package '{error.name}'.",
            hint="Install it: pip install -e '.[ray]'.",
            field="engine",
        ) from error

    started_here = not ray.is_initialized()
    if started_here:
        # It would tell its makers of each use.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        cpus, gpus = share([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(function)
        waiting, pending = {}, list(jobs)
        while pending or waiting:
            while pending and (workers is None or len(waiting) < workers):
                job = pending.pop(0)
                waiting[task.remote(job, cpus, Path.cwd())] = job
            (done, *_), _rest = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                result = getattr(error, "cause", None) or error
            yield job, result
    finally:
        if started_here:
            ray.shutdown()


def share(nodes: Sequence[Mapping[str, Any]], workers: int | None) -> tuple[int, int]:
    """Processors and GPUs for each job, of machines with the resources ``nodes``: a job runs on one of them."""
    if any(node.get("GPU", 0) >= 1 for node in nodes):
        return 1, 1
    if workers is None:
        return 1, 0
    processors = [int(node.get("CPU", 0)) for node in nodes]
    return max(1, min(sum(processors) // workers, max(processors))), 0
