"""Tiles cover a picture once, and each has around it what a network sees."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.tiles import Tile, cut

alignments = st.sampled_from([1, 2, 3, 4, 8, 16, 32])


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, int]:
    """A picture, and tiles of which there are not too many to count."""
    height, width = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    alignment = draw(alignments)
    side = draw(st.integers(max(1, max(height, width) // 40), 4000))
    overlap = draw(st.integers(0, 400))
    return {"height": height, "width": width, "side": side, "overlap": overlap, "alignment": alignment}


@given(jobs())
def test_the_parts_cover_each_pixel_once_row_by_row(job):
    tiles = cut(**job)
    rows = list(dict.fromkeys((tile.top, tile.bottom) for tile in tiles))
    columns = list(dict.fromkeys((tile.left, tile.right) for tile in tiles))
    assert [((t.top, t.bottom), (t.left, t.right)) for t in tiles] == list(product(rows, columns))
    for spans, length in ((rows, job["height"]), (columns, job["width"])):
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(before[1] == after[0] for before, after in pairwise(spans))
        assert all(start < stop for start, stop in spans), "none is empty"


@given(jobs())
def test_no_part_is_larger_than_was_asked_for_and_all_are_about_as_large(job):
    alignment = job["alignment"]
    largest = max(job["side"] // alignment * alignment, alignment)
    for lengths in (
        {tile.bottom - tile.top for tile in cut(**job)},
        {tile.right - tile.left for tile in cut(**job)},
    ):
        assert max(lengths) <= largest
        # Apart from what the picture lacks of a whole step, they differ by one step.
        assert max(lengths) - min(lengths) < 2 * alignment


@given(jobs())
def test_there_are_no_more_tiles_than_it_takes(job):
    largest = max(job["side"] // job["alignment"] * job["alignment"], job["alignment"])
    rows, columns = -(-job["height"] // largest), -(-job["width"] // largest)
    assert len(cut(**job)) == rows * columns


@given(jobs())
def test_every_origin_is_a_multiple_of_the_alignment(job):
    for tile in cut(**job):
        for origin in (tile.top, tile.left, *tile.crop[:2]):
            assert origin % job["alignment"] == 0


@given(jobs())
def test_a_crop_is_the_part_and_its_surroundings_as_far_as_the_picture_goes(job):
    overlap, step = job["overlap"], job["alignment"]
    for tile in cut(**job):
        top, left, bottom, right = tile.crop
        for first, last, start, stop, length in (
            (top, bottom, tile.top, tile.bottom, job["height"]),
            (left, right, tile.left, tile.right, job["width"]),
        ):
            assert 0 <= first <= start < stop <= last <= length
            assert first == 0 or overlap <= start - first < overlap + step
            assert last == length or overlap <= last - stop < overlap + step


@pytest.mark.parametrize("side", [64, 100, 1000])
def test_a_small_picture_is_one_tile(side):
    assert cut(64, 50, side=side, overlap=20, alignment=16) == (Tile(0, 0, 64, 50, (0, 0, 64, 50)),)


def test_a_known_picture():
    assert cut(40, 100, side=50, overlap=9, alignment=8) == (
        Tile(0, 0, 40, 32, (0, 0, 40, 48)),
        Tile(0, 32, 40, 64, (0, 16, 40, 80)),
        Tile(0, 64, 40, 100, (0, 48, 40, 100)),
    )


def test_one_pixel_more_does_not_make_a_tile_of_one_pixel():
    """At 16 pixels an activation it would hold none."""
    widths = [tile.right - tile.left for tile in cut(16, 15 * 256 + 1, side=256, overlap=0, alignment=16)]
    assert len(widths) == 16 and min(widths) > 200
