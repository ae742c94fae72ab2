"""Sheets of pictures: rows of captioned panels on a white ground, drawn with nothing but Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

_GROUND, _INK = "white", (38, 38, 38)


@dataclass(frozen=True)
class Panel:
    """One place on a sheet.

    Attributes:
        picture: drawn at its own size; None leaves the place empty.
        caption: one line; shortened where it is wider than the place.
        width: of the place in pixels, where that is more than the picture's width. The picture stands in its middle,
            so equal widths put pictures of different shapes into columns.
    """

    picture: Image.Image | None
    caption: str = ""
    width: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the place in pixels, without the caption."""
        width, height = self.picture.size if self.picture else (0, 0)
        return max(self.width, width), height


def draw_sheet(
    rows: Sequence[Sequence[Panel]],
    *,
    gap: int = 6,
    margin: int = 0,
    font_size: int = 14,
    captions: Literal["above", "below"] = "below",
) -> Image.Image:
    """Draw rows of panels, each row in the middle of the sheet.

    Panels of one row stand on one line, the one that their captions are at. A row without captions takes no room for
    any.

    Args:
        rows: at least one, each of at least one panel.
        gap: between panels, across and down, in pixels.
        margin: around everything.
        font_size: of the captions, in pixels.

    Returns:
        An RGB picture.
    """
    font, band = ImageFont.load_default(font_size), round(1.6 * font_size)
    widths = [sum(panel.size[0] for panel in row) + gap * (len(row) - 1) for row in rows]
    heights = [max(panel.size[1] for panel in row) for row in rows]
    bands = [band if any(panel.caption for panel in row) else 0 for row in rows]
    inner = max(widths), sum(heights) + sum(bands) + gap * (len(rows) - 1)
    sheet = Image.new("RGB", (inner[0] + 2 * margin, inner[1] + 2 * margin), _GROUND)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for row, width, height, taken in zip(rows, widths, heights, bands, strict=True):
        left = margin + (inner[0] - width) // 2
        for panel in row:
            place, tall = panel.size
            if panel.picture:
                y = top + taken if captions == "above" else top + height - tall
                sheet.paste(panel.picture, (left + (place - panel.picture.width) // 2, y))
            if panel.caption:
                y = top + taken / 2 if captions == "above" else top + height + taken / 2
                draw.text((left + place / 2, y), _shorten(panel.caption, font, place), _INK, font, anchor="mm")
            left += place + gap
        top += taken + height + gap
    return sheet


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
