"""An interval says how far a figure moves from sample to sample."""

from __future__ import annotations

import numpy as np
import pytest

from training.bootstrap import interval


def of_mean(values: np.ndarray, **options: int) -> tuple[float, float]:
    return interval(lambda drawn: values[drawn].mean(axis=1), len(values), **{"samples": 2000} | options)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, 400)
    half = 1.96 * values.std() / 20
    assert of_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_what_does_not_vary_is_sure_and_a_seed_gives_one_interval():
    assert of_mean(np.full(9, 0.25)) == (0.25, 0.25)
    values = np.arange(10.0)
    assert of_mean(values, seed=1) == of_mean(values, seed=1) != of_mean(values, seed=2)


def test_each_sample_draws_as_many_as_were_measured():
    seen = []
    interval(lambda drawn: (seen.append(drawn), drawn.mean(axis=1))[1], 7, samples=50)
    assert seen[0].shape == (50, 7) and set(seen[0].ravel()) == set(range(7))
