"""Paintings as HTTP answers: the picture, and in its headers how it came about."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import Response

from services import metrics
from services.pipeline import Outcome
from services.request_facts import note
from shared.images import FORMATS

HEADERS = {
    "Lienzo-Content": "content",
    "Lienzo-Content-Title": "content_title",
    "Lienzo-Style": "style",
    "Lienzo-Style-Title": "style_title",
    "Lienzo-Engine": "engine",
    "Lienzo-Provider": "provider",
    "Lienzo-Model": "model",
    "Lienzo-Model-Distance": "model_distance",
    "Lienzo-Content-Distance": "content_distance",
    "Lienzo-Style-Distance": "style_distance",
    "Lienzo-Steps": "steps",
}
"""The headers of a painting, and the fields of :class:`services.pipeline.Outcome` that they tell."""


def painting(outcome: Outcome) -> Response:
    """The painting with the headers ``Lienzo-*`` and ``Server-Timing``."""
    facts = {name: getattr(outcome, field) for name, field in HEADERS.items()}
    headers = {name: header(value) for name, value in facts.items() if value not in (None, "")}
    note(engine=outcome.engine, model=outcome.model if outcome.engine == "fast" else "")
    headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * spent:.1f}" for name, spent in outcome.seconds.items())
    return Response(outcome.data, media_type=FORMATS[outcome.format], headers=headers)


def count_distances(outcome: Outcome) -> None:
    """Count how near what was chosen is; when it is chosen, since a job's painting may be fetched often or never."""
    for of in ("content", "style", "model"):
        if (distance := getattr(outcome, f"{of}_distance")) is not None:
            metrics.retrieval_distance.labels(of).observe(distance)


def header(value: float | str) -> str:
    """Numbers with four decimals; text percent-encoded where it is not plain ASCII, as headers need it."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return quote(str(value), safe=" !#$&'()*+,/:;=?@[]")


def described(*media: str) -> dict[int | str, dict[str, Any]]:
    """How the documentation describes an endpoint that answers a picture of these media types."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "the picture", "content": dict.fromkeys(media or FORMATS.values(), schema)}}
