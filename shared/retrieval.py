"""Text → content picture → style picture, over one gallery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shared.encoders import Encoder
from shared.galleries import Gallery, Picture, open_gallery
from shared.gallery_index import GalleryIndex, open_index
from shared.image_encoders import ImageEncoder, StyleEncoder
from shared.style_space import StyleSpace
from shared.text_search import Match, TextIndex


@dataclass
class Retrieval:
    """Finds content by words and style by pictures.

    Attributes:
        index: the gallery in the style space, which the clusters of the fast networks lie in.
        space: the style space.
        encoder: makes the VGG-19 encoder at first need: the gallery's own pictures are embedded beforehand, so only
            uploaded ones need it.
        finder: the encoder in whose space style pictures are found.
        styles: the gallery in that space.
    """

    gallery: Gallery
    text: TextIndex
    index: GalleryIndex
    space: StyleSpace
    encoder: Callable[[], Encoder]
    finder: ImageEncoder
    styles: GalleryIndex

    @classmethod
    def open(
        cls,
        gallery: str | Path,
        encoder: Callable[[], Encoder],
        *,
        finder: ImageEncoder | None = None,
        index: Path | None = None,
        cache: Path | None = None,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> Retrieval:
        """Read a gallery and its index; see :func:`shared.gallery_index.open_index` for where the index comes from.

        Args:
            finder: the encoder in whose space style pictures are found; the style embedding where not given. Another
                one's index of the gallery comes from the cache, or is built.
            index: file of the gallery's index in the style space.

        Raises:
            GalleryError: the gallery or its index cannot be used.
        """
        opened, space = open_gallery(gallery), StyleSpace.load()
        found = open_index(opened, space, path=index, cache=cache, encoder=encoder, on_picture=on_picture)
        finder = finder or StyleEncoder(space, encoder)
        styles = found
        if finder.fingerprint != space.fingerprint:
            styles = open_index(
                opened, _EncoderSpace(finder), cache=cache, encoder=lambda: finder, on_picture=on_picture
            )
        return cls(opened, TextIndex(opened), found, space, encoder, finder, styles)

    def content(self, title: str, description: str = "", k: int = 5) -> list[Match]:
        """The ``k`` pictures that the words fit best, see :meth:`shared.text_search.TextIndex.search`."""
        return self.text.search(title, description, k)

    def style_of(self, picture_id: str, k: int = 5) -> list[Match]:
        """The ``k`` other pictures of the gallery whose style is nearest to the picture's, to the finder's eye.

        Raises:
            NotFound: the gallery has no such picture.
        """
        self.gallery.by_id(picture_id)
        return self._matches(self.styles.embedding(picture_id), k, exclude=picture_id)

    def style_like(self, picture: Image.Image, k: int = 5) -> list[Match]:
        """The ``k`` pictures of the gallery whose style is nearest to any picture's, to the finder's eye."""
        return self._matches(self.finder.embed([picture])[0], k)

    def embed(self, picture: Image.Image) -> np.ndarray:
        """The style embedding of any picture, ``[K]``, whatever the finder is."""
        return self.space.embed(self.encoder(), picture)

    def distance(self, first_id: str, second_id: str) -> float:
        """Cosine distance, 0 to 2, between the styles of two pictures of the gallery, to the finder's eye."""
        return max(0.0, float(1 - self.styles.embedding(first_id) @ self.styles.embedding(second_id)))

    def picture(self, picture_id: str) -> Picture:
        """The record of a picture.

        Raises:
            NotFound: the gallery has no such picture.
        """
        return self.gallery.by_id(picture_id)

    def _matches(self, embedding: np.ndarray, k: int, exclude: str | None = None) -> list[Match]:
        return [
            Match(self.gallery.by_id(id), distance)
            for id, distance in self.styles.nearest(embedding, k, exclude=exclude)
        ]


@dataclass(frozen=True)
class _EncoderSpace:
    """An image encoder where a gallery's index expects a style space."""

    finder: ImageEncoder

    @property
    def fingerprint(self) -> str:
        return self.finder.fingerprint

    def embed(self, encoder: ImageEncoder, picture: Image.Image) -> np.ndarray:
        return encoder.embed([picture])[0]
