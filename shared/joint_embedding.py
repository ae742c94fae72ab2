"""Texts and pictures in one space, where a text lies near the pictures that it fits: running what was trained.

The form is that of Garcia and Vogiatzis ("How to Read Paintings", 2018): each side is projected linearly, bent by tanh
or not, and brought to length 1. Training is :mod:`training.embed`'s business; nothing here needs PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer, TfidfTransformer

from shared.errors import GalleryError, InvalidInput
from shared.files import write_atomically
from shared.gallery_index import ImageEncoder

FORMAT = "1"
WEIGHTS_FILE, CARD_FILE = "joint.safetensors", "joint.json"

TEXT_FIELDS = ("description", "title", "extra")
"""What words are counted of, each with a vocabulary of its own."""

ACTIVATIONS = ("tanh", "none")

_STOP_WORDS = sorted(ENGLISH_STOP_WORDS)


class SentenceEncoding(Protocol):
    """What is needed of a sentence encoder."""

    fingerprint: str

    def encode(self, texts: Sequence[str], /) -> np.ndarray:
        """``[N, D]`` float32, each of length 1."""


@dataclass(frozen=True)
class EncoderName:
    """An encoder that an embedding was trained with, and that it needs at its side.

    Attributes:
        name: for humans.
        fingerprint: of the encoder's weights and of what it does with its input.
        dimensions: length of its vectors.
    """

    name: str
    fingerprint: str
    dimensions: int


@dataclass(frozen=True)
class WordWeights:
    """TF-IDF of one field of a text, ``tf · idf`` at length 1 (Salton and Buckley 1988), as in scikit-learn.

    Attributes:
        words: the vocabulary in alphabetical order; English stop words are not in it.
        idf: ``[len(words)]`` float32, ``ln((1 + n) / (1 + df)) + 1`` over the texts that it was fitted on.
    """

    words: tuple[str, ...]
    idf: np.ndarray

    @classmethod
    def fit(cls, texts: Sequence[str], *, least: int = 1) -> WordWeights:
        """Count the words of ``texts``; those that occur fewer than ``least`` times in all are left out.

        The vocabulary may come out empty.
        """
        counter = CountVectorizer(stop_words=_STOP_WORDS)
        try:
            counts = counter.fit_transform(texts)
        except ValueError:  # scikit-learn's "empty vocabulary"
            return cls((), np.zeros(0, np.float32))
        kept = np.asarray(counts.sum(0)).ravel() >= least
        idf = TfidfTransformer().fit(counts[:, kept]).idf_ if kept.any() else np.zeros(0)
        return cls(tuple(counter.get_feature_names_out()[kept].tolist()), idf.astype(np.float32))

    def __call__(self, texts: Sequence[str]) -> sparse.csr_array:
        """``[N, len(words)]`` float32; rows of length 1, or 0 where a text has no known word."""
        if not self.words:
            return sparse.csr_array((len(texts), 0), dtype=np.float32)
        weighted = sparse.csr_array(self._counter.transform(texts), dtype=np.float32).multiply(self.idf[None]).tocsr()
        lengths = np.sqrt(weighted.multiply(weighted).sum(1))
        return sparse.csr_array(weighted.multiply(1 / np.where(lengths > 0, lengths, 1)[:, None]), dtype=np.float32)

    @cached_property
    def _counter(self) -> CountVectorizer:
        return CountVectorizer(vocabulary={word: i for i, word in enumerate(self.words)})


@dataclass(frozen=True)
class TextFeatures:
    """What the text side is given of a title, a description and an extra text.

    Attributes:
        words: TF-IDF by field of :data:`TEXT_FIELDS`; fields that are not there are not read.
        sentences: makes one vector of title and description together; None: words alone count.
        sentence_scale: length of that vector, against 1 for the words of each field.
    """

    words: Mapping[str, WordWeights]
    sentences: SentenceEncoding | None = None
    sentence_dimensions: int = 0
    sentence_scale: float = 1.0

    @property
    def dimensions(self) -> int:
        return sum(len(each.words) for each in self.words.values()) + self.sentence_dimensions

    def __call__(
        self, titles: Sequence[str], descriptions: Sequence[str], extra: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """``[N, dimensions]`` float32: the words of each field, then the sentence vector.

        Raises:
            InvalidInput: the numbers of texts differ.
        """
        extra = [""] * len(titles) if extra is None else extra
        given = {"title": titles, "description": descriptions, "extra": extra}
        if len({len(texts) for texts in given.values()}) > 1:
            counts = ", ".join(f"{len(texts)} of {name}" for name, texts in given.items())
            raise InvalidInput(f"the texts do not belong together: {counts}.", field="descriptions")
        blocks = [weights(given[name]) for name, weights in self.words.items()]
        if self.sentences is not None:
            vectors = self.sentences.encode([joined(*texts) for texts in zip(titles, descriptions, strict=True)])
            blocks.append(sparse.csr_array(self.sentence_scale * vectors.reshape(len(titles), -1)))
        return sparse.csr_array(sparse.hstack(blocks, format="csr"), dtype=np.float32)


def joined(title: str, description: str) -> str:
    """Title and description as one text for a sentence encoder."""
    return " ".join(text for text in (f"{title.rstrip('.')}." if title else "", description) if text)


@dataclass(frozen=True)
class Projection:
    """One side of the space: ``activation(x @ weight.T + bias)``, brought to length 1.

    Attributes:
        weight: ``[K, D]`` float32.
        bias: ``[K]``.
        activation: of :data:`ACTIVATIONS`.
    """

    weight: np.ndarray
    bias: np.ndarray
    activation: str = "none"

    def __call__(self, features: np.ndarray | sparse.csr_array) -> np.ndarray:
        """``[N, D]`` → ``[N, K]`` float32 of length 1."""
        projected = np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)
        if self.activation == "tanh":
            projected = np.tanh(projected)
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)


class JointEmbedding:
    """Texts and pictures as points on one sphere; the cosine of a text and a picture says how well they fit.

    Nothing changes after it was made, so threads may share one.

    Args:
        text_features: what the text side reads.
        text_side, image_side: the projections; their dimensions agree.
        image_encoder: whose vectors (of length 1) :meth:`image` takes.
        sentence_encoder: the one in ``text_features``, where there is one.
        about: how it was trained and what it reached; told, not used.

    Raises:
        InvalidInput: the parts do not fit together.
    """

    def __init__(
        self,
        text_features: TextFeatures,
        text_side: Projection,
        image_side: Projection,
        image_encoder: EncoderName,
        sentence_encoder: EncoderName | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        for side, projection, features in (
            ("text", text_side, text_features.dimensions),
            ("image", image_side, image_encoder.dimensions),
        ):
            if projection.weight.shape != (len(text_side.bias), features) or projection.bias.shape != (
                len(projection.weight),
            ):
                raise InvalidInput(
                    f"the {side} projection is {list(projection.weight.shape)} with {len(projection.bias)} biases, "
                    f"expected [{len(text_side.bias)}, {features}]."
                )
            if projection.activation not in ACTIVATIONS:
                raise InvalidInput(
                    f"the activation is '{projection.activation}', expected one of {', '.join(ACTIVATIONS)}."
                )
        self.image_encoder = image_encoder
        self.sentence_encoder = sentence_encoder
        self.about = dict(about or {})
        self._text_features = text_features
        self._sides = {"text": text_side, "image": image_side}

    @property
    def dimensions(self) -> int:
        """K, the dimensions of the common space."""
        return len(self._sides["text"].bias)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all that decides where texts and pictures come to lie."""
        digest = hashlib.sha256(json.dumps(self._card(), sort_keys=True).encode())
        for name, array in sorted(self._tensors().items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def text(
        self, titles: Sequence[str], descriptions: Sequence[str], extra: Sequence[str] | None = None
    ) -> np.ndarray:
        """Texts as points, ``[N, K]`` float32 of length 1.

        A text without a single known word gets the point that the bias stands for: nearness to it means nothing.

        Args:
            titles, descriptions: N of each; either may be empty.
            extra: what else is known, such as author, school and type in one text; None: nothing.

        Raises:
            InvalidInput: the numbers of texts differ.
        """
        return self._sides["text"](self._text_features(titles, descriptions, extra))

    def image(self, features: np.ndarray) -> np.ndarray:
        """Pictures as points, ``[N, K]`` float32 of length 1.

        Args:
            features: ``[N, D]``, what the encoder named by :attr:`image_encoder` makes of the pictures, of length 1.

        Raises:
            InvalidInput: D is that of another encoder.
        """
        if features.ndim != 2 or features.shape[1] != self.image_encoder.dimensions:
            raise InvalidInput(
                f"the picture features have the shape {list(features.shape)}, expected "
                f"[N, {self.image_encoder.dimensions}] from the encoder {self.image_encoder.name}."
            )
        return self._sides["image"](np.asarray(features, np.float32))

    def save(self, folder: Path) -> None:
        """Write the embedding into ``folder`` as safetensors and JSON; the JSON last, since nothing is read without."""
        folder.mkdir(parents=True, exist_ok=True)
        card = self._card() | {"fingerprint": self.fingerprint, "about": self.about}
        write_atomically(folder / WEIGHTS_FILE, save(self._tensors(), {"fingerprint": self.fingerprint}))
        write_atomically(folder / CARD_FILE, json.dumps(card, indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: Path, *, sentences: SentenceEncoding | None = None) -> JointEmbedding:
        """Read an embedding that :meth:`save` wrote.

        Args:
            sentences: the sentence encoder that it was trained with, where it was trained with one.

        Raises:
            GalleryError: a file is missing, corrupt or belongs to another embedding.
            InvalidInput: it needs a sentence encoder, and none or another one was given.
        """
        hint = "Train it again with `lienzo-train embed`."
        try:
            card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
            if card["format"] != FORMAT:
                raise ValueError(f"format {card['format']}, expected {FORMAT}")
            with safe_open(folder / WEIGHTS_FILE, framework="np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            encoder = EncoderName(**card["sentence_encoder"]) if card["sentence_encoder"] else None
            features = TextFeatures(
                {name: WordWeights(tuple(words), tensors[f"idf.{name}"]) for name, words in card["words"].items()},
                _checked(encoder, sentences, folder) if encoder else None,
                encoder.dimensions if encoder else 0,
                card["sentence_scale"],
            )
            sides = [
                Projection(tensors[f"{side}.weight"], tensors[f"{side}.bias"], card["activation"])
                for side in ("text", "image")
            ]
            loaded = cls(features, *sides, EncoderName(**card["image_encoder"]), encoder, card["about"])
        except InvalidInput:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise GalleryError(f"the joint embedding in '{folder}' cannot be read: {error}.", hint=hint) from error
        if loaded.fingerprint != card["fingerprint"]:
            raise GalleryError(f"the files of the joint embedding in '{folder}' do not belong together.", hint=hint)
        return loaded

    def _card(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dimensions": self.dimensions,
            "activation": self._sides["text"].activation,
            "image_encoder": asdict(self.image_encoder),
            "sentence_encoder": asdict(self.sentence_encoder) if self.sentence_encoder else None,
            "sentence_scale": self._text_features.sentence_scale,
            "words": {name: list(weights.words) for name, weights in self._text_features.words.items()},
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {f"idf.{name}": weights.idf for name, weights in self._text_features.words.items()}
        for name, side in self._sides.items():
            tensors |= {f"{name}.weight": side.weight, f"{name}.bias": side.bias}
        return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


class JointEncoder:
    """The picture side of a joint embedding, as what an index takes (:class:`shared.gallery_index.ImageEncoder`).

    Args:
        open_pictures: makes the encoder whose vectors the embedding reads, at the first picture: who only opens an
            index needs no network.
    """

    name = "joint"

    def __init__(self, embedding: JointEmbedding, open_pictures: Callable[[], ImageEncoder]):
        self.embedding = embedding
        self.fingerprint = embedding.fingerprint
        self.dimensions = embedding.dimensions
        self._open_pictures = open_pictures

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Pictures as points, ``[N, K]`` float32 of length 1.

        Raises:
            InvalidInput: the embedding was trained with another encoder.
        """
        return self.embedding.image(self._pictures.embed(pictures))

    @cached_property
    def _pictures(self) -> ImageEncoder:
        expected, encoder = self.embedding.image_encoder, self._open_pictures()
        if encoder.fingerprint != expected.fingerprint:
            raise InvalidInput(
                f"the joint embedding was trained with the image encoder {expected.name} ({expected.fingerprint}), "
                f"not with {encoder.name} ({encoder.fingerprint}).",
                hint="Name the one that it was trained with: joint:FOLDER@ENCODER.",
                field="encoder",
            )
        return encoder


def _checked(expected: EncoderName, given: SentenceEncoding | None, folder: Path) -> SentenceEncoding:
    if given is None or given.fingerprint != expected.fingerprint:
        found = "none was given" if given is None else f"another one was given ({given.fingerprint[:16]})"
        raise InvalidInput(
            f"the joint embedding in '{folder}' needs the sentence encoder {expected.name} "
            f"({expected.fingerprint[:16]}), and {found}.",
            hint="Name the folder of the sentence encoder that it was trained with.",
            field="sentence_encoder",
        )
    return given
