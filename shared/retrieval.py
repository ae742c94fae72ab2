"""Text → content picture → style picture, over one gallery."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from shared import weights
from shared.encoders import Encoder
from shared.errors import WeightsUnavailable
from shared.galleries import Gallery, Picture, open_gallery
from shared.gallery_index import GalleryIndex, ImageEncoder, Progress, open_index, space_name
from shared.hybrid_search import HybridIndex, JointPictures, SentenceIndex
from shared.image_encoders import open_encoder
from shared.joint_embedding import JointEmbedding, JointEncoder
from shared.sentence_encoder import SentenceEncoder
from shared.style_space import StyleEncoder, StyleSpace
from shared.text_search import Match, TextIndex

log = logging.getLogger(__name__)

SENTENCES = "minilm"
"""The sentence transformer that ``auto`` stands for."""


@dataclass
class Retrieval:
    """Finds content by words and style by pictures.

    Attributes:
        index: the gallery in the style space, which the clusters of the fast networks lie in, and in the finder's.
        space: the style space.
        encoder: makes the VGG-19 encoder at first need: the gallery's own pictures are embedded beforehand, so only
            uploaded ones need it.
        finder: the encoder in whose space style pictures are found.
    """

    gallery: Gallery
    text: TextIndex | HybridIndex
    index: GalleryIndex
    space: StyleSpace
    encoder: Callable[[], Encoder]
    finder: ImageEncoder

    @classmethod
    def open(
        cls,
        gallery: str | Path,
        encoder: Callable[[], Encoder],
        *,
        finder: ImageEncoder | None = None,
        index: Path | None = None,
        uri: str | None = None,
        cache: Path | None = None,
        sentences: SentenceEncoder | None = None,
        embedding: JointEmbedding | None = None,
        progress: Progress | None = None,
    ) -> Retrieval:
        """Read a gallery and its index; see :func:`shared.gallery_index.open_index` for where the index comes from.

        Args:
            finder: the encoder in whose space style pictures are found; the style embedding where not given.
            index: folder of the gallery's index, in the style space and in the finder's.
            sentences: finds content by meaning too; by words alone where not given.
            embedding: finds content by what is in the pictures; the index holds them in its space.

        Raises:
            GalleryError: the gallery or its index cannot be used.
        """
        opened, space = open_gallery(gallery), StyleSpace.load()
        style = StyleEncoder(space, encoder)
        finder = finder or style
        joint = embedding and JointEncoder(embedding, lambda: open_encoder(embedding.image_encoder.name))
        spaces = {each.fingerprint: each for each in (style, finder, joint) if each is not None}.values()
        found = open_index(opened, tuple(spaces), path=index, uri=uri, cache=cache, progress=progress)
        text: TextIndex | HybridIndex = TextIndex(opened)
        if sentences is not None or embedding is not None:
            tell = None if progress is None else partial(progress, "reading texts")
            meaning = sentences and SentenceIndex.open(opened, sentences, cache=cache, on_text=tell)
            text = HybridIndex(text, meaning, embedding and joint_pictures(opened, found, embedding))
        return cls(opened, text, found, space, encoder, finder)

    def close(self) -> None:
        """Let go of the index's files and connections."""
        self.index.close()

    def content(self, title: str, description: str = "", k: int = 5) -> list[Match]:
        """The ``k`` pictures that the words fit best.

        See :meth:`shared.text_search.TextIndex.search` and :meth:`shared.hybrid_search.HybridIndex.search`.
        """
        return self.text.search(title, description, k)

    def style_of(self, picture_id: str, k: int = 5) -> list[Match]:
        """The ``k`` other pictures of the gallery whose style is nearest to the picture's, to the finder's eye.

        Raises:
            NotFound: the gallery has no such picture.
        """
        self.gallery.by_id(picture_id)
        return self._matches(self._seen(picture_id), k, exclude=picture_id)

    def style_like(self, picture: Image.Image, k: int = 5) -> list[Match]:
        """The ``k`` pictures of the gallery whose style is nearest to any picture's, to the finder's eye."""
        return self._matches(self.finder.embed([picture])[0], k)

    def embed(self, picture: Image.Image) -> np.ndarray:
        """The style embedding of any picture, ``[K]``, whatever the finder is."""
        return self.space.embed(self.encoder(), picture)

    def distance(self, first_id: str, second_id: str) -> float:
        """Cosine distance, 0 to 2, between the styles of two pictures of the gallery, to the finder's eye."""
        return max(0.0, float(1 - self._seen(first_id) @ self._seen(second_id)))

    def picture(self, picture_id: str) -> Picture:
        """The record of a picture.

        Raises:
            NotFound: the gallery has no such picture.
        """
        return self.gallery.by_id(picture_id)

    def _matches(self, embedding: np.ndarray, k: int, exclude: str | None = None) -> list[Match]:
        return [
            Match(self.gallery.by_id(id), distance)
            for id, distance in self.index.nearest(embedding, k, exclude=exclude, space=space_name(self.finder))
        ]

    def _seen(self, picture_id: str) -> np.ndarray:
        """A picture of the gallery as the finder sees it."""
        return self.index.embedding(picture_id, space=space_name(self.finder))


def joint_pictures(gallery: Gallery, index: GalleryIndex, embedding: JointEmbedding) -> JointPictures:
    """A gallery's pictures in a joint space; one that the index lacks is near to no text."""
    known = set(index.ids)
    rows = np.zeros((len(gallery.pictures), embedding.dimensions), np.float32)
    for row, picture in zip(rows, gallery.pictures, strict=True):
        if picture.id in known:
            row[:] = index.embedding(picture.id, space=JointEncoder.name)
    return JointPictures(embedding, rows)


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
