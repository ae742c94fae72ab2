"""The style embeddings of a gallery's pictures, computed once and kept in a file that names what it belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.encoders import Encoder
from shared.errors import GalleryError, InvalidInput, NotFound
from shared.files import write_atomically
from shared.galleries import Gallery
from shared.images import decode
from shared.style_space import StyleSpace

log = logging.getLogger(__name__)

FORMAT = "1"
SHIPPED = Path(__file__).parent / "assets" / "galleries"
MAX_K = 100


@dataclass(frozen=True)
class GalleryIndex:
    """Style embeddings by picture id.

    Attributes:
        ids: of the pictures that could be read, in the gallery's order.
        embeddings: ``[N, K]`` float32, each of length 1.
        gallery: fingerprint of the gallery.
        style_space: fingerprint of the style space.
        issues: pictures left out, and why.
    """

    ids: tuple[str, ...]
    embeddings: np.ndarray
    gallery: str
    style_space: str
    issues: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def build(
        cls,
        gallery: Gallery,
        encoder: Encoder,
        space: StyleSpace,
        *,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> GalleryIndex:
        """Embed every picture of ``gallery``; those that cannot be read are left out and listed.

        Raises:
            GalleryError: no picture could be read.
        """
        ids, embeddings, issues = [], [], []
        for done, picture in enumerate(gallery.pictures, start=1):
            try:
                embeddings.append(space.embed(encoder, decode(picture.path)))
                ids.append(picture.id)
            except (InvalidInput, OSError) as error:
                issues.append(f"{picture.id}: {error}")
                log.warning("left out of the index: %s: %s", picture.id, error)
            if on_picture is not None:
                on_picture(done, len(gallery.pictures))
        if not ids:
            raise GalleryError(f"none of the {len(issues)} pictures of gallery '{gallery.name}' can be read.")
        return cls(tuple(ids), np.stack(embeddings), gallery.fingerprint, space.fingerprint, tuple(issues))

    def save(self, path: Path) -> None:
        """Write the index as safetensors."""
        metadata = {
            "format": FORMAT,
            "gallery": self.gallery,
            "style_space": self.style_space,
            "ids": json.dumps(self.ids),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({"embeddings": self.embeddings}, metadata))

    @classmethod
    def load(cls, path: Path, *, gallery: Gallery, space: StyleSpace) -> GalleryIndex:
        """Read an index that :meth:`save` wrote.

        Raises:
            GalleryError: the file is missing, corrupt, or belongs to another gallery or style space.
        """
        hint = "Build it again with `lienzo-train index`."
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                embeddings = file.get_tensor("embeddings")
            ids = tuple(json.loads(metadata["ids"]))
            if len(ids) != len(embeddings):
                raise ValueError(f"{len(ids)} ids for {len(embeddings)} embeddings")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise GalleryError(f"the gallery index '{path}' cannot be read: {error}.", hint=hint) from error
        for what, found, expected in (
            ("format", metadata.get("format"), FORMAT),
            ("gallery", metadata.get("gallery"), gallery.fingerprint),
            ("style space", metadata.get("style_space"), space.fingerprint),
        ):
            if found != expected:
                raise GalleryError(
                    f"the gallery index '{path}' belongs to another {what} ({found}, expected {expected}).", hint=hint
                )
        return cls(ids, embeddings, metadata["gallery"], metadata["style_space"])

    def embedding(self, id: str) -> np.ndarray:
        """The style embedding of the picture ``id``, ``[K]``."""
        if id not in self._position:
            raise NotFound(f"picture '{id[:80]}' is not in the gallery's index.", field="content_id")
        return self.embeddings[self._position[id]]

    def nearest(self, embedding: np.ndarray, k: int, *, exclude: str | None = None) -> list[tuple[str, float]]:
        """The ``k`` pictures whose style is nearest: id and cosine distance (0 to 2), the nearest first.

        Equal distances keep the gallery's order.

        Args:
            exclude: id of a picture to leave out: a picture is no style for itself.
        """
        if not 1 <= k <= MAX_K:
            raise InvalidInput(f"k is {k}, expected 1 to {MAX_K}.", field="k")
        # Row by row: a matrix product rounds equal rows differently, and their order would be chance.
        distances = 1 - (self.embeddings * embedding).sum(axis=1)
        order = np.argsort(distances, kind="stable")
        found = ((self.ids[i], max(0.0, float(distances[i]))) for i in order if self.ids[i] != exclude)
        return [pair for pair, _ in zip(found, range(k), strict=False)]

    @cached_property
    def _position(self) -> Mapping[str, int]:
        return {id: i for i, id in enumerate(self.ids)}


def open_index(
    gallery: Gallery,
    space: StyleSpace,
    *,
    path: Path | None = None,
    cache: Path | None = None,
    encoder: Callable[[], Encoder] | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> GalleryIndex:
    """The index of ``gallery``: from ``path`` if given, else the one shipped for it, else from the cache, else built.

    Args:
        cache: folder that a built index is kept in.
        encoder: makes the encoder, only where the index must be built.

    Raises:
        GalleryError: ``path`` holds no index of this gallery, or nothing is there and no encoder was given.
    """
    if path is not None:
        return GalleryIndex.load(path, gallery=gallery, space=space)
    key = hashlib.sha256(f"{FORMAT} {gallery.fingerprint} {space.fingerprint}".encode()).hexdigest()[:20]
    places = [SHIPPED / f"{gallery.name}.safetensors"]
    if cache is not None:
        places.append(cache / f"index-{key}.safetensors")
    for place in places:
        if place.is_file():
            try:
                return GalleryIndex.load(place, gallery=gallery, space=space)
            except GalleryError as error:
                log.info("%s", error)
    if encoder is None:
        raise GalleryError(
            f"gallery '{gallery.name}' has no index.",
            hint=f"Build one with `lienzo-train index --gallery {gallery.name} -o FILE`.",
        )
    index = GalleryIndex.build(gallery, encoder(), space, on_picture=on_picture)
    if cache is not None:
        try:
            index.save(places[-1])
        except OSError as error:  # the disk is full, or nobody may write there: it works, and is built again next time
            log.warning("the index could not be kept in '%s': %s", cache, error)
    return index
