"""A painted film keeps its sound, its time and its shape; what goes wrong is told, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from films import packets, stamps, write_film
from models import write_negative
from PIL import Image
from scenes import hills, strokes
from typer.testing import CliRunner

from services.cli import app
from shared import video
from shared.errors import InvalidInput
from shared.video import paint_video, read_frames

UNEVEN = [0, 1, 2, 5, 6, 7, 9, 10, 14, 15]


def pictures(count: int = 10, width: int = 96, height: int = 64) -> list[np.ndarray]:
    wide = np.asarray(strokes(width + 2 * count, height))
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + width]) for i in range(count)]


def same(picture: Image.Image) -> Image.Image:
    return picture


@pytest.fixture(scope="module")
def negative(tmp_path_factory) -> Path:
    return write_negative(tmp_path_factory.mktemp("models"), "negative")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", pictures())


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["stylize", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(
    ("suffix", "sound", "uneven"), [(".mp4", "aac", False), (".mkv", "aac", True), (".webm", "libopus", True)]
)
def test_sound_and_time_stamps_are_kept(tmp_path, negative, suffix, sound, uneven) -> None:
    times = UNEVEN if uneven else None
    source = write_film(
        tmp_path / f"film{'.mp4' if suffix == '.mp4' else '.mkv'}", pictures(), stamps=times, sound=sound
    )
    out = tmp_path / f"out{suffix}"
    code, told, err = run(source, "--style", negative, "-o", out, "--steady", 0, "--json")
    assert code == 0, err
    facts = json.loads(told)
    assert (facts["frames"], facts["size"], facts["steady"]) == (10, "96×64", 0)
    assert packets(out) == packets(source) and len(packets(out)) > 10
    assert stamps(out) == stamps(source) and len(stamps(out)) == 10
    for painted, own in zip(read_frames(out), pictures(), strict=True):
        assert (
            np.abs(painted.astype(int) + own - 255).mean() < 20
        )  # what the codecs lose, mostly of colour's resolution
    assert {path.name for path in tmp_path.iterdir()} == {source.name, out.name}


def test_the_recipe_and_the_title_stand_in_the_file(tmp_path, film, negative) -> None:
    out = tmp_path / "out.mp4"
    assert run(film, "--style", negative, "-o", out, "--strength", 0.5, "--steady", 0.25)[0] == 0
    with av.open(str(out)) as made:
        assert "Style: negative" in made.metadata["comment"] and "Strength: 0.5" in made.metadata["comment"]
        assert "Steady: 0.25" in made.metadata["comment"]


def test_strength_0_gives_the_film_back_in_its_colours(tmp_path, film, negative) -> None:
    out = tmp_path / "out.mp4"
    assert run(film, "--style", negative, "-o", out, "--strength", 0, "--steady", 0)[0] == 0
    for painted, own in zip(read_frames(out), read_frames(film), strict=True):
        assert np.abs(painted.mean(axis=(0, 1)) - own.mean(axis=(0, 1))).max() < 2
        assert np.abs(painted.astype(int) - own).mean() < 4


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_film_that_is_to_be_turned_is_turned(tmp_path, rotation) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, 48:] = 255  # at the top right
    source = write_film(tmp_path / "film.mp4", [picture] * 3, rotation=rotation, aspect=Fraction(4, 3), sound=None)
    seen = []
    made = paint_video(source, tmp_path / "out.mp4", lambda frame: seen.append(frame.copy()) or frame, steady=0)
    upright = np.rot90(picture, rotation // 90)
    with av.open(str(tmp_path / "out.mp4")) as film:
        (stream,) = film.streams
        assert (stream.height, stream.width) == upright.shape[:2] == made.size[::-1]
        assert stream.sample_aspect_ratio == (Fraction(4, 3) if rotation == 180 else Fraction(3, 4))
        frame = next(film.decode(stream))
        assert frame.rotation == 0
    for turned in (np.asarray(seen[0]), next(read_frames(tmp_path / "out.mp4"))):
        assert np.abs(turned.astype(int) - upright).mean() < 4


def test_size_is_the_longer_sides_and_even(tmp_path, film) -> None:
    made = paint_video(film, tmp_path / "out.mkv", same, size=75)
    assert made.size == (76, 50)
    assert next(read_frames(tmp_path / "out.mkv")).shape == (50, 76, 3)


def test_every_frame_is_told(tmp_path, film) -> None:
    told = []
    paint_video(film, tmp_path / "out.mp4", same, on_frame=lambda done, total: told.append((done, total)))
    assert told == [(i, 10) for i in range(1, 11)]


def test_steadying_lowers_the_flicker_of_a_noisy_film(tmp_path, film) -> None:
    rng = np.random.default_rng(0)

    def flickering(picture: Image.Image) -> Image.Image:
        noise = rng.normal(0, 25, (picture.height, picture.width, 3))
        return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))

    still = write_film(tmp_path / "still.mp4", [np.asarray(hills(96, 64))] * 10)
    changes = []
    for steady in (0.0, 0.8):
        paint_video(still, tmp_path / "out.mp4", flickering, steady=steady)
        frames = [frame.astype(float) for frame in read_frames(tmp_path / "out.mp4")]
        changes.append(np.mean([np.abs(b - a).mean() for a, b in pairwise(frames[1:])]))
    assert changes[1] < 0.5 * changes[0]


# What goes wrong


def stopped(paint, film: Path, out: Path, error: type[BaseException], match: str | None = None) -> None:
    """Painting ends in the error, an older file stays, nothing else is left, and no thread goes on."""
    out.write_bytes(b"an older film")
    threads = set(threading.enumerate())
    with pytest.raises(error, match=match):
        paint_video(film, out, paint)
    assert out.read_bytes() == b"an older film"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert set(threading.enumerate()) <= threads


def test_ctrl_c_leaves_nothing_half_written(tmp_path, film) -> None:
    painted = []

    def paint(picture: Image.Image) -> Image.Image:
        painted.append(picture)
        if len(painted) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return picture

    stopped(paint, film, tmp_path / "out.mp4", KeyboardInterrupt)
    assert len(painted) < 10


def test_ctrl_c_in_the_terminal(tmp_path) -> None:
    source = write_film(tmp_path / "film.mp4", pictures(80, 320, 192), sound=None)
    command = [
        Path(sys.executable).parent / "lienzo",
        "stylize",
        source,
        "--style",
        "udnie",
        "-o",
        tmp_path / "out.mp4",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (begun := list(tmp_path.glob(".*.part"))) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert begun, f"it has not begun: {process.returncode}, {process.stderr.read() if process.returncode else ''}"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].strip() == "interrupted"
    finally:
        process.kill()
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_time_stamps_that_no_film_can_have_are_told(tmp_path, film, monkeypatch) -> None:
    real = video._encodable
    monkeypatch.setattr(video, "_encodable", lambda frame, base: real(replace(frame, pts=-frame.pts), base))
    stopped(same, film, tmp_path / "out.mp4", InvalidInput, "is damaged: Invalid argument")


def test_an_error_of_the_painter_is_told_and_leaves_nothing(tmp_path, film) -> None:
    def paint(picture: Image.Image) -> Image.Image:
        raise InvalidInput("the picture is too small.")

    stopped(paint, film, tmp_path / "out.mp4", InvalidInput, "too small")


@pytest.mark.parametrize(
    ("suffix", "share", "complaint"),
    [
        (".mkv", 0.5, "the film is cut short: it ends after [01].[0-9] s and should last 3.0 s"),
        (".mp4", 0.5, "no film that can be read, or is damaged"),
        (".mp4", 0.0, "no film that can be read, or is damaged"),
    ],
)
def test_a_damaged_film_is_told(tmp_path, suffix, share, complaint) -> None:
    source = tmp_path / "in" / f"film{suffix}"
    out = tmp_path / "out"
    source.parent.mkdir()
    out.mkdir()
    data = bytearray(write_film(source, pictures(36)).read_bytes())
    if share:
        source.write_bytes(data[: int(share * len(data))])
    else:
        data[len(data) // 5 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 5)
        source.write_bytes(data)
    stopped(same, source, out / "out.mp4", InvalidInput, complaint)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("text.mp4", "is no film that can be read"),
        ("empty.mp4", "is no film that can be read"),
        ("absent.mp4", "is not a file"),
        ("tone.mkv", "has no pictures, only sound"),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, negative, name, complaint) -> None:
    (tmp_path / "text.mp4").write_text("not a film, but words " * 50)
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "tone.mkv"), "w") as sound:
        stream = sound.add_stream("flac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = 8000, 0, Fraction(1, 8000)
        sound.mux([*stream.encode(samples), *stream.encode(None)])
    before = sorted(tmp_path.iterdir())
    assert complaint in refused(tmp_path / name, "--style", negative, "-o", tmp_path / "out.mp4")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("output", "options", "complaint"),
    [
        ("out.webm", [], "the sound is aac, which does not go into a .webm file"),
        ("out.gif", [], "ends in no kind of video that is written. End it in .mp4, .mkv, .webm."),
        ("no/out.mp4", [], "does not exist"),
        ("out.mp4", ["--engine", "optimize"], "folders and videos in a fast style are painted by auto, fast"),
        ("out.mp4", ["--again"], "--again is for a folder, but"),
        ("out.mp4", ["--size", "64", "--style", "nothing-like-it"], "there is no fast style 'nothing-like-it'"),
    ],
)
def test_what_cannot_be_written_or_painted_is_refused(tmp_path, film, negative, output, options, complaint) -> None:
    style = [] if "--style" in options else ["--style", negative]
    assert complaint in refused(film, *style, "-o", tmp_path / output, *options)
    assert list(tmp_path.iterdir()) == []


def test_steadiness_is_a_videos(tmp_path, negative) -> None:
    hills(64, 64).save(tmp_path / "photo.png")
    told = refused(tmp_path / "photo.png", "--style", negative, "-o", tmp_path / "out.png", "--steady", 0.5)
    assert "--steady is for a video, but" in told and "is a picture" in told


@pytest.mark.parametrize(("package", "name"), [("av", "av"), ("cv2", "opencv-python-headless")])
def test_a_missing_extra_is_named(tmp_path, film, negative, monkeypatch, package, name) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    told = refused(film, "--style", negative, "-o", tmp_path / "out.mp4")
    assert f"videos need the package '{name}', which is not installed. Install it: pip install 'lienzo[video]'." in told
    assert list(tmp_path.iterdir()) == []


def test_without_steadying_the_optical_flow_is_not_needed(tmp_path, film, negative, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert run(film, "--style", negative, "-o", tmp_path / "out.mp4", "--steady", 0)[0] == 0


def test_pictures_need_neither() -> None:
    code = "import sys, services.cli, shared.fast_painting; assert not {'av', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
