"""Text → content picture: TF-IDF over a gallery's texts, with stemming and a lexicon of related words.

A Spanish query is put into English first, see :mod:`shared.spanish`.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from snowballstemmer import EnglishStemmer

from shared.errors import GalleryError, InvalidInput, NoMatch
from shared.galleries import Gallery, Picture
from shared.lexicon import GROUPS
from shared.spanish import to_english

MAX_K = 100

# How often a word of each field counts. Title and tags say what is to be seen, the rest says how it came about.
FIELD_WEIGHTS = {
    "title": 3,
    "tags": 3,
    "artist": 2,
    "description": 1,
    "type": 1,
    "style": 1,
    "school": 1,
    "date": 1,
    "timeframe": 1,
    "technique": 1,
    "department": 1,
}
RELATED_WEIGHT = 0.4  # of a word that only the lexicon ties to the query, against 1 for the word itself
MIN_SIMILARITY = 0.02

# scikit-learn's list counts some words that name things in pictures.
_STOP_WORDS = (ENGLISH_STOP_WORDS - {"cry", "fire", "last", "mill", "mine"}) | {
    # of pictures in general
    *("picture", "pictures", "painting", "paintings", "paint", "painted", "image", "images", "artwork", "art"),
    *("scene", "view", "study", "depict", "depicts", "depicting", "depicted", "showing", "shows", "seen", "sees"),
    # of museum records
    *("ca", "circa", "century", "born", "died", "dated", "datable", "probably", "possibly", "called", "verso"),
    # of talking
    *("want", "like", "look", "looks", "looking", "please", "lot", "way", "thing", "things", "make", "makes"),
}
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "geese": "goose",
    "mice": "mouse",
    "wolves": "wolf",
    "leaves": "leaf",
    "sang": "sing",
    "sung": "sing",
    "ate": "eat",
    "fought": "fight",
    "slept": "sleep",
    "swam": "swim",
    "drank": "drink",
    "drunk": "drink",
    "rode": "ride",
}
_LONGEST_WORD = 40  # longer runs of letters are no words


@dataclass(frozen=True)
class Match:
    """A picture and how far it is from the query: cosine distance, 0 (the same) to 1 (nothing shared)."""

    picture: Picture
    distance: float


class TextIndex:
    """TF-IDF vectors of a gallery's texts, fitted at once and kept in memory only.

    A picture is the bag of its stemmed words, each counted by :data:`FIELD_WEIGHTS`, with
    ``(1 + ln tf) · idf`` and ``idf = ln((1 + n) / (1 + df)) + 1``, at unit length (Salton and Buckley,
    "Term-weighting approaches in automatic text retrieval", 1988; scikit-learn's smoothed idf).
    Searching changes nothing, so threads may share an index.

    Attributes:
        parts: what is searched by.

    Raises:
        GalleryError: no picture of the gallery has a single word.
    """

    parts = ("words",)

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        vectorizer = TfidfVectorizer(analyzer=_picture_stems, sublinear_tf=True)
        try:
            self._vectors = vectorizer.fit_transform(gallery.pictures)
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise GalleryError(
                f"The gallery {gallery.name} has no words to search for.",
                hint="Give its pictures titles, in a metadata.csv with the columns file and title.",
            ) from error
        self._columns: dict[str, int] = vectorizer.vocabulary_
        self._idf = vectorizer.idf_
        self._unknown_idf = math.log(1 + len(gallery.pictures)) + 1
        self._related = _related_stems()
        to_english("")  # reads the Spanish lexicon, so that the first search need not
        self._words = Counter(
            word
            for picture in gallery.pictures
            for word in dict.fromkeys(content_words(" ".join((picture.title, *picture.tags))))
        )

    def search(self, title: str, description: str = "", k: int = 5) -> list[Match]:
        """At most ``k`` pictures that share words with the query, nearest first, ties in the gallery's order.

        The query vector is the sum of the title's and the description's, each at unit length, so a short title
        counts as much as a long description. Words that the lexicon relates to a query word count as
        :data:`RELATED_WEIGHT` of it. Words unknown to the gallery lengthen the query vector, so the distance
        says how much of the query was understood.

        Raises:
            InvalidInput: ``k`` is outside 1..:data:`MAX_K`.
            NoMatch: no picture reaches the cosine similarity :data:`MIN_SIMILARITY`.
        """
        check_k(k)
        parts = self.english(title, description)
        similarities = self.similarities(parts)
        matches = nearest(self.gallery, similarities, k, at_least=MIN_SIMILARITY)
        if not matches:
            raise self.no_match(parts)
        return matches

    def english(self, title: str, description: str = "") -> tuple[str, str]:
        """Title and description in English, see :func:`shared.spanish.to_english`; words of the gallery stay."""
        return to_english(title, description, knows=self._knows).parts

    def similarities(self, parts: Sequence[str]) -> np.ndarray:
        """Cosine similarity, 0 to 1, between the words of a query's parts and each picture's, ``[N]``."""
        query: dict[str, float] = defaultdict(float)
        for part in parts:
            for stem, weight in _unit(self._weights(part)).items():
                query[stem] += weight
        vector = np.zeros(len(self._columns))
        for stem, weight in _unit(query).items():
            if stem in self._columns:
                vector[self._columns[stem]] = weight
        return self._vectors @ vector

    def _weights(self, text: str) -> dict[str, float]:
        """The TF-IDF weights of a text and of the words related to it; the word itself takes precedence."""
        counts = Counter(_stems(text))
        weights = {stem: (1 + math.log(count)) * self._idf_of(stem) for stem, count in counts.items()}
        related: dict[str, float] = {}
        for stem, weight in weights.items():
            for other in self._related.get(stem, ()):
                if other not in weights and other in self._columns:
                    # A rare word weighs more in its pictures. The ratio undoes that, so that a related word
                    # never adds more to the similarity than its share of what the word itself would.
                    ratio = min(self._idf_of(other) / self._idf_of(stem), self._idf_of(stem) / self._idf_of(other))
                    related[other] = max(related.get(other, 0.0), RELATED_WEIGHT * weight * ratio)
        return weights | related

    def _idf_of(self, stem: str) -> float:
        column = self._columns.get(stem)
        return self._unknown_idf if column is None else float(self._idf[column])

    def _knows(self, word: str) -> bool:
        """Whether the gallery has a word or one related to it."""
        stem = _stem(word)
        return stem in self._columns or any(other in self._columns for other in self._related.get(stem, ()))

    def no_match(self, parts: Sequence[str]) -> NoMatch:
        """The refusal of a query: what was looked for, and words that would be found."""
        words = list(dict.fromkeys(content_words(" ".join(parts))))
        unknown = [word for word in words if _stem(word) not in self._columns]
        near = [w for word in unknown[:3] for w in difflib.get_close_matches(word, self._words, n=1, cutoff=0.8)]
        frequent = [word for word, _ in self._words.most_common(8)]
        return NoMatch(
            f"No picture fits the words {', '.join(words[:8])}{', …' if len(words) > 8 else ''}."
            if words
            else "The text has no word to look for: stop words, single letters and short numbers do not count.",
            hint=(f"Did you mean {', '.join(dict.fromkeys(near))}? " if near else "")
            + f"The gallery knows words such as {', '.join(frequent)}.",
            field="title",
        )


def check_k(k: int) -> None:
    """Raise InvalidInput where ``k`` is outside 1..:data:`MAX_K`."""
    if not 1 <= k <= MAX_K:
        raise InvalidInput(
            f"k is {k}; it must be from 1 to {MAX_K}.", hint="Leave it out for the nearest 5.", field="k"
        )


def nearest(gallery: Gallery, similarities: np.ndarray, k: int, *, at_least: float = 0.0) -> list[Match]:
    """The ``k`` pictures of the largest of ``similarities`` ``[N]``, ties in the gallery's order."""
    return [
        Match(gallery.pictures[i], float(np.clip(1 - similarities[i], 0, 1)))
        for i in np.argsort(-similarities, kind="stable")[:k]
        if similarities[i] >= at_least
    ]


def _picture_stems(picture: Picture) -> Iterator[str]:
    for field, times in FIELD_WEIGHTS.items():
        value = getattr(picture, field)
        text = " ".join(value) if isinstance(value, tuple) else value
        for stem in _stems(text) + (_centuries(text) if field == "date" else []):
            yield from (stem,) * times


def _centuries(date: str) -> list[str]:
    """The centuries that the years of a date lie in: "1599–1601" → ["16th", "17th"]."""
    years = re.findall(r"(?<!\d)(?:1\d{3}|20\d{2})(?!\d)", date)
    return [f"{century}{'st' if century == 21 else 'th'}" for century in sorted({(int(y) + 99) // 100 for y in years})]


def _related_stems() -> dict[str, tuple[str, ...]]:
    related: dict[str, set[str]] = defaultdict(set)
    for line in GROUPS:
        left, _, right = line.partition(">")
        left_stems = set(_stems(left))
        for stem in left_stems:
            related[stem] |= (set(_stems(right)) if right else left_stems) - {stem}
    return {stem: tuple(sorted(others)) for stem, others in related.items()}


def _unit(weights: dict[str, float]) -> dict[str, float]:
    length = math.hypot(*weights.values())
    return {stem: weight / length for stem, weight in weights.items()} if length else {}


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in content_words(text)]


def content_words(text: str) -> list[str]:
    """Lower-case words of a text without accents, stop words, single letters and short numbers."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    plain = re.sub(r"['’]s\b", "", plain)
    return [
        word
        for word in re.findall(r"[^\W_]+", plain)
        if 1 < len(word) <= _LONGEST_WORD and word not in _STOP_WORDS and not re.fullmatch(r"\d{1,3}|\d{5,}", word)
    ]


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    # A stemmer keeps state while it works, so each call has its own: threads may search at once.
    return EnglishStemmer().stemWord(_IRREGULAR.get(word, word))
