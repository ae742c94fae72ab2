"""Paintings as HTTP answers: the picture, and in its headers how it came about."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import Response

from services.pipeline import Outcome
from shared.images import FORMATS


def painting(outcome: Outcome) -> Response:
    """The painting with the headers ``Lienzo-*`` and ``Server-Timing``."""
    facts = {
        "Content": outcome.content,
        "Content-Title": outcome.content_title,
        "Style": outcome.style,
        "Style-Title": outcome.style_title,
        "Engine": outcome.engine,
        "Provider": outcome.provider,
        "Model": outcome.model,
        "Model-Distance": outcome.model_distance,
        "Content-Distance": outcome.content_distance,
        "Style-Distance": outcome.style_distance,
        "Steps": outcome.steps,
    }
    headers = {f"Lienzo-{name}": header(value) for name, value in facts.items() if value not in (None, "")}
    headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * spent:.1f}" for name, spent in outcome.seconds.items())
    return Response(outcome.data, media_type=FORMATS[outcome.format], headers=headers)


def header(value: float | str) -> str:
    """Numbers with four decimals; text percent-encoded where it is not plain ASCII, as headers need it."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return quote(str(value), safe=" !#$&'()*+,/:;=?@[]")


def described(*media: str) -> dict[int | str, dict[str, Any]]:
    """How the documentation describes an endpoint that answers a picture of these media types."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "the picture", "content": dict.fromkeys(media or FORMATS.values(), schema)}}
