"""The film of the benchmark moves as it says, and the benchmark writes what it measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scenes import hills, strokes
from typer.testing import CliRunner

from shared.motion import flicker, warp
from training import bench_command
from training.video_bench import MovingPictures


@pytest.fixture(scope="module")
def film() -> MovingPictures:
    return MovingPictures.of([hills(200, 150), strokes(80, 60)], 128, 8, 0.0)


def test_the_film_moves_as_it_says(film) -> None:
    assert film.frame(0).shape == (72, 128, 3)
    for at in (1, 7):
        before, after, (flow, seen) = film.frame(at - 1), film.frame(at), film.motion(at)
        assert 0.7 < seen.mean() < 1
        moved = flicker(before, after, flow, seen)
        assert moved < 0.5 * flicker(before, after, np.zeros_like(flow), seen)
        assert moved < 3
        difference = np.abs(after - warp(before, flow)).mean(axis=-1)
        assert difference[~seen].mean() > 2 * moved


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    film = MovingPictures.of([grey, grey], 64, 8, 4.0)
    assert film.frame(3).std() == pytest.approx(4, rel=0.05)
    assert (film.frame(3) == film.frame(3)).all() and (film.frame(3) != film.frame(4)).any()


def test_the_benchmark_writes_flicker_and_speed(tmp_path) -> None:
    options = ["--size", "96", "--frames", "8", "--keep", tmp_path / "films", "--json", tmp_path / "video.json"]
    result = CliRunner().invoke(bench_command.app, ["video", *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "video.json").read_text())
    plain, steadied = written["costs"]
    assert plain["size"] == [96, 54] and (plain["steady"], plain["sharpness"], plain["ghost"]) == (0, 1, 0)
    assert steadied["flicker"] < 0.7 * plain["flicker"]
    assert plain["per_second"] > 0 and steadied["cpu_seconds"] > 0 and written["machine"]["processor"]
    assert len(list((tmp_path / "films" / "96").iterdir())) == 3
