"""From encoded bytes to encoded bytes through the reference optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image

from shared.encoders import Encoder
from shared.fast_painting import EncodedPainting, Stopwatch, finish
from shared.images import DEFAULT_LIMITS, DecodeLimits, decode, encode, to_picture, to_tensor
from shared.optimizer import Iteration, OptimizerSettings, optimize


@dataclass(frozen=True)
class OptimizedPainting(EncodedPainting):
    """An encoded painting and how the optimisation went.

    Attributes:
        steps: those that were made.
        losses: after the last of them.
        stopped: whether the time or the caller ended it early.
    """

    steps: int = 0
    losses: Mapping[str, float] | None = None
    stopped: bool = False


def paint_optimized(
    encoder: Encoder,
    content: bytes,
    style: bytes,
    settings: OptimizerSettings,
    *,
    start: bytes | None = None,
    size: int = 512,
    strength: float = 1.0,
    preserve_color: bool = False,
    format: str = "png",
    recipe: Mapping[str, str] | None = None,
    max_seconds: float | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
    on_iteration: Callable[[Iteration], bool | None] | None = None,
) -> OptimizedPainting:
    """Paint an encoded picture in the style of another by optimising its pixels.

    Args:
        start: an encoded painting of the same content to start from (a warm start).
        size: longer side of the result in pixels; the style picture is brought to it too.
        max_seconds: the optimisation ends after this time with what it has.

    Other arguments as in :func:`shared.fast_painting.paint_fast` and :func:`shared.optimizer.optimize`.

    Raises:
        PictureError: bytes that are no picture that can be read.
        InvalidInput: a picture too elongated for the size, or an option out of range.
    """
    watch = Stopwatch()
    content_picture = decode(content, limits=limits, longer_side=size)
    style_picture = decode(style, limits=limits, longer_side=size)
    start_picture = None
    if start is not None:
        start_picture = decode(start, limits=limits).resize(content_picture.size, Image.Resampling.LANCZOS)
    watch.lap("decode")
    began = time.monotonic()

    def watched(iteration: Iteration) -> bool | None:
        late = max_seconds is not None and time.monotonic() - began > max_seconds
        wanted = on_iteration(iteration) if on_iteration else None
        return False if late else wanted

    painting = optimize(
        to_tensor(content_picture),
        to_tensor(style_picture),
        encoder,
        settings,
        start=None if start_picture is None else to_tensor(start_picture),
        on_iteration=watched,
    )
    watch.lap("network")
    painted = finish(to_picture(painting.picture), content_picture, strength=strength, preserve_color=preserve_color)
    watch.lap("finish")
    data = encode(painted, format, metadata=dict(recipe or {}))
    watch.lap("encode")
    return OptimizedPainting(data, watch.seconds, painting.steps, painting.losses, painting.stopped)
