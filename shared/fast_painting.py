"""From encoded bytes to encoded bytes through a fast model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
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
    on_strip: Callable[[int, int], None] | None = None,
) -> EncodedPainting:
    """Paint an encoded picture in one forward pass; in strips where that would take too much memory.

    Args:
        size: longer side of the result in pixels; the picture's own where not given.
        strength: 0 gives the content back, 1 the painting.
        preserve_color: take the colours from the content, only the lightness from the painting.
        recipe: what to write into the picture's metadata.
        on_strip: told how many strips are done, and how many there are.

    Raises:
        PictureError: the bytes are no picture that can be read.
        InvalidInput: the size is too small for the network, or an option out of range.
    """
    watch = Stopwatch()
    content = decode(picture, limits=limits, longer_side=size)
    watch.lap("decode")
    painted = paint_picture(
        model, content, strength=strength, preserve_color=preserve_color, on_strip=on_strip, watch=watch
    )
    del content  # a quarter of a gigabyte at 8,192 × 8,192 that the encoder may use
    data = encode(painted, format, metadata=dict(recipe or {}))
    watch.lap("encode")
    return EncodedPainting(data, watch.seconds)


def paint_picture(
    model: FastModel,
    content: Image.Image,
    *,
    strength: float = 1.0,
    preserve_color: bool = False,
    on_strip: Callable[[int, int], None] | None = None,
    watch: Stopwatch | None = None,
) -> Image.Image:
    """:func:`paint_fast` for a picture that is decoded already.

    Args:
        watch: gets the laps ``network`` and ``finish``.
    """
    watch = watch or Stopwatch()
    model.check_size(content.height, content.width)
    if model.fits(content.width * content.height):
        painted = from_array(model.paint(to_array(content)))
        watch.lap("network")
        painted = finish(painted, content, strength=strength, preserve_color=preserve_color)
    else:
        painted = _paint_strips(model, content, strength, preserve_color, on_strip)
        watch.lap("network")
    watch.lap("finish")
    return painted


def _paint_strips(
    model: FastModel,
    content: Image.Image,
    strength: float,
    preserve_color: bool,
    on_strip: Callable[[int, int], None] | None,
) -> Image.Image:
    painted = Image.new("RGB", content.size)

    def rows(low: int, high: int) -> Image.Image:
        return content.crop((0, low, content.width, high))

    def write(first: int, levels: np.ndarray) -> None:
        beside = rows(first, first + len(levels))
        strip = finish(Image.fromarray(levels), beside, strength=strength, preserve_color=preserve_color)
        painted.paste(strip, (0, first))

    def read(low: int, high: int) -> np.ndarray:
        return np.asarray(rows(low, high))

    model.large.paint(content.height, content.width, read, write, on_strip=on_strip)
    return painted


def finish(painted: Image.Image, content: Image.Image, *, strength: float, preserve_color: bool) -> Image.Image:
    """What follows the network, whichever it was: the content's colours, then the blend."""
    if preserve_color:
        painted = images.preserve_color(painted, content)
    # Of a film, a frame's blend with nothing costs a tenth of its painting.
    return painted if strength == 1 else blend(content, painted, strength)
