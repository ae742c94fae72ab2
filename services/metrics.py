"""What a server counts, for Prometheus. Every label takes few values, none of them from a request.

Each process of a server counts for itself, in files of the folder that BentoML names in ``PROMETHEUS_MULTIPROC_DIR``;
:func:`exposition` adds them up. Outside of a server, in a test, it is this process alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

requests = Counter("lienzo_requests", "Requests answered.", ["route", "method", "status", "engine", "model"])
request_seconds = Histogram(
    "lienzo_request_seconds", "From a request's first byte to its answer's last.", ["route", "engine"], buckets=_SECONDS
)
refusals = Counter("lienzo_refusals", "Requests refused, by the code of the refusal.", ["code"])
departures = Counter("lienzo_departures", "Clients that left before their answer.", ["route"])
in_flight = Gauge(
    "lienzo_in_flight", "Requests at an engine now, those that wait included.", ["engine"], multiprocess_mode="livesum"
)
retrieval_distance = Histogram(
    "lienzo_retrieval_distance",
    "Cosine distance of what was chosen: content (from the words), style (from the content), model (from the style).",
    ["of"],
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0),
)
provider = Gauge(
    "lienzo_provider_info", "What runs an engine; always 1.", ["engine", "provider"], multiprocess_mode="livemax"
)
session_load_seconds = Gauge(
    "lienzo_session_load_seconds",
    "What the last opening of a fast model took, its first painting included.",
    ["model"],
    multiprocess_mode="livemax",
)
models = Gauge("lienzo_models", "Fast models that are served.", multiprocess_mode="livemax")
reloads = Counter("lienzo_reloads", "Fast models added, replaced, removed or refused while serving.", ["what"])


def exposition() -> bytes:
    """Everything counted by all processes of this server, in Prometheus's text format."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return generate_latest(REGISTRY)
    for file in Path(folder).glob("gauge_live*.db"):
        # A process that crashed leaves its gauges behind, and would have requests in flight for ever.
        pid = int(file.stem.rsplit("_", 1)[1])
        if not psutil.pid_exists(pid):
            multiprocess.mark_process_dead(pid, folder)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=folder)
    return generate_latest(registry)
