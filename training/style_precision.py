"""How well an embedding finds pictures of the same style: precision among the nearest, by style label.

Pictures of one artist resemble one another beyond their style, and in many collections the label is the artist's: with
the artist's own pictures among the candidates, precision says how well artists are told apart. It is therefore measured
with and without them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shared.errors import InvalidInput
from shared.galleries import Gallery, Picture
from shared.image_encoders import BATCH, ImageEncoder, JoinedEncoder, join
from shared.images import decode
from training import bootstrap

log = logging.getLogger(__name__)

ROUNDS = 2000
"""Bootstrap samples behind an interval."""


@dataclass(frozen=True)
class Labels:
    """What is known of some pictures; an artist who is not known is nobody else's.

    Attributes:
        styles, artists: one of each a picture.
    """

    styles: tuple[str, ...]
    artists: tuple[str, ...]

    @cached_property
    def owners(self) -> np.ndarray:
        """``[N]``: a number for each artist."""
        names = [artist.casefold() or f"\0{i}" for i, artist in enumerate(self.artists)]
        return np.unique(names, return_inverse=True)[1]

    def candidates(self, *, other_artists: bool) -> np.ndarray:
        """``[N, N]`` bool: which pictures may be found for which (rows); none for itself."""
        same = self.owners[:, None] == self.owners[None] if other_artists else np.eye(len(self.styles), dtype=bool)
        return ~same

    def relevant(self) -> np.ndarray:
        """``[N, N]`` bool: which pairs have one style."""
        styles = np.array(self.styles)
        return styles[:, None] == styles[None]


@dataclass(frozen=True)
class StylePrecision:
    """Precision at k, the mean over pictures that have at least one candidate of their style.

    Attributes:
        precision: share of the k nearest candidates that have the picture's style.
        low, high: bounds of the 95 % interval: bootstrap over artists, since an artist's pictures are found alike.
        chance: expected of candidates drawn at random.
        ceiling: of the best possible ranking: some styles have fewer than k candidates.
        pictures: how many were looked for.
        by_style: (precision, pictures) of each style, the largest first.
        values: the precision of each picture; NaN where it has no candidate of its style.
    """

    precision: float
    low: float
    high: float
    chance: float
    ceiling: float
    pictures: int
    by_style: Mapping[str, tuple[float, int]]
    values: np.ndarray


def style_precision(
    embeddings: np.ndarray, labels: Labels, *, k: int = 5, other_artists: bool = False, rounds: int = ROUNDS
) -> StylePrecision | None:
    """Precision at ``k`` of the nearest by cosine; None where no picture has a candidate of its style.

    Args:
        embeddings: ``[N, K]``, rows of length 1.
        other_artists: leave out the pictures of the same artist.
        rounds: bootstrap samples.
    """
    candidates, relevant = labels.candidates(other_artists=other_artists), labels.relevant()
    similarity = np.where(candidates, embeddings @ embeddings.T, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    rows = np.arange(len(embeddings))[:, None]
    counted, found = candidates.sum(1), (candidates & relevant).sum(1)
    # Fewer than k candidates: what is not there is not found.
    hits = (relevant[rows, nearest] & candidates[rows, nearest]).sum(1)
    asked = found > 0
    if not asked.any():
        return None
    values = np.where(asked, hits / k, np.nan)
    low, high = interval(values, labels, rounds=rounds)
    sizes = Counter(style for style, has in zip(labels.styles, asked, strict=True) if has)
    styles = np.array(labels.styles)
    return StylePrecision(
        precision=float(values[asked].mean()),
        low=low,
        high=high,
        chance=float((found[asked] / counted[asked]).mean()),
        ceiling=float((np.minimum(found[asked], k) / k).mean()),
        pictures=int(asked.sum()),
        by_style={style: (float(values[asked & (styles == style)].mean()), n) for style, n in sizes.most_common()},
        values=values,
    )


def interval(values: np.ndarray, labels: Labels, *, rounds: int = ROUNDS) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` (NaN: not counted), by drawing artists with replacement (seed 0)."""
    counted = ~np.isnan(values)
    totals = np.bincount(labels.owners, np.where(counted, values, 0))
    counts = np.bincount(labels.owners, counted)
    totals, counts = totals[counts > 0], counts[counts > 0]
    return bootstrap.interval(lambda drawn: totals[drawn].sum(1) / counts[drawn].sum(1), len(counts), samples=rounds)


def difference(
    first: StylePrecision, second: StylePrecision, labels: Labels, *, rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """By how much ``second`` is more precise than ``first`` on the same pictures, and the bounds of its interval."""
    values = second.values - first.values
    return float(np.nanmean(values)), *interval(values, labels, rounds=rounds)


# --- pictures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedded:
    """The labelled pictures of a gallery in the spaces of some encoders.

    Attributes:
        labels: of the pictures that could be read.
        embeddings: ``[N, K]`` in the encoders' order.
        seconds: for one picture in the mean, decoding not counted; in the encoders' order.
        issues: pictures left out, and why.
    """

    labels: Labels
    embeddings: tuple[np.ndarray, ...]
    seconds: tuple[float, ...]
    issues: tuple[str, ...]


def labelled(gallery: Gallery) -> tuple[Picture, ...]:
    """The pictures of ``gallery`` whose style is known.

    Raises:
        InvalidInput: fewer than two styles have two pictures, so nothing could be found or mistaken.
    """
    pictures = tuple(picture for picture in gallery.pictures if picture.style)
    usable = sum(count > 1 for count in Counter(picture.style for picture in pictures).values())
    if usable < 2:
        raise InvalidInput(
            f"{usable} styles of gallery '{gallery.name}' have two pictures or more, expected at least 2 such styles.",
            hint="Give a folder in WikiArt's layout, Style/artist_title.jpg, or name styles in metadata.csv.",
            field="gallery",
        )
    return pictures


def embed_pictures(
    pictures: Sequence[Picture],
    encoders: Sequence[ImageEncoder],
    *,
    on_picture: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Embed ``pictures`` with every encoder; what joined encoders have in common is computed once.

    Raises:
        InvalidInput: none of the pictures can be read.
    """
    single = {part.fingerprint: part for encoder in encoders for part in _parts(encoder)}
    rows: dict[str, list[np.ndarray]] = {fingerprint: [] for fingerprint in single}
    seconds = dict.fromkeys(single, 0.0)
    kept, issues = [], []
    for start in range(0, len(pictures), BATCH):
        decoded = []
        for picture in pictures[start : start + BATCH]:
            try:
                decoded.append(decode(picture.path))
                kept.append(picture)
            except (InvalidInput, OSError) as error:
                issues.append(f"{picture.id}: {error}")
                log.warning("left out: %s: %s", picture.id, error)
        for fingerprint, encoder in single.items():
            began = time.perf_counter()
            rows[fingerprint].append(encoder.embed(decoded))
            seconds[fingerprint] += time.perf_counter() - began
        if on_picture is not None:
            on_picture(min(start + BATCH, len(pictures)), len(pictures))
    if not kept:
        raise InvalidInput(f"none of the {len(issues)} pictures can be read.", hint=issues[0], field="gallery")
    embeddings = {fingerprint: np.concatenate(parts) for fingerprint, parts in rows.items()}
    keys = [[part.fingerprint for part in _parts(encoder)] for encoder in encoders]
    return Embedded(
        Labels(tuple(picture.style for picture in kept), tuple(picture.artist for picture in kept)),
        tuple(join([embeddings[key] for key in each]) for each in keys),
        tuple(sum(seconds[key] for key in each) / len(kept) for each in keys),
        tuple(issues),
    )


def _parts(encoder: ImageEncoder) -> tuple[ImageEncoder, ...]:
    return encoder.parts if isinstance(encoder, JoinedEncoder) else (encoder,)
