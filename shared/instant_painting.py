"""From encoded bytes to encoded bytes in one pass, in any style: a preview of the optimiser, or instead of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image

from shared.adain import MARGIN, AdaINDecoder, paint_by_statistics
from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.fast_painting import EncodedPainting, Stopwatch, finish
from shared.images import (
    DEFAULT_LIMITS,
    DecodeLimits,
    decode,
    encode,
    from_array,
    match_color,
    to_array,
    to_picture,
    to_tensor,
)

SMALLEST_SIDE = 32

SHARE = 0.8
"""How far the activations go from the content's statistics to the style's (equation 14 of the paper).

At 1 faces and other small things dissolve, and the decoder's grid shows on plain ground; the colours that the rest of
the way would bring come by :func:`shared.images.match_color`, more exactly.
"""

STYLE_SIDES = (256, 384)
"""Least and most longer side of a style picture, pixels. Statistics of less are those of few strokes, and more only
takes time: of eight pairs of the default gallery at 512 pixels, none looked different with a style picture of 512."""


def paint_instantly(
    encoder: Encoder,
    decoder: AdaINDecoder,
    content: bytes,
    style: bytes | Sequence[tuple[bytes, float]],
    *,
    size: int | None = None,
    strength: float = 1.0,
    preserve_color: bool = False,
    format: str = "png",
    recipe: Mapping[str, str] | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> EncodedPainting:
    """Paint an encoded picture in the style of another, by adaptive instance normalisation (Huang and Belongie 2017).

    The painting takes the style picture's colours by a linear map of their mean and covariance: the decoder alone
    comes near to them and no further.

    Note that the strength is not the paper's mixture of activations: that gives at 0 what the decoder makes of the
    content, not the content. Here, as in the other engines, it blends the finished painting with the content.

    Args:
        encoder: the normalised VGG-19, which the decoder inverts.
        style: the encoded style picture; or several with a weight each, whose statistics and colours are mixed.
        size: longer side of the result in pixels; the picture's own where not given.

    Other arguments as in :func:`shared.fast_painting.paint_fast`.

    Raises:
        PictureError: bytes that are no picture that can be read.
        InvalidInput: a side below 32 pixels, weights that cannot be, or an option out of range.
    """
    watch = Stopwatch()
    files = [(style, 1.0)] if isinstance(style, bytes) else list(style)
    content_picture = decode(content, limits=limits, longer_side=size)
    styles = [(decode_style(data, content_picture.size, limits), weight) for data, weight in files]
    watch.lap("decode")
    painted = paint_picture(
        encoder, decoder, content_picture, styles, strength=strength, preserve_color=preserve_color, watch=watch
    )
    data = encode(painted, format, metadata=dict(recipe or {}))
    watch.lap("encode")
    return EncodedPainting(data, watch.seconds)


def decode_style(data: bytes, content: tuple[int, int], limits: DecodeLimits = DEFAULT_LIMITS) -> Image.Image:
    """An encoded style picture at the size at which a content of that width and height takes its statistics.

    Raises:
        PictureError: the bytes are no picture that can be read.
    """
    least, most = STYLE_SIDES
    return decode(data, limits=limits, longer_side=min(max(*content, least), most))


def paint_picture(
    encoder: Encoder,
    decoder: AdaINDecoder,
    content: Image.Image,
    styles: Sequence[tuple[Image.Image, float]],
    *,
    strength: float = 1.0,
    preserve_color: bool = False,
    watch: Stopwatch | None = None,
) -> Image.Image:
    """:func:`paint_instantly` for pictures that are decoded already, styles with a weight each.

    Args:
        watch: gets the laps ``network`` and ``finish``.
    """
    watch = watch or Stopwatch()
    pictures, weights = [picture for picture, _ in styles], [weight for _, weight in styles]
    if not (all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
        raise InvalidInput(
            f"the weights of the styles are {weights}.", hint="Give each 0 or more, one of them more.", field="style"
        )
    for picture, name in ((content, "picture"), *((each, "style picture") for each in pictures)):
        if min(picture.size) < SMALLEST_SIDE:
            raise InvalidInput(
                f"the {name} would be {picture.width}×{picture.height} pixels; each side must have at least "
                f"{SMALLEST_SIDE}.",
                hint="Ask for a larger size, or crop the picture.",
                field="size",
            )
    painted = to_picture(
        paint_by_statistics(
            encoder,
            decoder,
            to_tensor(content).to(encoder.device),
            [(to_tensor(picture).to(encoder.device), weight) for picture, weight in styles],
            strength=SHARE,
            margin=MARGIN,
        )
    )
    watch.lap("network")
    painted = finish(_coloured(painted, pictures, weights), content, strength=strength, preserve_color=preserve_color)
    watch.lap("finish")
    return painted


def _coloured(painted: Image.Image, styles: Sequence[Image.Image], weights: Sequence[float]) -> Image.Image:
    """The painting in the styles' colours, mixed by weight."""
    shares = (
        weight / sum(weights) * to_array(match_color(painted, style))
        for style, weight in zip(styles, weights, strict=True)
    )
    return from_array(sum(shares))
