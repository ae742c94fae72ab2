"""Fitting the style space and indexing galleries, as the command line does them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from shared import weights
from shared.console import bar, stages
from shared.devices import pick_device, pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.galleries import open_gallery
from shared.gallery_index import GalleryIndex
from shared.images import decode
from shared.style_space import StyleSpace, style_statistics

log = logging.getLogger(__name__)


def fit_space(galleries: list[str], output: Path, *, dimensions: int, whitening: float) -> StyleSpace:
    """Fit a style space on all pictures of ``galleries`` and write it to ``output``."""
    opened = [open_gallery(spec) for spec in galleries]
    pictures = [(gallery.name, picture) for gallery in opened for picture in gallery.pictures]
    encoder = vgg19_encoder()
    rows, used = [], Counter()
    with bar("reading styles", len(pictures)) as update:
        for done, (name, picture) in enumerate(pictures, start=1):
            try:
                rows.append(style_statistics(encoder, decode(picture.path)))
                used[name] += 1
            except (InvalidInput, OSError) as error:
                log.warning("skipping %s: %s", picture.path, error)
            update(done)
    if len(rows) < 2:
        raise InvalidInput(
            f"{len(rows)} of {len(pictures)} pictures could be read, but a style space is fitted on at least 2.",
            field="gallery",
        )
    fitted_on = ", ".join(f"{name} ({count})" for name, count in used.items())
    fitted = StyleSpace.fit(np.stack(rows), dimensions=dimensions, whitening=whitening, fitted_on=fitted_on)
    fitted.save(output)
    return fitted


def build_index(spec: str, output: Path) -> GalleryIndex:
    """Index the gallery ``spec`` in the shipped style space and write the index to ``output``."""
    gallery, space = open_gallery(spec), StyleSpace.load()
    with bar("embedding", len(gallery.pictures)) as update:
        built = GalleryIndex.build(gallery, vgg19_encoder(), space, on_picture=lambda done, total: update(done, total))
    built.save(output)
    return built


def vgg19_encoder(device: str = "auto") -> Encoder:
    """VGG-19 on ``device``, in the precision that is fastest there."""
    target = pick_device(device)
    with stages() as progress:
        tensors = weights.load("vgg19", progress=progress)
    return Encoder(tensors, dtype=pick_dtype("auto", target), device=target)
