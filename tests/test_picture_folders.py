"""A folder is painted whole, taken up where it was left, and what cannot be read is named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from models import write_negative
from PIL import Image
from scenes import hills, write_hills
from typer.testing import CliRunner

from services.cli import app
from shared.errors import InvalidInput
from shared.images import encode, read_metadata
from shared.picture_folders import paint_folder


@pytest.fixture(scope="module")
def negative(tmp_path_factory) -> Path:
    return write_negative(tmp_path_factory.mktemp("models"), "negative")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, one of them in a sub-folder and one of a kind that is not written; a text; a hidden picture."""
    folder = tmp_path / "in"
    write_hills(folder, 1, width=48, height=40)
    (folder / "sub").mkdir()
    hills(40, 48, seed=5).save(folder / "sub" / "tall.JPG", "JPEG")
    hills(48, 40, seed=6).save(folder / "scan.tif")
    hills(48, 40, seed=7).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def stylize(folder: Path, negative: Path, *options: object, code: int = 0) -> tuple[dict, str]:
    arguments = ["stylize", folder, "--style", negative, "-o", folder.parent / "out", "--json", *options]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout), result.stderr


def files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_every_picture_is_painted_in_the_same_layout(folder, negative) -> None:
    facts, _ = stylize(folder, negative)
    assert (facts["painted"], facts["skipped"], facts["failed"]) == (3, 0, {})
    out = folder.parent / "out"
    assert set(files(out)) == {"000.png", "scan.tif.png", "sub/tall.JPG"}
    painted, own = (np.asarray(Image.open(each / "000.png")).astype(int) for each in (out, folder))
    assert np.abs(painted + own - 255).max() <= 2
    assert (Image.open(out / "sub/tall.JPG").format, Image.open(out / "sub/tall.JPG").size) == ("JPEG", (40, 48))
    told = read_metadata(out / "sub/tall.JPG")
    assert told["Source"] == hashlib.sha256((folder / "sub/tall.JPG").read_bytes()).hexdigest()
    assert (told["Style"], told["Engine"], told["Size"]) == ("negative", "fast", "own")


def test_only_what_is_new_or_changed_is_painted_again(folder, negative) -> None:
    stylize(folder, negative)
    out = folder.parent / "out"
    before = files(out)
    (out / "000.png").unlink()
    hills(40, 48, seed=8).save(folder / "sub" / "tall.JPG", "JPEG")
    facts, _ = stylize(folder, negative)
    assert (facts["painted"], facts["skipped"]) == (2, 1)
    after = files(out)
    assert {name for name in after if after[name] == before.get(name)} == {"scan.tif.png"}
    # Other settings make other paintings; the same once more make none, unless they are asked for.
    assert [
        stylize(folder, negative, *options)[0]["painted"]
        for options in (["--strength", 0.5], ["--strength", 0.5], ["--strength", 0.5, "--again"], ["--size", 64])
    ] == [3, 0, 3, 3]
    assert Image.open(out / "sub/tall.JPG").size == (53, 64)


def test_a_painting_that_is_damaged_or_somebody_elses_is_painted_again(folder, negative) -> None:
    stylize(folder, negative)
    out = folder.parent / "out"
    (out / "000.png").write_bytes(b"\x89PNG cut short")
    hills(48, 40).save(out / "scan.tif.png")
    facts, _ = stylize(folder, negative)
    assert (facts["painted"], facts["skipped"]) == (2, 1)


def test_what_cannot_be_painted_is_named_and_the_rest_works(folder, negative) -> None:
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:200])
    (folder / "empty.jpg").touch()
    hills(20, 20).save(folder / "small.png")
    facts, told = stylize(folder, negative, code=1)
    assert facts["painted"] == 3
    assert set(facts["failed"]) == {"cut.png", "empty.jpg", "small.png"}
    assert "not painted: cut.png: The PNG picture is cut short" in told
    assert "not painted: small.png: the picture is 20×20 pixels" in told
    assert set(files(folder.parent / "out")) == {"000.png", "scan.tif.png", "sub/tall.JPG"}


@pytest.mark.parametrize("output", ["in", "file.png"])
def test_an_output_that_cannot_be_is_refused(folder, negative, output) -> None:
    (folder.parent / "file.png").touch()
    with pytest.raises(InvalidInput, match=r"is the folder that is painted|is a file"):
        paint_folder(folder, folder.parent / output, lambda picture: picture, recipe={})


def test_a_folder_without_pictures_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidInput, match="there is no picture in"):
        paint_folder(tmp_path, tmp_path / "out", lambda picture: picture, recipe={})


def test_paintings_inside_the_folder_are_not_painted(folder) -> None:
    for _ in range(2):
        paint_folder(folder, folder / "painted", lambda picture: picture, recipe={})
    assert not (folder / "painted" / "painted").exists()


def test_what_was_painted_before_an_interruption_is_kept(folder) -> None:
    def paint(picture: Image.Image) -> Image.Image:
        if picture.width < picture.height:  # the last one
            os.kill(os.getpid(), 2)
        return picture

    out = folder.parent / "out"
    with pytest.raises(KeyboardInterrupt):
        paint_folder(folder, out, paint, recipe={"Style": "own"})
    whole = set(files(out))
    assert whole <= {"000.png", "scan.tif.png", "sub/tall.JPG"}, "something half-written"
    assert paint_folder(folder, out, lambda picture: picture, recipe={"Style": "own"}).skipped == len(whole)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_metadata_is_read_as_it_was_written(tmp_path, format) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encode(hills(32, 32), format, metadata={"Style": "gréat", "Size": "1"}))
    assert read_metadata(path) == {"Style": "gréat", "Size": "1"}
    path.write_bytes(encode(hills(32, 32), format))
    assert read_metadata(path) == {}


@pytest.mark.parametrize("engine", ["optimize", "instant"])
def test_an_engine_that_paints_no_folder_in_this_style_is_refused(folder, negative, engine) -> None:
    arguments = ["stylize", folder, "--style", negative, "-o", folder.parent / "out", "--engine", engine]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2
    assert f"engine is '{engine}', but folders and videos in a fast style are painted by auto, fast." in result.stderr
    assert not (folder.parent / "out").exists()


def test_a_folder_in_the_style_of_a_picture_is_painted_in_one_pass(vgg19_weights, folder) -> None:
    style = folder.parent / "style.png"
    hills(64, 64, seed=9).save(style)
    facts, _ = stylize(folder, style)
    assert (facts["engine"], facts["style"], facts["painted"]) == ("instant", "style.png", 3)
    assert stylize(folder, style)[0]["skipped"] == 3
    hills(64, 64, seed=10).save(style)
    assert stylize(folder, style)[0]["painted"] == 3
