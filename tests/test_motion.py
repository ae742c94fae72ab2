"""Motion is found, what was hidden is known, flicker is measured, and steadying lowers it without ghosts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scenes import strokes

from shared.motion import LEAST_FOLLOWED, Steadier, flicker, followed, optical_flow, visible, warp

STILL = np.zeros((96, 128, 2), np.float32)
ALL = np.ones((96, 128), bool)


def picture(seed: int = 0, width: int = 128, height: int = 96) -> np.ndarray:
    return np.asarray(strokes(width, height, seed))


def noisy(of: np.ndarray, seed: int, deviation: float = 6.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, of.shape)
    return np.rint(np.clip(of + noise, 0, 255)).astype(np.uint8)


def mean_flicker(film: list[np.ndarray]) -> float:
    return float(np.mean([flicker(a, b, STILL, ALL) for a, b in pairwise(film)]))


def test_a_shift_is_found_and_undone() -> None:
    wide = picture(width=160)
    before, after = wide[:, 20:148], wide[:, 17:145]  # everything moves three pixels to the right
    flow = optical_flow(before, after)
    assert np.median(flow, axis=(0, 1)) == pytest.approx([-3, 0], abs=0.3)
    inner = np.s_[8:-8, 8:-8]
    assert np.abs(warp(before, flow) - after)[inner].mean() < 0.2 * np.abs(before.astype(float) - after)[inner].mean()


def test_what_comes_in_at_the_border_was_not_visible() -> None:
    flow = STILL + np.array([-10, 0], np.float32)
    seen = visible(flow, -flow)
    assert not seen[:, :10].any() and seen[:, 10:].all()
    assert not visible(flow, STILL).any()  # there and back do not meet


def test_flicker_is_the_difference_along_the_flow_where_it_is_seen() -> None:
    before = picture()
    assert flicker(before, before, STILL, ALL) == 0
    after = before.astype(np.float32)
    after[:, :64] += 8
    assert flicker(before, after, STILL, ALL) == pytest.approx(4)
    right = ALL.copy()
    right[:, :64] = False
    assert flicker(before, after, STILL, right) == 0
    assert flicker(before, after, STILL, ~ALL) == 0
    moved = np.roll(before, 5, axis=1)
    assert flicker(before, moved, STILL + np.array([-5, 0], np.float32), np.arange(128) >= ALL * 5) < 1e-3


def test_noise_on_a_still_film_flickers_less_the_steadier_and_its_strokes_stay() -> None:
    content, painted = picture(1), picture(2)
    films = {
        steady: [
            steadier(noisy(content, at), noisy(painted, 100 + at, 20))
            for steadier in [Steadier(steady)]
            for at in range(8)
        ]
        for steady in (0.0, 0.5, 0.8)
    }
    none, half, most = (mean_flicker(film[1:]) for film in films.values())
    assert most < 0.75 * half < 0.75 * 0.75 * none
    # Not by blurring: it comes nearer to the painting without noise.
    errors = [np.abs(film[-1].astype(float) - painted).mean() for film in films.values()]
    assert errors[2] < errors[1] < errors[0]


def test_a_cut_is_left_as_sharp_as_it_was() -> None:
    steadier = Steadier(0.9)
    for at in range(3):
        steadier(noisy(picture(1), at), picture(2))
    after = picture(4)
    assert (steadier(picture(3), after) == after).all()


def test_something_that_moves_leaves_no_ghost() -> None:
    ground, steadier = picture(5), Steadier(0.9)
    film = []
    for at in range(8):
        content = ground.copy()
        content[30:60, 20 + 5 * at : 50 + 5 * at] = (250, 240, 230)
        film.append((255 - content, steadier(content, 255 - content)))
    uncovered = np.s_[34:56, 20:46]  # where it was first, and is no longer
    own, steadied = (each[uncovered].astype(float) for each in film[-1])
    assert np.abs(own - steadied).mean() < 0.1 * np.abs(film[0][0][uncovered] - own).mean()


def test_a_painted_tone_that_changes_while_the_film_stands_still_changes_at_once() -> None:
    content, steadier = picture(6), Steadier(0.9)
    painted = np.full_like(content, 100)
    steadier(content, painted)
    assert np.abs(steadier(content, painted + 60).astype(int) - 160).max() <= 1
    # and a small one slowly
    assert np.abs(steadier(content, painted + 64).astype(int) - 160).max() <= 2


def test_another_scene_is_not_followed() -> None:
    _, trusted = followed(picture(1), picture(7))
    assert (trusted > 0.5).mean() < LEAST_FOLLOWED
    _, trusted = followed(picture(1), noisy(picture(1), 0))
    assert (trusted > 0.5).mean() > 0.95


def test_what_came_in_is_not_trusted_at_all() -> None:
    wide = picture(width=160)
    _, trusted = followed(wide[:, 20:148], wide[:, 10:138])
    assert (trusted[:, :5] == 0).mean() > 0.8
    assert trusted[16:-16, 24:-16].mean() > 0.8
