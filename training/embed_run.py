"""One training of the joint embedding from gallery to figures: encoding, training, measuring, saving."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import GalleryError, InvalidInput
from shared.files import write_atomically
from shared.galleries import Gallery, Picture
from shared.image_encoders import ImageEncoder, OnnxEncoder
from shared.joint_embedding import EncoderName, JointEmbedding, TextFeatures, WordWeights
from training.embed import CachedImages, EmbedSettings, Epoch, Figures, Images, Pairs, train_embedding
from training.embed_encoders import onnx_file, open_image_encoder, open_sentence_encoder
from training.embed_record import EmbedRecord
from training.feature_cache import CachedSentences, FeatureCache, takes_crops
from training.onnx_tower import OnnxTower, TunedImages
from training.open_clip_encoder import PREFIX
from training.retrieval_metrics import measure_both
from training.text_pairs import SplitPairs, extra_text, split_pairs

log = logging.getLogger(__name__)

RUN_FOLDER = ".training"
REPORT_FILE = "report.json"
TUNED_FILE = "image-encoder.onnx"

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done and what there is in all."""


@dataclass(frozen=True)
class EmbedReport:
    """What a training reached.

    Attributes:
        preset: name of the settings it started from.
        history: of the epochs, see :class:`training.embed.EmbedResult`.
        best_epoch: the one whose weights were kept.
        test: figures on the test pairs of title and description alone; None where the gallery has none.
        test_with_extra: with the extra text, where the training saw it.
        pairs: numbers of pairs by split.
        vocabulary: numbers of words by field.
        seconds: that the training took, without the encoding, in this run.
    """

    preset: str
    settings: EmbedSettings
    history: list[dict[str, Any]]
    best_epoch: int
    test: Figures | None
    test_with_extra: Figures | None
    pairs: Mapping[str, int]
    vocabulary: Mapping[str, int]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class Workbench:
    """A gallery's pairs and what encoders make of them, computed once for all trainings of a command.

    Args:
        image_encoder: as ``--image-encoder`` names it.
        sentence_encoder: as ``--sentence-encoder`` names it; None: words alone are read.
        cache: folder that features are kept in.

    Raises:
        InvalidInput: the gallery has too few descriptions.
    """

    def __init__(
        self,
        gallery: Gallery,
        image_encoder: str,
        sentence_encoder: str | None,
        *,
        cache: Path,
        device: str = "auto",
        progress: Progress,
    ):
        self.split = split_pairs(gallery)
        self.gallery = gallery
        self.device = device
        self._image_encoder, self._cache, self._progress = image_encoder, cache, progress
        self.sentences: CachedSentences | None = None
        if sentence_encoder is not None:
            self.sentences = CachedSentences(
                open_sentence_encoder(sentence_encoder, device=device),
                cache,
                name=sentence_encoder if sentence_encoder.startswith(PREFIX) else Path(sentence_encoder).resolve().name,
                on_text=lambda done, total: progress("reading texts", done, total),
            )
        self._encoders: dict[str, ImageEncoder] = {}
        self._features: dict[tuple[str, int], tuple[np.ndarray, list[str]]] = {}

    def encoder(self, output: str) -> ImageEncoder:
        """The image encoder, with ``output`` where its name leaves that open."""
        if output not in self._encoders:
            self._encoders[output] = open_image_encoder(self._image_encoder, output, device=self.device)
        return self._encoders[output]

    def network(self, output: str) -> tuple[Path, str]:
        """File and output of the image encoder, to be trained along.

        Raises:
            InvalidInput: the encoder is no network in ONNX.
        """
        found = onnx_file(self._image_encoder, output)
        if found is None:
            raise InvalidInput(
                f"the image encoder {self._image_encoder} cannot be trained along.",
                hint="Name a network as PATH.onnx, or leave out --finetune.",
                field="finetune",
            )
        return found

    def readable(self, settings: EmbedSettings) -> SplitPairs:
        """The pairs without the pictures that cannot be read.

        Raises:
            GalleryError: too few are left.
        """
        _, problems = self._all_features(settings)
        bad = {p.id for p, problem in zip(self.split.all, problems, strict=True) if problem}
        parts = {
            name: tuple(p for p in getattr(self.split, name) if p.id not in bad)
            for name in ("train", "validation", "test")
        }
        if min(len(parts["train"]), len(parts["validation"])) < 2:
            raise GalleryError(f"too few pictures can be read; the first that cannot: {next(filter(None, problems))}")
        return replace(self.split, **parts)

    def features(self, pictures: Sequence[Picture], settings: EmbedSettings) -> np.ndarray:
        """``[len(pictures), 1 + views, D]``."""
        features, _ = self._all_features(settings)
        position = {picture.id: i for i, picture in enumerate(self.split.all)}
        return features[[position[picture.id] for picture in pictures]]

    def _all_features(self, settings: EmbedSettings) -> tuple[np.ndarray, list[str]]:
        # A network that is trained looks at the pictures itself; it is asked here only which of them can be read.
        encoder = self.encoder(settings.image_output)
        views = settings.views if takes_crops(encoder) and not settings.finetune else 0
        key = (settings.image_output, views)
        if key not in self._features:
            cache = FeatureCache(self._cache, encoder)
            counts = [views] * len(self.split.train) + [0] * (len(self.split.validation) + len(self.split.test))
            self._features[key] = cache.features(
                [picture.path for picture in self.split.all],
                counts,
                on_picture=lambda done, total: self._progress("looking at pictures", done, total),
            )
        return self._features[key]


def run_embedding(
    bench: Workbench,
    preset: str,
    settings: EmbedSettings,
    output: Path,
    *,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> EmbedReport:
    """Train, measure on the test pairs, and write the embedding, its curves and its report into ``output``.

    Run again after an interruption, it goes on after the last whole epoch.

    Raises:
        InvalidInput: no words are left to count, or ``output`` holds a training with other settings or pairs.
    """
    settings = replace(settings, sentences=settings.sentences and bench.sentences is not None)
    split = bench.readable(settings)
    text_features = fit_texts(split.train, settings, bench.sentences)
    encoder = bench.encoder(settings.image_output)
    tower = OnnxTower(*bench.network(settings.image_output)) if settings.finetune else None
    texts = {name: _texts(text_features, getattr(split, name)) for name in ("train", "validation", "test")}
    start = sum(len(text_features.words[name].words) for name in text_features.words if name != "extra")
    extra = (start, start + len(text_features.words["extra"].words)) if "extra" in text_features.words else (0, 0)

    def images(pictures: Sequence[Picture]) -> Images:
        if tower is not None:
            return TunedImages(tuple(picture.path for picture in pictures), encoder, tower)
        return CachedImages(bench.features(pictures, settings))

    run, started = output / RUN_FOLDER, time.monotonic()
    with EmbedRecord(run) as record:

        def note(epoch: Epoch) -> None:
            record.add(epoch)
            if on_epoch is not None:
                on_epoch(epoch)

        result = train_embedding(
            Pairs(texts["train"], images(split.train), extra),
            Pairs(texts["validation"], images(split.validation), extra),
            settings,
            run,
            tower=tower,
            # Both sides of one CLIP: its own space is where to start from.
            aligned=settings.sentences and bench.sentences.fingerprint == encoder.fingerprint,
            device=bench.device,
            on_step=on_step,
            on_epoch=note,
        )
    seconds = time.monotonic() - started
    if tower is not None:
        tower.load_state_dict(result.tower)
        output.mkdir(parents=True, exist_ok=True)
        tower.save(output / TUNED_FILE)
        encoder = OnnxEncoder(output / TUNED_FILE, bench.network(settings.image_output)[1], device=bench.device)
    sentences = bench.sentences if settings.sentences else None
    embedding = JointEmbedding(
        text_features,
        result.text_side,
        result.image_side,
        EncoderName(encoder.name, encoder.fingerprint, encoder.dimensions),
        EncoderName(sentences.name, sentences.fingerprint, sentences.dimensions) if sentences else None,
        about={"preset": preset, "settings": asdict(settings), "gallery": bench.gallery.name},
    )
    test, test_with_extra = None, None
    if len(split.test) > 1:
        features = images(split.test).all().numpy(force=True)
        titles, descriptions = ([getattr(p, name) for p in split.test] for name in ("title", "description"))
        points = embedding.image(features)
        test = measure_both(embedding.text(titles, descriptions), points)
        if settings.extra_share:
            extras = [extra_text(picture) for picture in split.test]
            test_with_extra = measure_both(embedding.text(titles, descriptions, extras), points)
    report = EmbedReport(
        preset,
        settings,
        result.history,
        result.best_epoch,
        test,
        test_with_extra,
        {name: len(getattr(split, name)) for name in ("train", "validation", "test")},
        {name: len(weights.words) for name, weights in text_features.words.items()},
        seconds,
    )
    embedding.save(output)
    record.plot(result.history, output / "recall.png")
    write_atomically(output / REPORT_FILE, json.dumps(report.as_dict(), indent=1).encode())
    return report


def fit_texts(pictures: Sequence[Picture], settings: EmbedSettings, sentences: CachedSentences | None) -> TextFeatures:
    """The vocabularies of the training texts.

    Raises:
        InvalidInput: no word of the descriptions occurs often enough.
    """
    words = {
        "description": WordWeights.fit([p.description for p in pictures], least=settings.least_words),
        "title": WordWeights.fit([p.title for p in pictures]),
    }
    if settings.extra_share:
        words["extra"] = WordWeights.fit([extra_text(p) for p in pictures])
    if not words["description"].words:
        raise InvalidInput(
            f"no word of the {len(pictures):,} training descriptions occurs {settings.least_words} times, so the "
            "vocabulary is empty.",
            hint="Lower it with --set least_words=1, or bring more descriptions.",
            field="least_words",
        )
    if not settings.sentences or sentences is None:
        return TextFeatures(words)
    return TextFeatures(words, sentences, sentences.dimensions, settings.sentence_scale)


def _texts(features: TextFeatures, pictures: Sequence[Picture]) -> Any:
    texts = ([p.title for p in pictures], [p.description for p in pictures], [extra_text(p) for p in pictures])
    return features(*texts)
