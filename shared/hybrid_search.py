"""Text → content picture by words and by meaning: TF-IDF, sentence embeddings, and a joint space where there is one."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared.files import write_atomically
from shared.galleries import Gallery, Picture
from shared.sentence_encoder import SentenceEncoder
from shared.text_search import Match, TextIndex, check_k, content_words, nearest

log = logging.getLogger(__name__)

WEIGHTS: Mapping[str, float] = {"words": 0.6, "sentences": 0.4, "pictures": 0.3}
"""Of each similarity in the mean; those of parts that are not installed do not count."""

MIN_SIMILARITY = 0.175
"""Below it no picture passes as a match."""

_MOST_WORDS = 128  # of a query's part are read for their meaning; an encoder would cut the sorted words by the alphabet


class JointSpace(Protocol):
    """A space that texts and pictures lie in together."""

    def text(self, titles: Sequence[str], descriptions: Sequence[str]) -> np.ndarray:
        """The embeddings of texts, ``[N, K]`` at unit length."""


@dataclass(frozen=True)
class JointPictures:
    """A gallery's pictures in a joint space.

    Attributes:
        embeddings: ``[N, K]`` at unit length, in the gallery's order.
    """

    space: JointSpace
    embeddings: np.ndarray

    def similarities(self, parts: Sequence[str]) -> np.ndarray:
        """Cosine between the query's parts (title, description) and each picture, ``[N]``."""
        title, description = (*parts, "")[:2]
        return self.embeddings @ self.space.text([title], [description])[0]


@dataclass(frozen=True)
class SentenceIndex:
    """The texts of a gallery's pictures in the space of a sentence encoder.

    A picture has one sentence that says everything, and aspects: its title, each tag, each sentence of its
    description. The sentence alone would drown a detail that the query asks for.

    Attributes:
        sentences: ``[N, D]`` at unit length.
        aspects: ``[A, D]`` at unit length, those of the first picture first.
        starts: ``[N]``, where each picture's aspects begin.
    """

    encoder: SentenceEncoder
    sentences: np.ndarray
    aspects: np.ndarray
    starts: np.ndarray

    @classmethod
    def open(
        cls,
        gallery: Gallery,
        encoder: SentenceEncoder,
        *,
        cache: Path | None = None,
        on_text: Callable[[int, int], None] | None = None,
    ) -> SentenceIndex:
        """Embed the gallery's texts, or read what was kept in ``cache`` for the same texts and encoder."""
        sentences = [_sentence(picture) for picture in gallery.pictures]
        aspects = [_aspects(picture) for picture in gallery.pictures]
        starts = np.cumsum([0, *map(len, aspects[:-1])])
        texts = [*sentences, *(text for each in aspects for text in each)]
        key = hashlib.sha256(json.dumps([encoder.fingerprint, texts]).encode()).hexdigest()[:20]
        file = cache and cache / f"sentences-{key}.safetensors"
        embeddings = _kept(file, (len(texts), encoder.dimensions)) if file else None
        if embeddings is None:
            unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # tags repeat
            embeddings = encoder.encode(list(unique), on_text=on_text)[[unique[text] for text in texts]]
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, save({"embeddings": embeddings}))
        return cls(encoder, embeddings[: len(sentences)], embeddings[len(sentences) :], starts)

    def similarities(self, parts: Sequence[str]) -> np.ndarray:
        """Mean of a picture's cosine with the query and that of its nearest aspect, ``[N]``.

        The query is the sum of its parts (title, description), each at unit length, as it is with words. Of a part the
        words that name something count, in alphabetical order: what is put into English word by word has the word
        order of another language, and would otherwise find other pictures than the same query in English.
        """
        texts = [" ".join(sorted(dict.fromkeys(content_words(part)[:_MOST_WORDS]))) for part in parts]
        query = self.encoder.encode([text for text in texts if text]).sum(axis=0)
        query /= np.linalg.norm(query) or 1
        return (self.sentences @ query + np.maximum.reduceat(self.aspects @ query, self.starts)) / 2


class HybridIndex:
    """A gallery searched by words and by meaning.

    The similarity of a picture is the mean of its similarities in the parts that are there (words, sentences,
    pictures), by :data:`WEIGHTS`; a negative cosine counts as 0. So it lies in 0 to 1: the distance is 0 only for a
    text that is the picture's own in every part, and a good match is at about 0.4 to 0.6.
    Searching changes nothing, so threads may share an index.
    """

    def __init__(
        self,
        words: TextIndex,
        sentences: SentenceIndex | None = None,
        joint: JointPictures | None = None,
        *,
        weights: Mapping[str, float] = WEIGHTS,
        min_similarity: float = MIN_SIMILARITY,
    ):
        self.gallery = words.gallery
        self._words = words
        parts = {"words": words, "sentences": sentences, "pictures": joint}
        self._parts = {name: part for name, part in parts.items() if part is not None}
        self._weights = weights
        self._min_similarity = min_similarity

    @property
    def parts(self) -> tuple[str, ...]:
        """What is searched by: ``words``, ``sentences``, ``pictures``."""
        return tuple(self._parts)

    def search(self, title: str, description: str = "", k: int = 5) -> list[Match]:
        """The ``k`` pictures that a text fits best, nearest first, ties in the gallery's order.

        Raises:
            InvalidInput: ``k`` is outside 1..:data:`shared.text_search.MAX_K`.
            NoMatch: the text has no word to look for, or no picture reaches the similarity :data:`MIN_SIMILARITY`.
        """
        check_k(k)
        parts = self._words.english(title, description)
        if not any(map(content_words, parts)):
            raise self._words.no_match(parts)
        similarities = mean_similarity(self.similarities(parts), self._weights)
        if similarities.max() < self._min_similarity:
            raise self._words.no_match(parts)
        return nearest(self.gallery, similarities, k)

    def similarities(self, parts: Sequence[str]) -> dict[str, np.ndarray]:
        """Of an English query (title, description), ``[N]`` in 0 to 1 by part of the search."""
        return {name: np.clip(part.similarities(parts), 0, 1) for name, part in self._parts.items()}


def mean_similarity(similarities: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The mean, ``[…, N]``, of the parts' similarities by their weights."""
    total = sum(weights[name] for name in similarities)
    return sum(weights[name] / total * each for name, each in similarities.items())


def _sentence(picture: Picture) -> str:
    subjects = f" of {', '.join(picture.tags).lower()}" if picture.tags else ""
    return " ".join(filter(None, (f"A painting{subjects}: {_plain(picture.title)}.", picture.description)))


def _aspects(picture: Picture) -> list[str]:
    sentences = re.split(r"(?<=[.!?])\s+", picture.description)
    return list(dict.fromkeys(text for text in (_plain(picture.title), *picture.tags, *sentences) if text)) or [""]


def _plain(title: str) -> str:
    """A title without what stands in brackets: years of life, other names, the other side of the panel."""
    return re.sub(r"\s*\([^)]*\)", "", title).strip() or title


def _kept(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    if not file.is_file():
        return None
    try:
        embeddings = load_file(file)["embeddings"]
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("made anew, because it cannot be read: %s: %s", file, error)
        return None
    return embeddings if embeddings.shape == shape else None
