"""Cutting a large picture into tiles that overlap by what a network sees."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product


@dataclass(frozen=True)
class Tile:
    """A part of a picture and its surroundings, in pixels; every origin is a multiple of the alignment.

    Attributes:
        top, left, bottom, right: the part itself. The parts of all tiles cover the picture once.
        crop: (top, left, bottom, right) of the part with its surroundings, as far as the picture goes.
    """

    top: int
    left: int
    bottom: int
    right: int
    crop: tuple[int, int, int, int]


def cut(height: int, width: int, *, side: int, overlap: int, alignment: int) -> tuple[Tile, ...]:
    """Tiles that cover ``height`` × ``width``, row by row.

    Args:
        side: of a tile without its surroundings, rounded down to the alignment; tiles are made as even as that allows.
        overlap: pixels of surroundings on each side, rounded up to the alignment.
        alignment: the largest stride of the network, so that activations of a tile are activations of the picture.
    """
    overlap = -(-overlap // alignment) * alignment
    rows, columns = (_spans(length, side, alignment) for length in (height, width))
    return tuple(
        Tile(
            top,
            left,
            bottom,
            right,
            (max(top - overlap, 0), max(left - overlap, 0), min(bottom + overlap, height), min(right + overlap, width)),
        )
        for (top, bottom), (left, right) in product(rows, columns)
    )


def _spans(length: int, side: int, alignment: int) -> list[tuple[int, int]]:
    count = max(1, -(-length // max(side // alignment * alignment, alignment)))
    steps = -(-length // alignment)
    edges = [i * steps // count * alignment for i in range(count)]
    return list(pairwise([*edges, length]))
