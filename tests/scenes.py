"""Pictures to learn and to paint, drawn here: soft hills of colour, or the strokes of a painting that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def hills(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture without a sharp edge: what a content picture is like at a small size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def strokes(width: int, height: int, seed: int = 0) -> Image.Image:
    """Short thick lines in few colours on a dark ground: what a style picture is like."""
    rng = np.random.default_rng(seed)
    palette = [tuple(int(level) for level in colour) for colour in rng.integers(60, 256, (4, 3))]
    picture = Image.new("RGB", (width, height), (20, 30, 60))
    draw = ImageDraw.Draw(picture)
    for _ in range(width * height // 60):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        draw.line((x, y, x + rng.uniform(4, 12), y + rng.uniform(-4, 4)), palette[rng.integers(4)], 3)
    return picture


def write_hills(folder: Path, count: int, *, width: int = 96, height: int = 80) -> tuple[Path, ...]:
    """``count`` different content pictures as PNG files in ``folder``, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{i:03}.png" for i in range(count))
    for i, path in enumerate(paths):
        hills(width + i, height, seed=i).save(path)
    return paths
