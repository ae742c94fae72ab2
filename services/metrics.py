"""What a server counts, for Prometheus. Every label takes few values, none of them from a request.

Each process counts in its memory, and the gateway asks the others when somebody reads. prometheus_client's own way for
several processes, which BentoML chooses for it, keeps the counts in mapped files: where the disk is full, counting
kills the process (SIGBUS), and two servers of one user delete each other's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

# It decides when it is imported.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DISTANCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)

disable_created_metrics()
_registry = CollectorRegistry()


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"lienzo_{name}", meaning, labels, registry=_registry)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(f"lienzo_{name}", meaning, labels, registry=_registry)


def _histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"lienzo_{name}", meaning, labels, registry=_registry, buckets=buckets)


requests = _counter("requests", "Requests answered.", "route", "method", "status", "engine", "model")
request_seconds = _histogram(
    "request_seconds", "From a request's arrival to its answer's end.", "route", "engine", buckets=_SECONDS
)
refusals = _counter("refusals", "Requests refused, by the code of the refusal.", "code")
departures = _counter("departures", "Clients that left before their answer.", "route")
in_flight = _gauge("in_flight", "Requests at an engine now, those that wait included.", "engine")
retrieval_distance = _histogram(
    "retrieval_distance",
    "Cosine distance of what was chosen: content (from the words), style (from the content), model (from the style).",
    "of",
    buckets=_DISTANCES,
)
provider = _gauge("provider_info", "What runs an engine; always 1.", "engine", "provider")
session_load_seconds = _gauge(
    "session_load_seconds", "What opening a fast model took, its first painting included.", "model"
)
jobs = _gauge("jobs", "Optimisations that are kept, by their state.", "state")
steps = _counter("optimize_steps", "Steps that the optimiser has made; its rate is its speed.")
models = _gauge("models", "Fast models that are served.")
reloads = _counter("reloads", "Fast models added, replaced, removed or refused while serving.", "what")


def exposition() -> bytes:
    """What this process has counted, in Prometheus's text format."""
    return generate_latest(_registry)


def joined(expositions: Mapping[str, bytes | None]) -> bytes:
    """What several processes have counted, told apart by the label ``service``.

    Args:
        expositions: by service; None of one that did not answer, as ``lienzo_up`` says then.
    """
    registry = CollectorRegistry()
    registry.register(_Joined(expositions))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, expositions: Mapping[str, bytes | None]):
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        up = Metric("lienzo_up", "Whether a service answers.", "gauge")
        families = {up.name: up}
        for service, text in self._expositions.items():
            up.add_sample(up.name, {"service": service}, float(text is not None))
            for family in text_string_to_metric_families((text or b"").decode()):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "service": service}, sample.value)
        yield from families.values()
