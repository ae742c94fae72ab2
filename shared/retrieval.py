"""Text → content picture → style picture, over one gallery."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shared import weights
from shared.encoders import Encoder
from shared.errors import WeightsUnavailable
from shared.galleries import Gallery, Picture, open_gallery
from shared.gallery_index import GalleryIndex, open_index
from shared.hybrid_search import HybridIndex, JointPictures, SentenceIndex
from shared.sentence_encoder import SentenceEncoder
from shared.style_space import StyleSpace
from shared.text_search import Match, TextIndex

log = logging.getLogger(__name__)

SENTENCES = "minilm"
"""The sentence transformer that ``auto`` stands for."""


@dataclass
class Retrieval:
    """Finds content by words and style by pictures.

    Attributes:
        encoder: makes the VGG-19 encoder at first need: the gallery's own pictures are embedded beforehand, so only
            uploaded ones need it.
    """

    gallery: Gallery
    text: TextIndex | HybridIndex
    index: GalleryIndex
    space: StyleSpace
    encoder: Callable[[], Encoder]

    @classmethod
    def open(
        cls,
        gallery: str | Path,
        encoder: Callable[[], Encoder],
        *,
        index: Path | None = None,
        cache: Path | None = None,
        sentences: SentenceEncoder | None = None,
        joint: JointPictures | None = None,
        on_picture: Callable[[int, int], None] | None = None,
        on_text: Callable[[int, int], None] | None = None,
    ) -> Retrieval:
        """Read a gallery and its index; see :func:`shared.gallery_index.open_index` for where the index comes from.

        Args:
            sentences: finds content by meaning too; by words alone where not given.
            joint: the gallery's pictures in a space that texts lie in too, used beside ``sentences``.

        Raises:
            GalleryError: the gallery or its index cannot be used.
        """
        opened, space = open_gallery(gallery), StyleSpace.load()
        found = open_index(opened, space, path=index, cache=cache, encoder=encoder, on_picture=on_picture)
        text: TextIndex | HybridIndex = TextIndex(opened)
        if sentences is not None:
            text = HybridIndex(text, SentenceIndex.open(opened, sentences, cache=cache, on_text=on_text), joint)
        return cls(opened, text, found, space, encoder)

    def content(self, title: str, description: str = "", k: int = 5) -> list[Match]:
        """The ``k`` pictures that the words fit best.

        See :meth:`shared.text_search.TextIndex.search` and :meth:`shared.hybrid_search.HybridIndex.search`.
        """
        return self.text.search(title, description, k)

    def style_of(self, picture_id: str, k: int = 5) -> list[Match]:
        """The ``k`` other pictures of the gallery whose style is nearest to the picture's.

        Raises:
            NotFound: the gallery has no such picture.
        """
        self.gallery.by_id(picture_id)
        return self._matches(self.index.embedding(picture_id), k, exclude=picture_id)

    def style_like(self, picture: Image.Image, k: int = 5) -> list[Match]:
        """The ``k`` pictures of the gallery whose style is nearest to any picture's."""
        return self._matches(self.embed(picture), k)

    def embed(self, picture: Image.Image) -> np.ndarray:
        """The style embedding of any picture, ``[K]``."""
        return self.space.embed(self.encoder(), picture)

    def distance(self, first_id: str, second_id: str) -> float:
        """Cosine distance, 0 to 2, between the styles of two pictures of the gallery."""
        return max(0.0, float(1 - self.index.embedding(first_id) @ self.index.embedding(second_id)))

    def picture(self, picture_id: str) -> Picture:
        """The record of a picture.

        Raises:
            NotFound: the gallery has no such picture.
        """
        return self.gallery.by_id(picture_id)

    def _matches(self, embedding: np.ndarray, k: int, exclude: str | None = None) -> list[Match]:
        return [
            Match(self.gallery.by_id(id), distance)
            for id, distance in self.index.nearest(embedding, k, exclude=exclude)
        ]


def open_sentences(choice: str) -> SentenceEncoder | None:
    """The sentence transformer that an operator chose.

    Args:
        choice: ``auto`` for :data:`SENTENCES` where it is on this machine and whole, ``off``, or a folder.

    Returns:
        None where content is to be found by words alone.

    Raises:
        InvalidInput, ModelRefused: the folder holds no sentence transformer.
    """
    if choice == "off":
        return None
    if choice != "auto":
        return SentenceEncoder.open(choice)
    if weights.locate(SENTENCES) is None:
        log.info("content is found by words alone: '%s' is not here", SENTENCES)
        return None
    try:
        return SentenceEncoder.open(weights.verify(SENTENCES))
    except WeightsUnavailable as error:
        log.warning("content is found by words alone: %s", error)
        return None
