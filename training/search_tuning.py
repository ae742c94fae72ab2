"""How well a gallery's content search finds what people accept, and the weights and threshold that serve it best."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import InvalidInput, NotFound
from shared.galleries import Gallery
from shared.hybrid_search import mean_similarity
from training import bootstrap

FOLDS = 5
STEPS = 10  # the weights of a mean are tenths
_SAMPLES = 2000

Similarities = Mapping[str, np.ndarray]
"""``[Q, N]`` by part of the search: of each query to each picture."""


@dataclass(frozen=True)
class Query:
    """A text, and the positions in the gallery of the pictures that a person accepts for it."""

    title: str
    description: str
    accepted: tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    """A mean over queries, and the 95 % interval of its bootstrap."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Refusal:
    """A threshold of similarity, the share of answerable queries above it, and of texts from elsewhere."""

    threshold: float
    answered: float
    let_through: float


def read_queries(path: Path, gallery: Gallery) -> list[Query]:
    """The queries of a JSON file: a list of ``{"title", "description", "accept": [ids]}``, or lists by name.

    Raises:
        InvalidInput: the file is something else, or accepts pictures that the gallery lacks.
    """
    position = {picture.id: i for i, picture in enumerate(gallery.pictures)}
    queries = []
    for entry in itertools.chain.from_iterable(_lists(path).values()):
        try:
            accepted = tuple(position[gallery.by_id(id).id] for id in entry["accept"])
            query = Query(str(entry["title"]), str(entry.get("description", "")), accepted)
        except (KeyError, TypeError, AttributeError, NotFound) as error:
            raise InvalidInput(
                f"'{path}': the query {str(entry)[:80]} cannot be used: {error}.",
                hint='A query is {"title": "…", "description": "…", "accept": ["id", …]}.',
                field="queries",
            ) from error
        if not accepted:
            raise InvalidInput(f"'{path}': the query '{query.title}' accepts no picture.", field="queries")
        queries.append(query)
    return queries


def read_texts(path: Path) -> dict[str, list[str]]:
    """Texts that no picture fits, by part: of a JSON list, or of lists by name.

    Raises:
        InvalidInput: the file is something else.
    """
    found = _lists(path)
    if not all(isinstance(text, str) for texts in found.values() for text in texts):
        raise InvalidInput(f"'{path}' does not hold texts only.", field="elsewhere")
    return found


def ranks(similarities: np.ndarray, queries: Sequence[Query]) -> np.ndarray:
    """The place, from 1, of the first accepted picture of each query, ``[Q]``; ties in the gallery's order."""
    order = np.argsort(-similarities, axis=1, kind="stable")
    return np.array([1 + np.isin(row, query.accepted).argmax() for row, query in zip(order, queries, strict=True)])


def measures(ranks: np.ndarray) -> dict[str, Measure]:
    """Hit@1, hit@5 and mean reciprocal rank."""
    columns = {"hit@1": ranks == 1, "hit@5": ranks <= 5, "MRR": 1 / ranks}
    return {name: Measure(float(values.mean()), *_interval(values)) for name, values in columns.items()}


def tune(similarities: Similarities, queries: Sequence[Query]) -> dict[str, float]:
    """The weights, in tenths, of the best mean reciprocal rank; among equals those nearest to equal weights."""
    names = list(similarities)

    def quality(weights: tuple[int, ...]) -> tuple[float, float]:
        mean = mean_similarity(similarities, dict(zip(names, weights, strict=True)))
        return round(float((1 / ranks(mean, queries)).mean()), 6), -float(np.var(weights))

    grid = (each for each in itertools.product(range(STEPS + 1), repeat=len(names)) if sum(each) == STEPS)
    return {name: weight / STEPS for name, weight in zip(names, max(grid, key=quality), strict=True)}


def cross_validated_ranks(similarities: Similarities, queries: Sequence[Query]) -> np.ndarray:
    """The ranks of queries that had no part in choosing the weights they are searched with, ``[Q]``.

    A query's fold is told by the SHA-256 of its text, so it does not depend on the others.
    """
    folds = np.array(
        [int(hashlib.sha256(f"{q.title}\n{q.description}".encode()).hexdigest(), 16) % FOLDS for q in queries]
    )
    found = np.zeros(len(queries), int)
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        weights = tune({name: each[outside] for name, each in similarities.items()}, [queries[i] for i in outside])
        mean = mean_similarity({name: each[inside] for name, each in similarities.items()}, weights)
        found[inside] = ranks(mean, [queries[i] for i in inside])
    return found


def calibrate(best: np.ndarray, elsewhere: np.ndarray) -> Refusal:
    """The threshold between two kinds of best similarities with the largest Youden index (Youden 1950).

    Args:
        best: of each query whose search succeeds, ``[Q]``: a refusal of these is a loss.
        elsewhere: of each text that no picture fits, ``[M]``.
    """
    candidates = np.unique(np.concatenate([best, elsewhere]))
    middles = (candidates[1:] + candidates[:-1]) / 2
    return max(
        (judge(best, elsewhere, float(each)) for each in middles), key=lambda found: found.answered - found.let_through
    )


def judge(best: np.ndarray, elsewhere: np.ndarray, threshold: float) -> Refusal:
    """What a threshold answers and lets through."""
    return Refusal(threshold, float((best >= threshold).mean()), float((elsewhere >= threshold).mean()))


def _interval(values: np.ndarray) -> tuple[float, float]:
    return bootstrap.interval(lambda drawn: values[drawn].mean(axis=1), len(values), samples=_SAMPLES)


def _lists(path: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"'{path}' cannot be read: {error}.", hint="Name a JSON file.") from error
    found = found if isinstance(found, dict) else {path.stem: found}
    if not found or not all(isinstance(each, list) and each for each in found.values()):
        raise InvalidInput(f"'{path}' holds neither a list nor lists by name.")
    return found
