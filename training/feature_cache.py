"""What encoders make of pictures (whole and in random crops) and of texts, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.errors import GalleryError, InvalidInput
from shared.files import sha256, write_atomically
from shared.image_encoders import ImageEncoder
from shared.images import decode
from shared.joint_embedding import SentenceEncoding

log = logging.getLogger(__name__)

SHARD = 64
"""Pictures after which the cache is written, and texts that are encoded together."""


def takes_crops(encoder: ImageEncoder) -> bool:
    """Whether an image encoder can look at random crops: ``embed(pictures, augment=generator)``."""
    return "augment" in inspect.signature(encoder.embed).parameters


class FeatureCache:
    """Features by picture and view, kept on disk.

    A picture is known by its bytes, so it may be renamed or belong to several galleries. View 0 is the picture as the
    encoder looks at it; view v > 0 is a random crop and flip that depends on the picture and v alone, so that all
    trainings share it.

    Args:
        folder: of the cache; encoders share it.
    """

    def __init__(self, folder: Path, encoder: ImageEncoder):
        self._shards = _Shards(folder / encoder.fingerprint, encoder.dimensions)
        self._encoder = encoder

    def features(
        self,
        paths: Sequence[Path],
        views: Sequence[int],
        *,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """The features of pictures, from the cache as far as they are there.

        What is new is written every :data:`SHARD` pictures and when the run ends in any way but a kill, so that the
        next run goes on from there.

        Args:
            views: for each picture, the number of its random views.
            on_picture: called with the pictures done and the pictures in all.

        Returns:
            ``[N, 1 + max(views), D]`` float16, where the rows of views that a picture has not are 0; and for each
            picture what kept it from being read, mostly nothing.

        Raises:
            GalleryError: no picture could be read.
            OSError: the cache cannot be written.
        """
        keys, problems = [], []
        for path in paths:
            key, problem = _key(path)
            keys.append(key)
            problems.append(problem)
        known = self._shards.read(set(keys))
        found = np.zeros((len(paths), 1 + max(views, default=0), self._encoder.dimensions), np.float16)
        new: dict[str, np.ndarray] = {}
        try:
            for i, (path, key, count) in enumerate(zip(paths, keys, views, strict=True)):
                if not problems[i] and len(known.get(key, ())) < 1 + count:
                    try:
                        known[key] = new[key] = self._look(path, key, count, known.get(key))
                    except (InvalidInput, OSError) as error:
                        problems[i] = str(error)
                        log.warning("left out: %s: %s", path, error)
                if not problems[i]:
                    found[i, : 1 + count] = known[key][: 1 + count]
                if len(new) >= SHARD:
                    self._shards.write(new)
                if on_picture is not None:
                    on_picture(i + 1, len(paths))
        finally:
            self._shards.write(new)
        if all(problems):
            raise GalleryError(f"none of the {len(paths)} pictures can be read; the first: {problems[0]}")
        return found, problems

    def _look(self, path: Path, key: str, count: int, known: np.ndarray | None) -> np.ndarray:
        """The views 0 to ``count`` of a picture, ``[1 + count, D]``, those in ``known`` not computed anew."""
        picture = decode(path)
        rows = [] if known is None else list(known)
        for view in range(len(rows), 1 + count):
            augment = np.random.default_rng((int(key[:16], 16), view))
            found = self._encoder.embed([picture], augment=augment) if view else self._encoder.embed([picture])
            rows.append(found[0].astype(np.float16))
        return np.stack(rows)


class CachedSentences:
    """A sentence encoder whose vectors are kept on disk.

    Attributes:
        name: of the encoder, for humans.
        fingerprint, dimensions: of the encoder.
    """

    def __init__(
        self,
        encoder: SentenceEncoding,
        folder: Path,
        *,
        name: str,
        on_text: Callable[[int, int], None] | None = None,
    ):
        self._encoder, self._on_text = encoder, on_text
        self.name, self.fingerprint = name, encoder.fingerprint
        self.dimensions = encoder.encode([""]).shape[1]
        self._shards = _Shards(folder / encoder.fingerprint, self.dimensions)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """``[N, D]`` float32, each of length 1; from the cache as far as they are there."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        known = self._shards.read(set(keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        new: dict[str, np.ndarray] = {}
        try:
            for start in range(0, len(missing), SHARD):
                some = dict(list(missing.items())[start : start + SHARD])
                new |= zip(some, self._encoder.encode(list(some.values()))[:, None].astype(np.float32), strict=True)
                if self._on_text is not None:
                    self._on_text(start + len(some), len(missing))
                known |= new
                if len(new) >= 16 * SHARD:
                    self._shards.write(new)
        finally:
            self._shards.write(new)
        return np.concatenate([known[key] for key in keys]) if keys else np.empty((0, self.dimensions), np.float32)


class _Shards:
    """Vectors on disk: safetensors files that hold some rows for each key.

    Args:
        folder: of one encoder's files.
        dimensions: of its vectors.
    """

    def __init__(self, folder: Path, dimensions: int):
        self._folder, self._dimensions = folder, dimensions

    def read(self, wanted: set[str]) -> dict[str, np.ndarray]:
        """The rows of the wanted keys, the most that a file has; files that cannot be read are passed over."""
        known: dict[str, np.ndarray] = {}
        for file in sorted(self._folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="np") as shard:
                    counts = json.loads((shard.metadata() or {})["rows"])
                    rows = shard.get_tensor("vectors")
                if rows.shape != (sum(counts.values()), self._dimensions):
                    raise ValueError(f"vectors of shape {rows.shape}")
            except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
                log.warning("not used of the cache: %s: %s", file, error)
                continue
            start = 0
            for key, count in counts.items():
                if key in wanted and count > len(known.get(key, ())):
                    known[key] = rows[start : start + count].copy()
                start += count
        return known

    def write(self, new: dict[str, np.ndarray]) -> None:
        """Write the rows of some keys to a file of their own, and forget them."""
        if not new:
            return
        counts = json.dumps({key: len(rows) for key, rows in new.items()})
        # Named after what is in it, so that two runs at once do not overwrite each other's.
        name = hashlib.sha256(counts.encode()).hexdigest()[:20]
        self._folder.mkdir(parents=True, exist_ok=True)
        data = save({"vectors": np.concatenate(list(new.values()))}, {"rows": counts})
        write_atomically(self._folder / f"{name}.safetensors", data)
        new.clear()


def _key(path: Path) -> tuple[str, str]:
    """SHA-256 of a file and an empty text, or what keeps it from being read."""
    try:
        return sha256(path), ""
    except OSError as error:
        return "", str(error)
