"""From encoded bytes to encoded bytes through the reference optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from shared import images
from shared.adain import AdaINDecoder, paint_by_statistics
from shared.encoders import Encoder
from shared.errors import InvalidInput, PictureError
from shared.fast_painting import EncodedPainting, Stopwatch, finish
from shared.images import DEFAULT_LIMITS, DecodeLimits, decode, encode, to_picture, to_tensor
from shared.optimizer import SMALLEST_SIDE, Checkpoint, Iteration, OptimizerSettings, StylePicture, optimize


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


@dataclass(frozen=True)
class StyleFile:
    """One of several styles.

    Attributes:
        data: the encoded picture.
        weight: against the other styles.
        mask: an encoded picture, light where this style is painted; None: everywhere.
    """

    data: bytes
    weight: float = 1.0
    mask: bytes | None = None


class Record(Protocol):
    """What keeps track of a run; :class:`shared.run_record.RunRecord` does."""

    def on_iteration(self, iteration: Iteration) -> None: ...

    def on_checkpoint(self, checkpoint: Checkpoint) -> None: ...

    def finish(self, picture: Image.Image) -> object: ...


def prepare(content: bytes, style: bytes, *, size: int, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[bytes, bytes]:
    """Both pictures as :func:`paint_optimized` will see them, to be painted later, perhaps elsewhere.

    Returns:
        The two as PNG, brought to ``size``: painting them instead of the originals gives the same painting. Nothing
        else of what was sent is in them.

    Raises:
        PictureError: bytes that are no picture that can be read; its field is ``image`` or ``style_image``.
        InvalidInput: a picture too elongated for the size.
    """
    prepared = []
    for data, field in ((content, "image"), (style, "style_image")):
        try:
            picture = decode(data, limits=limits, longer_side=size)
        except PictureError as error:
            error.field = error.field or field
            raise
        if min(picture.size) < SMALLEST_SIDE:
            raise InvalidInput(
                f"the picture would be {picture.width}×{picture.height} pixels; each side must have at least "
                f"{SMALLEST_SIDE}.",
                hint="Ask for a larger size, or crop the picture.",
                field=field,
            )
        prepared.append(encode(picture, "png"))
    return prepared[0], prepared[1]


def paint_optimized(
    encoder: Encoder,
    content: bytes,
    style: bytes | Sequence[StyleFile],
    settings: OptimizerSettings,
    *,
    start: bytes | None = None,
    decoder: AdaINDecoder | None = None,
    mask: bytes | None = None,
    size: int = 512,
    square: bool = False,
    style_scale: float = 1.0,
    match_color: bool = False,
    strength: float = 1.0,
    preserve_color: bool = False,
    format: str = "png",
    recipe: Mapping[str, str] | None = None,
    max_seconds: float | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
    resume: Checkpoint | None = None,
    record: Callable[[Image.Image, Sequence[Image.Image]], Record] | None = None,
    on_iteration: Callable[[Iteration], bool | None] | None = None,
) -> OptimizedPainting:
    """Paint an encoded picture in the style of another, or of several, by optimising its pixels.

    Args:
        start: an encoded painting of the same content to start from.
        decoder: start from a painting by adaptive instance normalisation where no ``start`` is given: at 256 pixels
            that is worth the first hundreds of steps from noise. Needs the encoder to be the normalised VGG-19.
        mask: an encoded picture, light where to paint; where it is black the result is the content.
        size: longer side of the result in pixels; style pictures are brought to ``size`` × ``style_scale``.
        square: bring both pictures to a square of that side, whatever their shape.
        style_scale: above 1 the strokes are larger than in the style picture, below 1 smaller.
        match_color: give the style pictures the content's colours before painting, by a linear map of mean and
            covariance (Gatys et al. 2017, section 5), so that the painting keeps them.
        preserve_color: take only the lightness from the painting (Gatys et al. 2017, section 5).
        max_seconds: the optimisation ends after this time with what it has.
        resume: a checkpoint of the same call.
        record: makes the record of the run, given the pictures as they are compared.

    Other arguments as in :func:`shared.fast_painting.paint_fast` and :func:`shared.optimizer.optimize`.

    Raises:
        PictureError: bytes that are no picture that can be read.
        InvalidInput: a picture too elongated for the size, or an option out of range.
    """
    watch = Stopwatch()
    files = [StyleFile(style)] if isinstance(style, bytes) else list(style)

    def opened(data: bytes, side: int) -> Image.Image:
        picture = decode(data, limits=limits, longer_side=side)
        return picture.resize((side, side), Image.Resampling.LANCZOS) if square else picture

    content_picture = opened(content, size)
    style_pictures = [opened(file.data, round(size * style_scale)) for file in files]
    if match_color:
        style_pictures = [images.match_color(picture, content_picture) for picture in style_pictures]

    def region(data: bytes | None) -> Tensor | None:
        if data is None:
            return None
        grey = decode(data, limits=limits).convert("L").resize(content_picture.size, Image.Resampling.BILINEAR)
        return to_tensor(grey.convert("RGB"))[:, :1].contiguous()

    styles = [
        StylePicture(to_tensor(picture), file.weight, region(file.mask))
        for picture, file in zip(style_pictures, files, strict=True)
    ]
    start_picture: Tensor | None = None
    if start is not None:
        start_picture = to_tensor(decode(start, limits=limits).resize(content_picture.size, Image.Resampling.LANCZOS))
    elif decoder is not None and min(min(p.size) for p in (content_picture, *style_pictures)) >= SMALLEST_SIDE:
        # What is smaller will be refused.
        start_picture = _warm_start(encoder, decoder, to_tensor(content_picture), styles)
    keeper = record(content_picture, style_pictures) if record else None
    watch.lap("decode")
    began = time.monotonic()

    def watched(iteration: Iteration) -> bool | None:
        if keeper is not None:
            keeper.on_iteration(iteration)
        late = max_seconds is not None and time.monotonic() - began > max_seconds
        wanted = on_iteration(iteration) if on_iteration else None
        return False if late else wanted

    painting = optimize(
        to_tensor(content_picture),
        styles,
        encoder,
        settings,
        start=start_picture,
        mask=region(mask),
        resume=resume,
        on_iteration=watched,
        on_checkpoint=keeper.on_checkpoint if keeper else None,
    )
    watch.lap("network")
    painted = finish(to_picture(painting.picture), content_picture, strength=strength, preserve_color=preserve_color)
    watch.lap("finish")
    data = encode(painted, format, metadata=dict(recipe or {}))
    watch.lap("encode")
    if keeper is not None:
        keeper.finish(painted)
        watch.lap("record")
    return OptimizedPainting(data, watch.seconds, painting.steps, painting.losses, painting.stopped)


def _warm_start(encoder: Encoder, decoder: AdaINDecoder, content: Tensor, styles: Sequence[StylePicture]) -> Tensor:
    """The content painted in each style by its statistics, blended by weight and region."""
    content = content.to(encoder.device)
    total, painted = torch.zeros_like(content[:, :1]), torch.zeros_like(content)
    for style in styles:
        share = torch.full_like(total, style.weight)
        if style.region is not None:
            share = share * style.region.to(content.device)
        painted += share * paint_by_statistics(encoder, decoder, content, style.picture.to(content.device))
        total += share
    # Where no style is painted, the content stays.
    return torch.where(total > 0, painted / total.clamp_min(1e-6), content)
