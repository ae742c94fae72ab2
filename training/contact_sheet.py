"""A contact sheet: pictures down, fast styles across, so that networks can be judged by eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from shared.fast_models import FastModel
from shared.galleries import Picture
from shared.images import decode, from_array, to_array

_LABEL = 22
_GAP = 6


def paint_sheet(
    pictures: Sequence[Picture],
    models: Sequence[FastModel],
    *,
    size: int = 256,
    on_painting: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Each picture, and beside it its painting by each model.

    Args:
        size: longer side of each picture in pixels.
        on_painting: called with the paintings done and the paintings in all.
    """
    contents = [decode(picture.path, longer_side=size) for picture in pictures]
    heights = [content.height for content in contents]
    font = ImageFont.load_default(14)
    sheet = Image.new(
        "RGB", ((size + _GAP) * (1 + len(models)) - _GAP, _LABEL + sum(heights) + _GAP * len(heights)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(["", *(model.card.name for model in models)]):
        draw.text((column * (size + _GAP) + size / 2, _LABEL / 2), label, "black", font, anchor="mm")
    top, done = _LABEL, 0
    for content in contents:
        _paste(sheet, content, 0, top, size)
        for column, model in enumerate(models, start=1):
            _paste(sheet, from_array(model.paint(to_array(content))), column, top, size)
            done += 1
            if on_painting:
                on_painting(done, len(contents) * len(models))
        top += content.height + _GAP
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, column: int, top: int, size: int) -> None:
    sheet.paste(picture, (column * (size + _GAP) + (size - picture.width) // 2, top))
