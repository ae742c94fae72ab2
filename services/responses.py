"""Paintings as HTTP answers: the picture, and in its headers how it came about."""

from __future__ import annotations

from collections.abc import Mapping
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


def described(*media: str, **headers: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """How the documentation describes an endpoint that answers a picture.

    Args:
        media: its media types; all that are painted where none is given.
        headers: JSON schemas of the answer's headers.
    """
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media or FORMATS.values()}
    return {200: {"description": "the picture", "content": content, "headers": header_schemas(**headers)}}


def header_schemas(**headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as the documentation describes them, from the JSON schema of each."""
    return {name: {"schema": schema} for name, schema in headers.items()}


def _of_painting(field: str) -> dict[str, Any]:
    """The JSON schema of the header that tells a field of an outcome."""
    if field.endswith("distance"):
        return {"type": "number", "minimum": 0, "maximum": 2}
    return {"type": "integer", "minimum": 1} if field == "steps" else {"type": "string"}


PAINTING = {name: _of_painting(field) for name, field in HEADERS.items()} | {"Server-Timing": {"type": "string"}}
"""The JSON schemas of a painting's headers."""
