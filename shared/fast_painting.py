"""From encoded bytes to encoded bytes through a fast model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from shared import images
from shared.fast_models import FastModel
from shared.images import DEFAULT_LIMITS, DecodeLimits, blend, decode, encode, from_array, to_array


@dataclass(frozen=True)
class EncodedPainting:
    """A painting as it is sent or written.

    Attributes:
        data: the encoded picture.
        seconds: how long each stage took: ``decode``, ``network``, ``finish``, ``encode``.
    """

    data: bytes
    seconds: Mapping[str, float] = field(default_factory=dict)


class Stopwatch:
    """Seconds by stage; each ``lap`` closes the stage that ran until now."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def paint_fast(
    model: FastModel,
    picture: bytes,
    *,
    size: int | None = None,
    strength: float = 1.0,
    preserve_color: bool = False,
    format: str = "png",
    recipe: Mapping[str, str] | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> EncodedPainting:
    """Paint an encoded picture in one forward pass.

    Args:
        size: longer side of the result in pixels; the picture's own where not given.
        strength: 0 gives the content back, 1 the painting.
        preserve_color: take the colours from the content, only the lightness from the painting.
        recipe: what to write into the picture's metadata.

    Raises:
        PictureError: the bytes are no picture that can be read.
        InvalidInput: the size is too small for the network, or an option out of range.
    """
    watch = Stopwatch()
    content = decode(picture, limits=limits, longer_side=size)
    watch.lap("decode")
    painted = from_array(model.paint(to_array(content)))
    watch.lap("network")
    painted = finish(painted, content, strength=strength, preserve_color=preserve_color)
    watch.lap("finish")
    data = encode(painted, format, metadata=dict(recipe or {}))
    watch.lap("encode")
    return EncodedPainting(data, watch.seconds)


def finish(painted: Image.Image, content: Image.Image, *, strength: float, preserve_color: bool) -> Image.Image:
    """What follows the network, whichever it was: the content's colours, then the blend."""
    if preserve_color:
        painted = images.preserve_color(painted, content)
    return blend(content, painted, strength)
