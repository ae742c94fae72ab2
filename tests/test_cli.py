"""The command `lienzo`: what it does for real, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import picture_corpus as pictures
import pytest
from PIL import Image
from scenes import hills, strokes
from serving import ROOT, SCRIPTS
from typer.testing import CliRunner

from services.cli import app, parse_layers
from shared import weights
from shared.encoders import LAYERS
from shared.errors import InvalidInput
from shared.images import decode

COMMANDS = ["serve", "paint", "stylize", "optimize", "models", "weights"]


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "a photo.png"
    hills(120, 90).save(path)
    return path


@pytest.fixture
def painting(tmp_path) -> Path:
    path = tmp_path / "a painting.jpg"
    strokes(90, 90).save(path)
    return path


def lienzo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command, as a user does."""
    command = [SCRIPTS / "lienzo", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def done(*arguments: object, **environment: str) -> dict:
    """Run a command that must succeed, and read what it reports as JSON."""
    result = lienzo(*arguments, "--json", **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """Run a command in this process; it must end with code 2 and one clear line on stderr, which is returned."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "Traceback" not in line
    assert result.stdout == ""
    return line


# Help


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *(["weights", n] for n in ("fetch", "list"))])
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert "Usage" in result.stdout and result.stderr == ""
    if not command:
        assert all(name in result.stdout for name in COMMANDS)


def test_the_spellings_that_others_rely_on_are_there():
    helps = {
        name: CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
        for name in COMMANDS
    }
    for name, options in {
        "serve": ["--host", "--port", "--models", "--gallery"],
        "paint": ["TITLE", "--description", "--output", "-o", "--size", "--engine"],
        "stylize": ["PICTURE", "--style", "--output", "-o", "--size", "--strength", "--preserve-color"],
        "optimize": ["CONTENT", "STYLE", "--output", "-o", "--steps", "--size", "--seed"],
    }.items():
        assert [option for option in options if option.lower() not in helps[name].lower()] == []


def test_no_command_is_an_error_that_shows_the_help():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "paint" in result.output


# Models and weights


def test_models_lists_the_styles_and_names_the_refused(twin):
    result = lienzo("models", twin.folder)
    assert result.returncode == 0
    assert "the-twin" in result.stdout and "The Twin" in result.stdout
    assert "altered" in result.stderr and "does not match its card" in result.stderr
    cards = {card["slug"]: card for card in done("models", twin.folder)}
    assert cards["the-twin"]["cluster"]["radius"] == 0.05


def test_models_of_a_folder_that_is_none():
    assert "'/no/such/folder' does not exist" in refused("models", "/no/such/folder")


def test_weights_are_listed_and_verified(vgg19_weights):
    rows = {row["name"]: row for row in done("weights", "list")}
    assert set(rows) == set(weights.SOURCES)
    assert Path(rows["vgg19"]["path"]) == vgg19_weights
    assert all(row["licence"] and row["description"] for row in rows.values())
    result = lienzo("weights", "list")
    assert result.returncode == 0 and "vgg19" in result.stdout
    result = lienzo("weights", "verify", "vgg19")
    assert result.returncode == 0 and str(vgg19_weights) in result.stdout.replace("\n", "")
    result = lienzo("weights", "fetch", "vgg19")
    assert (result.returncode, result.stdout.strip()) == (0, str(vgg19_weights))


def test_weights_that_are_damaged_or_absent_are_said(tmp_path):
    damaged = tmp_path / "vgg19.safetensors"
    damaged.write_bytes(b"not the weights")
    assert "vgg19" in refused("weights", "fetch", "vgg19", "--from", damaged)
    assert "'resnet-9000'" in refused("weights", "fetch", "resnet-9000")
    assert "'resnet-9000'" in refused("weights", "verify", "resnet-9000")


# Stylize


def test_stylize_with_a_models_folder(fast_model, photo, tmp_path):
    out = tmp_path / "out.png"
    facts = done("stylize", photo, "--style", fast_model.folder, "-o", out, "--size", 96)
    assert (facts["style"], facts["engine"], facts["output"]) == (fast_model.card.slug, "fast", str(out))
    assert {"decode", "network", "encode"} <= set(facts["seconds"])
    painted = Image.open(out)
    assert painted.size == (96, 72)
    assert painted.text == {"Software": "Lienzo", "Style": fast_model.card.slug, "Engine": "fast"}


def test_stylize_with_a_slug_keeps_the_pictures_own_size(twin, photo, tmp_path):
    out = tmp_path / "out.webp"
    result = lienzo("stylize", photo, "--style", "the-twin", "--models", twin.folder, "-o", out)
    assert result.returncode == 0, result.stderr
    assert "the-twin" in result.stdout and str(out) in result.stdout.replace("\n", "")
    assert (Image.open(out).size, Image.open(out).format) == ((120, 90), "WEBP")


def test_strength_0_gives_the_picture_back(fast_model, photo, tmp_path):
    out = tmp_path / "out.png"
    done("stylize", photo, "--style", fast_model.folder, "-o", out, "--strength", 0)
    assert (np.asarray(Image.open(out)) == np.asarray(decode(photo))).all()


def test_stylize_with_a_picture_optimises(vgg19_weights, photo, painting, tmp_path):
    out = tmp_path / "out.jpg"
    facts = done("stylize", photo, "--style", painting, "-o", out, "--size", 80, "--steps", 3)
    assert (facts["engine"], facts["steps"]) == ("optimize", 3)
    assert Image.open(out).size == (80, 60)


# Optimize


@pytest.mark.slow
def test_optimize_paints_and_reports(vgg19_weights, photo, painting, tmp_path):
    out = tmp_path / "out.png"
    facts = done("optimize", photo, painting, "-o", out, "--size", 96, "--steps", 6)
    assert (facts["engine"], facts["steps"]) == ("optimize", 6)
    assert set(facts["losses"]) == {"content", "style", "tv", "total"}
    picture = Image.open(out)
    assert picture.size == (96, 72)
    assert picture.text["Engine"] == "optimize" and picture.text["Steps"] == "6"
    # An existing file is replaced, and everything can be set.
    more = ["--optimizer", "lbfgs", "--start", "noise", "--seed", 4, "--scales", 1, "--content-layers", "relu4_1"]
    more += ["--style-layers", "relu1_1:0.5,relu2_1:0.5", "--style-weight", 9, "--tv-weight", 0]
    again = done("optimize", photo, painting, "-o", out, "--size", 64, "--steps", 3, *more)
    assert again["steps"] == 3 and again["losses"]["tv"] == 0
    assert Image.open(out).size == (64, 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a painting.jpg", "a photo.png", "out.png"]


def test_a_seed_gives_one_picture(vgg19_weights, photo, painting, tmp_path):
    def painted(name: str, seed: int) -> np.ndarray:
        out = tmp_path / name
        options = ["--size", "64", "--steps", "1", "--start", "noise", "--seed", str(seed)]
        assert CliRunner().invoke(app, ["optimize", str(photo), str(painting), "-o", str(out), *options]).exit_code == 0
        return np.asarray(Image.open(out)).astype(int)

    first, second, third = painted("a.png", 1), painted("b.png", 1), painted("c.png", 2)
    assert np.abs(first - second).mean() < 1 < np.abs(first - third).mean()


# Paint


@pytest.mark.slow
def test_paint_does_the_main_job_without_a_server(vgg19_weights, twin, tmp_path):
    out = tmp_path / "boat.png"
    words = ["A boat trip on a sunny day", "--description", "From a boat you can see the city."]
    common = ["-o", out, "--size", 128, "--steps", 4, "--models", twin.folder]
    facts = done("paint", *words, *common, "--engine", "optimize")
    assert (facts["engine"], facts["steps"], facts["output"]) == ("optimize", 4, str(out))
    assert facts["content"].startswith("met-") and facts["style"].startswith("met-")
    assert 0 < facts["content_distance"] < 1 and 0 < facts["style_distance"] < 2
    assert max(Image.open(out).size) == 128
    assert Image.open(out).text["Content"] == facts["content"]
    chosen = ["--content-id", facts["content"], "--style-id", twin.picture_id]
    facts = done("paint", "a boat", *common, *chosen)
    assert (facts["engine"], facts["model"], facts["style"]) == ("fast", "the-twin", twin.picture_id)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["xyzzy qwrtp"], "No picture fits the words xyzzy, qwrtp."),
        ([" "], "title, description and content_id are all empty"),
        (["boat", "--engine", "warp"], "engine: Input should be 'auto', 'fast' or 'optimize'."),
        (["boat", "--content-id", "../../etc/passwd"], "content_id: "),
        (["boat", "--content-id", "met-436948"], "has no picture 'met-436948'"),
        (["boat", "--style-id", "no-such-style"], "there is no style 'no-such-style'"),
        (["boat", "--steps", "0"], "steps: "),
        (["boat", "--gallery", "/no/such/folder"], "There is no gallery folder /no/such/folder"),
        (["boat", "--models", "/no/such/folder"], "'/no/such/folder' is not a folder."),
        (["boat", "--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_paint_refuses_in_one_line(vgg19_weights, tmp_path, arguments, complaint):
    # In a process of its own: the options become environment variables.
    result = lienzo("paint", *arguments, "-o", tmp_path / "out.png", "--size", 64)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and complaint in line
    assert list(tmp_path.iterdir()) == []


# Refusals


@pytest.mark.parametrize("command", ["paint", "stylize", "optimize"])
@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("out.gif", ".png, .jpg, .jpeg, .webp"),
        ("out", ".png, .jpg, .jpeg, .webp"),
        ("no/such/folder/out.png", "does not exist"),
        ("folder.png", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, command, output, complaint):
    (tmp_path / "folder.png").mkdir()
    # Nothing of this exists: whoever looked at it before the output would complain of it.
    arguments = {
        "paint": ["xyzzy qwrtp", "--models", "/no/such/folder"],
        "stylize": ["/no/such/picture.jpg", "--style", "no-such-style"],
        "optimize": ["/no/such/picture.jpg", "/no/such/style.jpg"],
    }[command]
    assert complaint in refused(command, *arguments, "-o", tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--style-layers", "relu9_9"], ", ".join(LAYERS)),
        (["--content-layers", "relu4_2:much"], "relu4_2:1"),
        (["--content-layers", "relu4_2:-1"], "relu4_2 is -1"),
        (["--optimizer", "sgd"], "adam, lbfgs"),
        (["--start", "nothing"], "content, style, noise, grey"),
        (["--steps", "0"], "steps is 0"),
        (["--scales", "9"], "scales is 9"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--style-weight", "-1"], "style_weight is -1"),
        (["--device", "tpu"], "auto, cpu, cuda"),
    ],
)
def test_optimize_names_what_it_would_take(vgg19_weights, photo, painting, tmp_path, options, complaint):
    assert complaint in refused("optimize", photo, painting, "-o", tmp_path / "out.png", *options)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("name", ["text", "empty", "png-1x1", "png-30000x30000", "jpeg-half"])
def test_a_picture_that_is_none_is_refused_and_nothing_is_left(vgg19_weights, fast_model, painting, tmp_path, name):
    bad, out = tmp_path / "bad.jpg", tmp_path / "out.png"
    bad.write_bytes(pictures.hostile()[name])
    before = sorted(tmp_path.iterdir())
    refused("stylize", bad, "--style", fast_model.folder, "-o", out)
    refused("optimize", bad, painting, "-o", out, "--size", 64)
    refused("optimize", painting, bad, "-o", out, "--size", 64)
    assert sorted(tmp_path.iterdir()) == before


def test_an_older_picture_survives_a_refusal(fast_model, tmp_path):
    out = tmp_path / "out.png"
    out.write_bytes(b"an older picture")
    refused("stylize", tmp_path / "nothing.jpg", "--style", fast_model.folder, "-o", out)
    assert out.read_bytes() == b"an older picture"


def test_a_file_that_does_not_exist_is_named(fast_model, photo, tmp_path):
    missing, out = tmp_path / "missing.jpg", tmp_path / "out.png"
    assert f"'{missing}'" in refused("stylize", missing, "--style", fast_model.folder, "-o", out)
    assert f"'{missing}'" in refused("optimize", missing, photo, "-o", out)
    assert f"'{missing}'" in refused("optimize", photo, missing, "-o", out)
    assert f"'{tmp_path}'" in refused("optimize", photo, tmp_path, "-o", out)


def test_a_style_that_does_not_exist_is_named_with_those_that_do(twin, photo, tmp_path):
    line = refused("stylize", photo, "--style", "no-such-style", "--models", twin.folder, "-o", tmp_path / "out.png")
    assert "'no-such-style'" in line and "the-twin" in line
    line = refused("stylize", photo, "--style", tmp_path / "missing.jpg", "-o", tmp_path / "out.png")
    assert "missing.jpg' is no file, no folder, and no slug of a style." in line


def test_a_models_folder_that_does_not_match_its_card_is_refused(twin, photo, tmp_path):
    line = refused("stylize", photo, "--style", twin.folder / "altered", "-o", tmp_path / "out.png")
    assert "does not match its card" in line
    assert "has no model.onnx" in refused("stylize", photo, "--style", tmp_path, "-o", tmp_path / "out.png")


@pytest.mark.parametrize(
    "arguments",
    [
        ["stylize", "a.png", "--style", "b", "-o", "c.png", "--size", "63"],
        ["stylize", "a.png", "--style", "b", "-o", "c.png", "--strength", "1.5"],
        ["stylize", "a.png", "-o", "c.png"],
        ["optimize", "a.png", "-o", "c.png"],
        ["optimize", "a.png", "b.png", "-o", "c.png", "--steps", "many"],
        ["paint", "-o", "c.png"],
        ["paint", "boat"],
        ["serve", "--port", "70000"],
        ["draw"],
    ],
)
def test_usage_errors_end_with_code_2(arguments):
    result = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1"})
    assert result.exit_code == 2
    assert result.stdout == "" and "Usage" in result.stderr


def test_layers_are_read_with_and_without_weights():
    assert parse_layers("relu4_2") == {"relu4_2": 1}
    assert parse_layers("relu1_1, relu2_1,") == {"relu1_1": 0.5, "relu2_1": 0.5}
    assert parse_layers("relu1_1:0.2,relu2_1:3") == {"relu1_1": 0.2, "relu2_1": 3}
    with pytest.raises(InvalidInput, match="no list of layers"):
        parse_layers("relu1_1:0.2:3")
