"""The command `lienzo`: what it does for real, and how it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import picture_corpus as pictures
import pytest
import torch
from PIL import Image
from rich.console import Console
from scenes import hills, strokes
from serving import ROOT, SCRIPTS
from typer.testing import CliRunner

from services.cli import app
from services.optimize_command import parse_layers, parse_numbers
from shared import presets, run_record, weights
from shared.architectures import VGG19, Architecture
from shared.errors import InvalidInput
from shared.fast_models import CARD_FILE, MODEL_FILE, SHIPPED, ClusterCard, ModelLibrary
from shared.fast_painting import paint_fast
from shared.images import decode
from shared.optimizer import STARTS, optimize
from shared.presets import PRESETS
from shared.style_space import StyleSpace

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
    assert set(rows) == set(weights.ALL_SOURCES)
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


def test_stylize_with_a_picture_and_the_instant_engine(vgg19_weights, photo, painting, tmp_path):
    out = tmp_path / "out.png"
    facts = done("stylize", photo, "--style", painting, "-o", out, "--size", 80, "--engine", "instant")
    assert (facts["engine"], facts["style"], facts["provider"]) == ("instant", painting.name, "cpu")
    assert {"decode", "network", "encode"} <= set(facts["seconds"])
    assert Image.open(out).size == (80, 60)
    assert Image.open(out).text == {"Software": "Lienzo", "Engine": "instant"}


@pytest.mark.parametrize(
    ("engine", "style", "complaint"),
    [
        ("fast", None, "engine is 'fast', but a style picture is painted by auto, instant, optimize."),
        ("warp", None, "engine is 'warp', but a style picture is painted by auto, instant, optimize."),
        ("instant", "model", "engine is 'instant', but a fast style is painted by auto, fast."),
        ("instant", "no-such.jpg", "'no-such.jpg' is no file, no folder, and no slug of a style."),
    ],
)
def test_an_engine_that_cannot_paint_the_style_is_refused(
    fast_model, photo, painting, tmp_path, engine, style, complaint
):
    given = {None: painting, "model": fast_model.folder}.get(style, style)
    arguments = ["--style", given, "-o", tmp_path / "out.png", "--engine", engine]
    assert complaint in refused("stylize", photo, *arguments)
    assert not (tmp_path / "out.png").exists()


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
    more = ["--optimizer", "lbfgs", "--start", "uniform", "--seed", 4, "--scales", 1, "--content-layers", "relu4_1"]
    more += ["--style-layers", "relu1_1:0.5,relu2_1:0.5", "--style-weight", 9, "--tv-weight", 0]
    again = done("optimize", photo, painting, "-o", out, "--size", 64, "--steps", 3, *more)
    assert again["steps"] == 3 and again["losses"]["tv"] == 0
    assert Image.open(out).size == (64, 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a painting.jpg", "a photo.png", "out.png"]


def test_a_seed_gives_one_picture(vgg19_weights, photo, painting, tmp_path):
    def painted(name: str, seed: int) -> np.ndarray:
        out = tmp_path / name
        options = ["--size", "64", "--steps", "1", "--start", "uniform", "--seed", str(seed)]
        assert CliRunner().invoke(app, ["optimize", str(photo), str(painting), "-o", str(out), *options]).exit_code == 0
        return np.asarray(Image.open(out)).astype(int)

    first, second, third = painted("a.png", 1), painted("b.png", 1), painted("c.png", 2)
    assert np.abs(first - second).mean() < 1 < np.abs(first - third).mean()


@pytest.fixture(scope="session")
def decoder_weights() -> dict[str, torch.Tensor]:
    return weights.load("adain-decoder")


@pytest.fixture
def optimized(vgg19, decoder_weights, photo, painting, tmp_path, monkeypatch):
    """Runs ``lienzo optimize`` on the two pictures in this process, with weights that are read once for all tests.

    Returns what it reports; with ``exit_code``, what it says on stderr instead.
    """
    ready = {"vgg19": vgg19, "adain-decoder": decoder_weights}
    monkeypatch.setattr(weights, "load", lambda name, **_: ready[name] if name in ready else made_up(name))

    def run(*options: object, styles=(painting,), out: str = "out.png", exit_code: int = 0):
        size = () if "--size" in options else ("--size", 64)
        arguments = ["optimize", photo, *styles, "-o", tmp_path / out, *size, *options]
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == exit_code, (result.output, result.exception)
        if exit_code:
            assert result.stdout == "" and "Traceback" not in result.stderr
            return result.stderr
        return json.loads(result.stdout)

    return run


def made_up(name: str) -> dict[str, torch.Tensor]:
    """Weights that keep the size of activations about as it is; nobody trained them."""
    generator, architecture = torch.Generator().manual_seed(0), weights.architecture(name)
    return dict(_made_up(architecture, generator))


def _made_up(architecture: Architecture, generator: torch.Generator):
    for layer, (outputs, inputs, kernel) in {"input": (3, 3, 1), **architecture.convolutions}.items():
        spread = (2 / (inputs * kernel**2)) ** 0.5
        yield f"{layer}.weight", spread * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        yield f"{layer}.bias", torch.zeros(outputs)


@pytest.fixture
def saved_often(monkeypatch):
    """A checkpoint after every second evaluation."""
    monkeypatch.setitem(optimize.__kwdefaults__, "checkpoint_every", 2)


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def seen(photo: Path, size: int = 64) -> np.ndarray:
    """The content as it is painted on."""
    return np.asarray(decode(photo, longer_side=size)).astype(int)


def half(path: Path, *, left: bool) -> Path:
    """A mask: white on one side, black on the other."""
    mask = Image.new("L", (50, 40), 0 if left else 255)
    mask.paste(255 if left else 0, (0, 0, 25, 40))
    mask.save(path)
    return path


FASTER = ["--content-layers", "relu2_1", "--style-layers", "relu1_1,relu2_1"]
"""Layers that take little time, for what does not depend on them."""


def test_a_preset_paints_as_it_says(optimized, tmp_path):
    facts = optimized("--preset", "slides", "--steps", 4)
    assert (facts["preset"], facts["steps"], facts["engine"], facts["record"]) == ("slides", 4, "optimize", None)
    assert facts["losses"]["tv"] == 0 and facts["losses"]["style"] > 0
    assert {"decode", "network", "finish", "encode"} <= set(facts["seconds"])
    picture = Image.open(tmp_path / "out.png")
    assert picture.size == (64, 48)
    assert picture.text == {"Software": "Lienzo", "Engine": "optimize", "Preset": "slides", "Steps": "4"}
    # Others have a size and a shape of their own, or another optimiser.
    optimized("--preset", "thesis-adam", "--steps", 1, "--size", 96)
    assert Image.open(tmp_path / "out.png").size == (96, 96)
    assert optimized("--preset", "thesis-lbfgs", "--steps", 3, *FASTER)["steps"] == 3


def test_the_presets_are_listed_by_name():
    result = CliRunner().invoke(app, ["optimize", "--list-presets"], env={"NO_COLOR": "1"})
    assert (result.exit_code, result.stderr) == (0, "")
    for name in PRESETS:
        assert f" {name} " in result.stdout
    assert "Gatys, Ecker and Bethge 2016" in " ".join(result.stdout.replace("│", " ").split())


def test_a_preset_that_does_not_exist_names_those_that_do(optimized):
    assert ", ".join(PRESETS) in optimized("--preset", "nope", exit_code=2)


def test_several_styles_are_blended_by_weight(optimized, painting, tmp_path):
    other = tmp_path / "other.png"
    strokes(70, 80, seed=4).save(other)
    losses = {}
    for weights_ in ("2,1", "1, 2", None):
        options = [] if weights_ is None else ["--style-weights", weights_]
        losses[weights_] = optimized("--steps", 1, "--start", "content", *FASTER, *options, styles=(painting, other))[
            "losses"
        ]["style"]
    assert losses["2,1"] != pytest.approx(losses["1, 2"], rel=0.01)
    equal = optimized("--steps", 1, "--start", "content", *FASTER, "--style-weights", "5,5", styles=(painting, other))
    assert equal["losses"]["style"] == pytest.approx(losses[None], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("2", "1 style weights were given for 2 style pictures"),
        ("2,1,1", "3 style weights were given for 2 style pictures"),
        ("2,much", "'2,much' is no list of numbers"),
        ("", "0 style weights were given"),
        ("1,0", "a style weighs 0.0, expected a number above 0"),
        ("1,nan", "a style weighs nan"),
    ],
)
def test_weights_that_do_not_fit_the_styles_are_refused(optimized, painting, tmp_path, given, complaint):
    line = optimized("--style-weights", given, "--steps", 1, styles=(painting, painting), exit_code=2)
    assert complaint in line and len(line.splitlines()) == 1
    assert not (tmp_path / "out.png").exists()


def test_every_style_has_its_place(optimized, painting, tmp_path):
    """The second picture is the first in red: only the side that it is painted on may differ."""
    red = tmp_path / "red.png"
    Image.merge("RGB", [Image.new("L", (90, 90), 255), *Image.open(painting).split()[1:]]).save(red)
    left, right = half(tmp_path / "left.png", left=True), half(tmp_path / "right.png", left=False)
    options = ["--style-mask", left, "--style-mask", right, "--steps", 3, "--start", "content", *FASTER]
    options += ["--optimizer", "adam"]
    optimized(*options, styles=(painting, red))
    redness = (levels(tmp_path / "out.png") - seen(tmp_path / "a photo.png"))[..., 0]
    assert redness[:, 36:].mean() > redness[:, :28].mean() + 3
    line = optimized("--style-mask", left, "--steps", 1, styles=(painting, red), exit_code=2)
    assert line.startswith("error: 1 style masks were given for 2 style pictures.")


@pytest.mark.parametrize("more", [[], ["--preserve-color", "--strength", "0.6"]], ids=["plain", "finished"])
def test_outside_the_mask_the_content_stays_to_the_last_level(optimized, photo, tmp_path, more):
    mask = half(tmp_path / "mask.png", left=True)
    optimized("--mask", mask, "--steps", 3, *FASTER, *more)
    painted, content = levels(tmp_path / "out.png"), seen(photo)
    outside = np.asarray(Image.open(mask).resize((64, 48), Image.Resampling.BILINEAR)) == 0
    assert outside.mean() > 0.4
    np.testing.assert_array_equal(painted[outside], content[outside])
    assert np.abs(painted - content)[~outside].mean() > 1
    assert "'nothing.png' is not a file" in optimized("--mask", "nothing.png", exit_code=2)


def test_the_style_may_take_the_contents_colours(optimized, photo, tmp_path):
    """From noise, so that the colours come from the style alone."""
    options = ["--only", "style", "--steps", 6, "--optimizer", "lbfgs", *FASTER[2:]]
    optimized(*options)
    plain = levels(tmp_path / "out.png").mean((0, 1))
    optimized(*options, "--match-color")
    matched = levels(tmp_path / "out.png").mean((0, 1))
    content = seen(photo).mean((0, 1))
    assert np.abs(matched - content).mean() < np.abs(plain - content).mean()


def test_the_scale_of_the_style_is_handed_on(optimized):
    options = ["--steps", 1, "--start", "content", *FASTER]
    found = [optimized(*options, "--style-scale", scale)["losses"]["style"] for scale in (1, 1.5)]
    assert found[0] == pytest.approx(optimized(*options)["losses"]["style"], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=0.01)


def test_a_style_that_becomes_too_small_for_the_layers_is_told_with_both_sizes(optimized, tmp_path):
    for start in ("adain", "content"):
        line = optimized("--style-scale", 0.3, "--start", start, exit_code=2)
        assert len(line.splitlines()) == 1
        assert "style is 19×19 pixels, expected at least 32×32 for the layers " in line and "relu5_1" in line
    assert not (tmp_path / "out.png").exists()


def test_a_content_that_is_too_elongated_is_told_with_both_sizes(optimized, photo):
    hills(900, 30).save(photo)
    line = optimized(exit_code=2)
    assert len(line.splitlines()) == 1 and "content is 64×2 pixels, expected at least 32×32" in line


# Where it starts: with a learning rate next to nothing, the picture stays what it was.

STAYS = ["--steps", "1", "--scales", "1", "--optimizer", "adam", "--learning-rate", "1e-6", *FASTER]


def test_a_file_to_start_from_is_where_it_starts(optimized, tmp_path):
    start = tmp_path / "start.png"
    strokes(64, 48, seed=8).save(start)
    optimized(*STAYS, "--start", start)
    np.testing.assert_allclose(levels(tmp_path / "out.png"), levels(start), atol=1)


def test_a_fast_style_to_start_from_is_where_it_starts(optimized, fast_model, photo, twin, tmp_path):
    expected = np.asarray(decode(paint_fast(fast_model, photo.read_bytes(), size=64).data)).astype(int)
    for options in (["--start", fast_model.card.slug], ["--start", twin.slug, "--models", twin.folder]):
        optimized(*STAYS, *options)
        np.testing.assert_allclose(levels(tmp_path / "out.png"), expected, atol=1)
    assert np.abs(expected - seen(photo)).mean() > 2


def test_the_fast_style_nearest_to_the_style_is_where_it_starts(optimized, encoder, photo, painting, tmp_path):
    """Of two networks that were dropped in, one has the style in its middle and the other the content."""
    networks, space = list(ModelLibrary((SHIPPED,)).models.values())[:2], StyleSpace.load()
    for network, picture in zip(networks, (painting, photo), strict=True):
        folder = tmp_path / "models" / f"near-{picture.stem.rpartition(' ')[2]}"
        folder.mkdir(parents=True)
        centre = tuple(map(float, space.embed(encoder, decode(picture))))
        cluster = ClusterCard(id="near", style_space=space.fingerprint, centre=centre, radius=0.05)
        card = network.card.model_copy(update={"slug": folder.name, "cluster": cluster})
        (folder / CARD_FILE).write_text(card.model_dump_json())
        shutil.copy(network.folder / MODEL_FILE, folder)
    optimized(*STAYS, "--start", "nearest", "--models", tmp_path / "models")
    expected, other = (
        np.asarray(decode(paint_fast(network, photo.read_bytes(), size=64).data)).astype(int) for network in networks
    )
    np.testing.assert_allclose(levels(tmp_path / "out.png"), expected, atol=1)
    assert np.abs(expected - other).mean() > 2


def test_the_service_starts_from_a_first_painting(optimized, photo, tmp_path):
    """By adaptive instance normalisation; a start by name goes before it."""
    optimized(*STAYS)
    painted = levels(tmp_path / "out.png")
    assert np.abs(painted - seen(photo)).mean() > 5
    optimized(*STAYS, "--start", "adain")
    np.testing.assert_array_equal(levels(tmp_path / "out.png"), painted)
    optimized(*STAYS, "--start", "content")
    np.testing.assert_allclose(levels(tmp_path / "out.png"), seen(photo), atol=1)
    optimized(*STAYS, "--start", "grey")
    np.testing.assert_allclose(levels(tmp_path / "out.png"), 128, atol=1)


def test_a_start_that_is_nothing_is_told_with_all_that_can_be(optimized, twin, tmp_path):
    line = optimized("--start", "nonsense", "--models", twin.folder, exit_code=2)
    assert len(line.splitlines()) == 1 and line.startswith("error: start is 'nonsense', expected one of adain, ")
    for name in (*STARTS, "a picture's file", "nearest", twin.slug, *ModelLibrary((SHIPPED,)).models):
        assert name in line
    assert not (tmp_path / "out.png").exists()
    (tmp_path / "start.png").write_bytes(b"no picture")
    assert "no JPEG, PNG" in optimized("--start", tmp_path / "start.png", exit_code=2)


# One of the two alone, other networks


@pytest.mark.parametrize(("only", "other"), [("content", "style"), ("style", "content")])
def test_one_of_the_two_alone_is_reconstructed_from_noise(optimized, photo, tmp_path, only, other):
    facts = optimized("--only", only, "--steps", 2, "--seed", 3)
    assert facts["losses"][only] > 0 and facts["losses"][other] == facts["losses"]["tv"] == 0
    assert facts["losses"]["total"] == facts["losses"][only]
    assert levels(tmp_path / "out.png").std() > 40, "still mostly noise"
    assert optimized("--only", only, "--steps", 1, "--tv-weight", 2, "--start", "white")["losses"]["tv"] > 0
    line = optimized("--only", only, f"--{other}-layers", "relu1_1", exit_code=2)
    assert f"only is '{only}', but {other} layers were named." in line
    assert "content, style" in optimized("--only", "both", exit_code=2)


def test_layers_of_the_one_may_be_none(optimized):
    losses = optimized("--content-layers", "", "--steps", 1, "--start", "white")["losses"]
    assert losses["content"] == 0 < losses["style"]
    assert "no layer was named" in optimized("--content-layers", "", "--style-layers", "", exit_code=2)


@pytest.mark.parametrize("encoder", ["vgg19-torchvision", "vgg16", "resnet50"])
def test_every_network_can_be_looked_through(optimized, encoder, tmp_path):
    losses = optimized("--encoder", encoder, "--pooling", "average", "--steps", 2, "--size", 96)["losses"]
    assert all(np.isfinite(value) for value in losses.values())
    # Relative to its target, and so of no network's own size: what nobody trained is as good as any other.
    assert 1e-3 < losses["style"] < 1e4
    assert Image.open(tmp_path / "out.png").size == (96, 72)


def test_a_network_or_a_precision_that_does_not_exist_is_told_with_those_that_do(optimized, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(weights, "load", fail)
    for options, complaint in (
        (["--encoder", "alexnet"], "vgg19, vgg19-torchvision, vgg16, resnet50."),
        (["--pooling", "median"], "max, average."),
        (["--precision", "float16"], "auto, float32, bfloat16."),
        (["--encoder", "resnet50", "--style-layers", "relu1_1"], "relu1, pool1, layer1_1"),
        (["--encoder", "vgg16", "--start", "adain"], "needs the encoder vgg19"),
        (["--tile", "100"], "tile is 100, expected 256 to 16384"),
    ):
        line = optimized(*options, exit_code=2)
        assert complaint in line and len(line.splitlines()) == 1


# The record, and going on


def history(folder: Path) -> dict:
    return json.loads((folder / "history.json").read_text(encoding="ascii"))


def test_a_record_is_kept(optimized, photo, painting, tmp_path, saved_often):
    folder = tmp_path / "runs" / "first"
    facts = optimized("--record", folder, "--every", 2, "--steps", 5, "--optimizer", "adam", *FASTER)
    assert facts["record"] == str(folder)
    names = {path.name for path in folder.iterdir()}
    plot = {"losses.png"} if run_record.plot_available() else set()
    assert names == {"history.json", "snapshots", "sheet.jpg", "checkpoint.safetensors"} | plot
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == ["step-00002.jpg", "step-00004.jpg"]
    kept = history(folder)
    assert [row["step"] for row in kept["steps"]] == [1, 2, 3, 4, 5]
    assert kept["steps"][-1]["total"] == pytest.approx(facts["losses"]["total"], rel=1e-4)
    expected = {"content": photo.name, "styles": [painting.name], "preset": "lienzo"}
    assert {name: kept["facts"][name] for name in expected} == expected
    assert kept["facts"]["settings"]["steps"] == 5
    assert list(kept["facts"]["settings"]["loss"]["style_layers"]) == ["relu1_1", "relu2_1"]


def test_every_option_is_handed_on(optimized, tmp_path):
    """Each other than that of any preset."""
    asked = {
        "steps": 3,
        "optimizer": "adam",
        "scales": 5,
        "learning_rate": 0.0123,
        "seed": 77,
        "patience": 11,
        "ema": 0.77,
        "tile": 1234,
    }
    loss = {"content_weight": 1.25, "style_weight": 2.5, "tv_weight": 0.375}
    options = [part for name, value in (asked | loss).items() for part in (f"--{name.replace('_', '-')}", value)]
    layers = ["--content-layers", "relu2_2:3", "--style-layers", "relu1_1:0.25,conv2_1:4"]
    optimized("--record", tmp_path / "run", *options, *layers, "--style-loss", "wasserstein", "--start", "white")
    found = history(tmp_path / "run")["facts"]["settings"]
    assert {name: found[name] for name in asked} == asked
    assert found["start"] == "white"
    assert {name: found["loss"][name] for name in loss} == loss
    assert found["loss"]["style_form"] == "wasserstein"
    assert found["loss"]["content_layers"] == {"relu2_2": 3}
    assert found["loss"]["style_layers"] == {"relu1_1": 0.25, "conv2_1": 4}


def test_without_a_plot_this_is_said(optimized, tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "plot_available", lambda: False)
    optimized("--record", tmp_path / "run", "--steps", 1, *FASTER)
    assert not (tmp_path / "run" / "losses.png").exists() and (tmp_path / "run" / "sheet.jpg").exists()


@pytest.fixture
def interrupted(optimized, tmp_path, monkeypatch, saved_often):
    """A run of six evaluations that was ended by hand after a checkpoint in the middle, and its options."""

    def run(*options: object, **more: object) -> list[object]:
        arguments = ["--record", tmp_path / "run", "--every", 2, "--steps", 6, *FASTER, *options]
        really = run_record.RunRecord.on_checkpoint

        def saved(self, checkpoint) -> None:
            really(self, checkpoint)
            if checkpoint.done >= 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(run_record.RunRecord, "on_checkpoint", saved)
            assert optimized(*arguments, exit_code=130, **more) == "interrupted\n"
        assert not (tmp_path / "out.png").exists()
        return arguments

    return run


@pytest.fixture
def short_searches(monkeypatch):
    """L-BFGS can only be interrupted between two searches, and these are longer than the runs here."""
    gatys = PRESETS["gatys"]
    shorter = replace(gatys, settings=replace(gatys.settings, search_iterations=2))
    monkeypatch.setattr(presets, "PRESETS", {**PRESETS, "gatys": shorter})


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adam"],
        ["--preset", "gatys", "--seed", "5"],
        ["--optimizer", "adam", "--start", "SLUG", "--ema", "0.9", "--match-color", "--strength", "0.8"],
    ],
    ids=["adain", "lbfgs", "fast"],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    optimized, interrupted, short_searches, fast_model, tmp_path, options
):
    options = [fast_model.card.slug if option == "SLUG" else option for option in options]
    arguments = interrupted(*options)
    resumed = optimized(*arguments, "--resume")
    whole = optimized(*options, "--steps", 6, *FASTER, out="whole.png")
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert (resumed["steps"], resumed["losses"]) == (whole["steps"], whole["losses"])
    assert [row["step"] for row in history(tmp_path / "run")["steps"]] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_with_what_it_was_started_with_and_nothing_else(optimized, interrupted, photo, tmp_path):
    left, right = half(tmp_path / "left.png", left=True), half(tmp_path / "right.png", left=False)
    arguments = interrupted("--optimizer", "adam", "--mask", left, "--style-mask", left, "--start", "content")

    def with_the_other(option: str) -> list[object]:
        at = arguments.index(option) + 1
        return [*arguments[:at], right, *arguments[at + 1 :]]

    for changed in (
        [*arguments, "--seed", 1],
        [*arguments, "--style-scale", 1.1],
        [*arguments, "--match-color"],
        [*arguments, "--pooling", "average"],
        [*arguments, "--precision", "bfloat16"],
        [*arguments, "--start", "adain"],
        [*arguments, "--start", "uniform"],
        [*arguments, "--start", left],
        [*arguments, "--size", 72],
        with_the_other("--mask"),
        with_the_other("--style-mask"),
    ):
        line = optimized(*changed, "--resume", exit_code=2)
        assert "is of another run: its pictures or settings differ." in line and len(line.splitlines()) == 1
    assert optimized(*arguments, "--resume", "--strength", 0.9)["steps"] == 6, "what is done to the painting may differ"
    hills(120, 90, seed=9).save(photo)
    assert "is of another run" in optimized(*arguments, "--resume", exit_code=2)


def test_two_styles_are_no_style_and_its_mask(optimized, interrupted, painting, tmp_path):
    """The same files in the same order, but of another meaning."""
    mask = half(tmp_path / "mask.png", left=True)
    arguments = interrupted("--optimizer", "adam", "--style-mask", mask)
    at = arguments.index("--style-mask")
    blended = [*arguments[:at], *arguments[at + 2 :]]
    assert "is of another run" in optimized(*blended, "--resume", styles=(painting, mask), exit_code=2)


def test_there_must_be_something_to_go_on_from(optimized, tmp_path):
    for options, complaint in (
        (["--resume"], "there is no record to use. Name its folder with --record."),
        (["--every", 5], "there is no record to use."),
        (["--resume", "--record", tmp_path / "nothing"], "there is no checkpoint"),
        (["--record", tmp_path / "a photo.png"], "cannot be made"),
    ):
        line = optimized(*options, "--steps", 1, exit_code=2)
        assert complaint in line and len(line.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a painting.jpg", "a photo.png"]


def test_a_damaged_checkpoint_is_told(optimized, interrupted, tmp_path):
    arguments = interrupted("--optimizer", "adam")
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    line = optimized(*arguments, "--resume", exit_code=2)
    assert "cannot be read" in line and len(line.splitlines()) == 1


@pytest.mark.parametrize("older", [False, True])
def test_a_loss_that_is_no_number_ends_in_one_line_and_no_picture(optimized, tmp_path, older):
    if older:
        (tmp_path / "out.png").write_bytes(b"an older picture")
    line = optimized("--style-weight", "3e38", "--steps", 2, "--record", tmp_path / "run", exit_code=2)
    assert len(line.splitlines()) == 1 and "not a number" in line
    found = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert found == {"a painting.jpg", "a photo.png"} | ({"out.png"} if older else set())
    if older:
        assert (tmp_path / "out.png").read_bytes() == b"an older picture"
    assert not (tmp_path / "run" / "sheet.jpg").exists()


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
        (["boat", "--engine", "warp"], "engine: Input should be 'auto', 'fast', 'instant' or 'optimize'."),
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
        (["--style-layers", "relu9_9"], ", ".join(VGG19.layers)),
        (["--content-layers", "relu4_2:much"], "relu4_2:1"),
        (["--content-layers", "relu4_2:-1"], "relu4_2 is -1"),
        (["--optimizer", "sgd"], "adam, lbfgs"),
        (["--start", "nothing"], "adain, content, style, grey, uniform, normal, white, a picture's file, nearest"),
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
    assert parse_layers("") == {}
    for wrong in ("relu1_1:0.2:3", "relu1_1:much"):
        with pytest.raises(InvalidInput, match="no list of layers"):
            parse_layers(wrong)


def test_numbers_are_read():
    assert parse_numbers("2") == [2]
    assert parse_numbers("2, 0.5,1e3") == [2, 0.5, 1000]
    for wrong in ("", "2,", "2;1", "two"):
        with pytest.raises(InvalidInput, match="no list of numbers") as refusal:
            parse_numbers(wrong)
        assert refusal.value.field == "style_weights"


def test_paths_among_the_settings_mean_the_folder_of_the_command(monkeypatch, tmp_path):
    """As in the README: ``LIENZO_GALLERY_INDEX=paintings-index lienzo serve --gallery paintings/``."""
    from services import cli

    given = {
        "MODELS": os.pathsep.join(["mine", "/theirs"]), "GALLERY": "met", "GALLERY_INDEX": "index", "KEYS": "keys.json",
        "STATE": "state", "CACHE": "cache", "WEIGHTS": "weights", "SENTENCES": "auto", "INDEX_URI": "vectors.db",
        "EMBEDDING": "joint", "STYLE_ENCODER": "style+net.onnx:pool", "ENGINE": "auto",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(f"LIENZO_{name}", value)
    cli._configure(None, "paintings/", None, "auto", "auto")
    found = {name: os.environ[f"LIENZO_{name}"].replace(str(tmp_path), "HERE") for name in given}
    assert found == {
        "MODELS": os.pathsep.join(["HERE/mine", "/theirs"]), "GALLERY": "HERE/paintings", "GALLERY_INDEX": "HERE/index",
        "KEYS": "HERE/keys.json", "STATE": "HERE/state", "CACHE": "HERE/cache", "WEIGHTS": "HERE/weights",
        "SENTENCES": "auto", "INDEX_URI": "HERE/vectors.db", "EMBEDDING": "HERE/joint",
        "STYLE_ENCODER": "style+HERE/net.onnx:pool", "ENGINE": "auto",
    }  # fmt: skip
    monkeypatch.setenv("LIENZO_INDEX_URI", "http://localhost:19530")
    cli._configure(None, "met", None, "auto", "auto")
    assert (os.environ["LIENZO_INDEX_URI"], os.environ["LIENZO_GALLERY"]) == ("http://localhost:19530", "met")


def test_without_the_sentence_transformer_words_alone_are_served(monkeypatch, tmp_path):
    """What would be downloaded cannot be: the service is prepared all the same, and says so."""
    from services import cli
    from services.settings import Settings
    from shared.errors import WeightsUnavailable

    asked = []

    def fetch(name, **_):
        asked.append(name)
        if name == "minilm":
            raise WeightsUnavailable("no network.")

    said = io.StringIO()
    monkeypatch.setattr(cli.weights_library, "fetch", fetch)
    monkeypatch.setattr(cli, "notices", Console(file=said, width=200))
    monkeypatch.setenv("LIENZO_CACHE", str(tmp_path))
    monkeypatch.setattr("services.settings.settings", Settings)
    assert cli._prepare().models
    assert asked == ["vgg19", "adain-decoder", "minilm"]
    assert "content is found by words alone" in said.getvalue()

    asked.clear()
    monkeypatch.setenv("LIENZO_SENTENCES", "off")
    cli._prepare()
    assert asked == ["vgg19", "adain-decoder"]
