"""How well two sets of embeddings find each other: ranks, R@k, the median rank, and how sure the figures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import InvalidInput
from training import bootstrap

CUTOFFS = (1, 5, 10)
"""The k of the R@k that are reported, those of Garcia and Vogiatzis (2018)."""

BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class Ranks:
    """Where each query's own answer stands among all.

    Attributes:
        above: ``[N]``, answers that are strictly nearer to the query than its own.
        ties: ``[N]``, other answers that are exactly as near.
    """

    above: np.ndarray
    ties: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """``[N]``, the rank from 1 on; among equals the middle one, so it may end in a half."""
        return 1 + self.above + self.ties / 2

    def found(self, k: int) -> np.ndarray:
        """``[N]`` in [0, 1]: how likely the own answer is among the first ``k`` where equals stand in chance order.

        A model that answers every query with one and the same similarity so scores exactly what guessing scores.
        """
        return np.clip((k - self.above) / (1 + self.ties), 0, 1)


@dataclass(frozen=True)
class Figure:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def ranks_of(similarities: np.ndarray) -> Ranks:
    """The ranks of the diagonal.

    Args:
        similarities: ``[N, N]``; row i is query i, column j answer j, and answer i is its own.

    Raises:
        InvalidInput: the matrix is not square, is empty, or holds something that is no number.
    """
    if similarities.ndim != 2 or len(set(similarities.shape)) != 1 or not similarities.size:
        raise InvalidInput(f"similarities have the shape {list(similarities.shape)}, expected [N, N] with N ≥ 1.")
    if not np.isfinite(similarities).all():
        raise InvalidInput("some similarities are not numbers.", hint="Lower the learning rate.")
    own = np.diagonal(similarities)[:, None]
    return Ranks((similarities > own).sum(1), (similarities == own).sum(1) - 1)


def measure(ranks: Ranks, *, seed: int = 0) -> dict[str, Figure]:
    """``R@1``, ``R@5``, ``R@10`` (shares of the queries) and ``MR`` (the median rank), by name.

    The intervals are percentiles over :data:`BOOTSTRAP_SAMPLES` samples of the queries, see :mod:`training.bootstrap`.
    The answers stay the same, so the intervals speak of other queries to the same gallery.
    """
    columns = {f"R@{k}": ranks.found(k) for k in CUTOFFS} | {"MR": ranks.middle}
    return {name: _figure(column, np.median if name == "MR" else np.mean, seed) for name, column in columns.items()}


def measure_both(text: np.ndarray, image: np.ndarray) -> dict[str, dict[str, Figure]]:
    """The figures of both directions, ``text_to_image`` and ``image_to_text``.

    Args:
        text, image: ``[N, K]`` of unit length; row i of both belongs together.
    """
    similarities = text @ image.T
    return {
        "text_to_image": measure(ranks_of(similarities)),
        "image_to_text": measure(ranks_of(similarities.T)),
    }


def score(figures: Mapping[str, Mapping[str, Figure]]) -> float:
    """One number to choose a checkpoint by: the sum of all R@k of both directions ("rsum"), higher is better."""
    return sum(direction[f"R@{k}"].value for direction in figures.values() for k in CUTOFFS)


def mean_over_runs(runs: Sequence[Mapping[str, Figure]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation (of the sample; 0 for one run) of each figure's value over several runs."""
    values = {name: np.array([run[name].value for run in runs]) for name in runs[0]}
    return {name: (float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0) for name, v in values.items()}


def _figure(column: np.ndarray, centre: Callable[..., np.ndarray], seed: int) -> Figure:
    def of_samples(drawn: np.ndarray) -> np.ndarray:
        return centre(column[drawn], axis=1)

    low, high = bootstrap.interval(of_samples, len(column), samples=BOOTSTRAP_SAMPLES, seed=seed)
    return Figure(float(centre(column)), low, high)
