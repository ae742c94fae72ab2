"""Sheets: where panels and captions stand."""

from __future__ import annotations

import numpy as np
from PIL import Image

from shared.sheets import Panel, draw_sheet


def plain(width: int, height: int, colour: str) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def box(sheet: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all that has exactly this colour."""
    ys, xs = np.nonzero((np.asarray(sheet) == np.asarray(plain(1, 1, colour))[0, 0]).all(-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def ink(sheet: Image.Image, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Whether each pixel there is dark, ``[height, width]``."""
    return np.asarray(sheet.convert("L"))[top:bottom, left:right] < 128


def test_rows_stand_below_one_another_in_the_middle():
    rows = [[Panel(plain(30, 20, "red")), Panel(plain(40, 20, "lime"))], [Panel(plain(50, 10, "blue"))]]
    sheet = draw_sheet(rows, gap=4, margin=7)
    assert sheet.size == (30 + 4 + 40 + 2 * 7, 20 + 4 + 10 + 2 * 7)
    assert box(sheet, "red") == (7, 7, 37, 27) and box(sheet, "lime") == (41, 7, 81, 27)
    assert box(sheet, "blue") == (19, 31, 69, 41)
    colours = {colour for _, colour in sheet.getcolors()}
    assert colours == {(255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)}, "a white ground, no ink"


def test_captions_stand_below_pictures_that_share_one_foot():
    rows = [[Panel(plain(60, 50, "red"), "left"), Panel(plain(60, 20, "lime"), "right")], [Panel(plain(9, 9, "blue"))]]
    sheet = draw_sheet(rows, gap=4, font_size=10)
    assert box(sheet, "red") == (0, 0, 60, 50) and box(sheet, "lime") == (64, 30, 124, 50)
    assert box(sheet, "blue")[1] == 50 + 16 + 4, "a row with captions has a band for them, and one without has none"
    assert sheet.height == 50 + 16 + 4 + 9
    for left, right in ((0, 60), (64, 124)):
        found = np.nonzero(ink(sheet, left, 50, right, 66))
        assert len(found[1]), "a caption"
        assert abs((found[1].min() + found[1].max()) / 2 - 30) <= 2, "under the middle"


def test_captions_above_make_a_header():
    rows = [
        [Panel(plain(20, 10, "red"), "", 40), Panel(plain(40, 30, "lime"), "a", 40)],
        [Panel(plain(40, 20, "blue"), width=40)],
    ]
    sheet = draw_sheet(rows, gap=6, font_size=14, captions="above")
    assert box(sheet, "red") == (10, 22, 30, 32), "in the middle of its place, its head level with its neighbour's"
    assert box(sheet, "lime") == (46, 22, 86, 52)
    assert box(sheet, "blue")[1] == 52 + 6
    assert ink(sheet, 46, 0, 86, 22).any() and not ink(sheet, 0, 0, 40, 22).any()


def test_an_empty_place_keeps_a_column():
    row = [Panel(plain(10, 10, "red")), Panel(plain(10, 10, "lime"))]
    sheet = draw_sheet([row, [Panel(plain(10, 10, "blue")), Panel(None, width=10)]], gap=2)
    assert box(sheet, "blue")[0] == box(sheet, "red")[0] == 0


def test_a_caption_that_is_too_wide_is_shortened():
    panels = [Panel(plain(60, 10, "white"), "W" * 40), Panel(plain(60, 10, "white"))]
    sheet = draw_sheet([panels], gap=0)
    assert ink(sheet, 0, 10, 60, sheet.height).any()
    assert not ink(sheet, 60, 0, 120, sheet.height).any(), "it does not run into its neighbour"
    assert draw_sheet([[Panel(plain(60, 10, "white"), "W")]]).tobytes() != draw_sheet([[panels[0]]]).tobytes()
