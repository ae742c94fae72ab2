"""A contact sheet: pictures down, fast styles across, so that networks can be judged by eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from shared.fast_models import FastModel
from shared.galleries import Picture
from shared.images import decode, from_array, to_array
from shared.sheets import Panel, draw_sheet


def paint_sheet(
    pictures: Sequence[Picture],
    models: Sequence[FastModel],
    *,
    size: int = 256,
    columns: int | None = None,
    on_painting: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Each picture, and beside it its painting by each model.

    Args:
        size: longer side of each picture in pixels.
        columns: panels in a row, the picture itself counted; None: all paintings of a picture in one row.
        on_painting: called with the paintings done and the paintings in all.
    """
    rows, done = [], 0
    for picture in pictures:
        content = decode(picture.path, longer_side=size)
        row = [Panel(content, width=size)]
        for model in models:
            name = "" if picture is not pictures[0] else model.card.name
            row.append(Panel(from_array(model.paint(to_array(content))), name, size))
            done += 1
            if on_painting:
                on_painting(done, len(models) * len(pictures))
        rows += [row[start : start + (columns or len(row))] for start in range(0, len(row), columns or len(row))]
    return draw_sheet(rows, captions="above")
