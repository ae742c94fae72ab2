"""Ranks, R@k and the median rank against brute force, ties included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidInput
from training.retrieval_metrics import CUTOFFS, Figure, mean_over_runs, measure, measure_both, ranks_of, score

WORKED = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.5], [0.4, 0.4, 0.4]])
"""Row 0 finds its own first, row 1 third, and row 2 cannot tell the three apart."""


def test_ranks_by_hand():
    ranks = ranks_of(WORKED)
    assert ranks.above.tolist() == [0, 2, 0]
    assert ranks.ties.tolist() == [0, 0, 2]
    assert ranks.middle.tolist() == [1, 3, 2]
    assert ranks.found(1) == pytest.approx([1, 0, 1 / 3])
    assert ranks.found(2) == pytest.approx([1, 0, 2 / 3])
    assert ranks.found(3) == pytest.approx([1, 1, 1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.integers(0, 2), min_size=n * n, max_size=n * n)))
def test_ties_are_the_mean_over_all_orders(values):
    """Among equals the figures are what an arbitrary order gives on the average."""
    n = round(len(values) ** 0.5)
    similarities = np.array(values, float).reshape(n, n)
    ranks = ranks_of(similarities)
    for query in range(n):
        places = []
        for order in itertools.permutations(range(n)):
            ordered = sorted(order, key=lambda answer: -similarities[query, answer])
            places.append(ordered.index(query) + 1)
        assert ranks.middle[query] == pytest.approx(np.mean(places))
        for k in CUTOFFS:
            assert ranks.found(k)[query] == pytest.approx(np.mean([place <= k for place in places]))


def test_a_model_that_knows_nothing_scores_chance():
    figures = measure(ranks_of(np.zeros((80, 80))))
    assert figures["R@10"].value == pytest.approx(10 / 80)
    assert figures["MR"].value == 40.5


def test_both_directions():
    text, image = np.eye(3), np.eye(3)[[0, 2, 2]]
    figures = measure_both(text, image)
    assert figures["text_to_image"]["R@1"].value == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert figures["image_to_text"]["R@1"].value == pytest.approx(2 / 3)
    assert score(figures) == pytest.approx((11 / 18 + 1 + 1) + (2 / 3 + 1 + 1))


def test_intervals_hold_the_value_and_shrink_with_more_queries():
    rng = np.random.default_rng(0)
    widths = []
    for n in (20, 200):
        figure = measure(ranks_of(rng.normal(size=(n, n)) + 2 * np.eye(n)))["R@5"]
        assert figure.low <= figure.value <= figure.high
        widths.append(figure.high - figure.low)
    assert widths[1] < widths[0] / 2


def test_the_interval_of_a_share_is_the_binomials():
    """Half of 400 queries found: 1.96 · √(0.25 / 400) to either side."""
    n = 400
    similarities = np.zeros((n, n))
    similarities[:, 0] = 1
    similarities[np.arange(n), np.arange(n)] = np.where(np.arange(n) % 2, 2, -1)
    figure = measure(ranks_of(similarities))["R@1"]
    assert figure.value == 0.5
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * (0.25 / n) ** 0.5, rel=0.1)


def test_mean_over_runs():
    runs = [{"MR": Figure(value, 0, 9)} for value in (1.0, 2.0, 6.0)]
    assert mean_over_runs(runs)["MR"] == pytest.approx((3.0, 7**0.5))
    assert mean_over_runs(runs[:1])["MR"] == (1.0, 0.0)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.zeros((0, 0)), np.zeros(4), np.full((2, 2), np.nan)])
def test_what_is_no_similarity_matrix_is_refused(wrong):
    with pytest.raises(InvalidInput):
        ranks_of(wrong)
