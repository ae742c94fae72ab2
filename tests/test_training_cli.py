"""``lienzo-train`` ends in a model that serves, or in one clear line and nothing written."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from models import random_network, write_negative
from scenes import hills, strokes, write_hills
from typer.testing import CliRunner, Result

from shared.errors import InvalidInput
from shared.fast_models import SHIPPED, ModelLibrary, read_card
from shared.fast_painting import paint_fast
from shared.files import sha256
from shared.galleries import open_gallery
from shared.gallery_index import GalleryIndex
from shared.images import decode, encode
from shared.onnx_runtime import open_session
from shared.perceptual_loss import LossSettings
from shared.style_space import StyleEncoder, StyleSpace
from shared.transform_network import TransformNetwork
from shared.vector_index import ExactIndex
from training import train_command
from training.checkpoints import save_checkpoint
from training.cli import app, parse_duration
from training.style_trainer import TrainingFailed, TrainingSettings

GPU = Path("/dev/nvidiactl").exists()
COMMANDS = typer.main.get_command(app).commands


def lienzo_train(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """The one line that a refusal is, whatever was skipped and logged before."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("WARNING ")]
    assert line.startswith("error: ")
    return line


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command):
    result = lienzo_train(*command.split(), "--help")
    assert result.exit_code == 0 and result.stderr == ""
    assert "Usage" in result.stdout
    for name in COMMANDS if not command else ():
        assert name in result.stdout


def test_the_commands_that_others_rely_on_are_there():
    assert {"style", "styles", "body", "clusters", "evaluate", "export", "space", "index"} <= COMMANDS.keys()
    options = {option for parameter in COMMANDS["style"].params for option in parameter.opts}
    assert {"--style", "--content", "--name", "-o", "--init", "--time-budget", "--width"} <= options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    for parameter in COMMANDS[command].params:
        assert parameter.name == "help" or parameter.help, f"{command} {parameter.name}"


SETTINGS = {field.name for field in dataclasses.fields(TrainingSettings)} - {"loss", "grid_weight"}
"""What can be set on the command line; the weight of the grid is the library's business."""


@pytest.mark.parametrize(
    ("command", "settings"),
    [("style", SETTINGS), ("styles", SETTINGS), ("body", SETTINGS - {"target", "only_scales"})],
    ids=["style", "styles", "body"],
)
def test_the_options_defaults_are_the_librarys(command, settings):
    defaults = {parameter.name: parameter.default for parameter in COMMANDS[command].params}
    assert settings <= defaults.keys()
    for name in settings:
        assert defaults[name] == getattr(TrainingSettings(), name), name
    for name in ("content_weight", "style_weight", "tv_weight"):
        assert defaults[name] == getattr(LossSettings(), name), name


@pytest.mark.parametrize("command", ["style", "styles", "body"])
def test_trainings_share_their_options(command):
    """An option means and says the same in all."""

    def options(command: str) -> dict[str, tuple[list[str], str]]:
        return {parameter.name: (parameter.opts, parameter.help) for parameter in COMMANDS[command].params}

    own, others = options(command), options("style")
    shared = {*SETTINGS, "content", "output", "init", "time_budget", "device", "reference_pairs", "licence"}
    assert all(own[name] == others[name] for name in shared & own.keys())


def test_the_help_of_styles_names_its_engines():
    help = " ".join(lienzo_train("styles", "--help").stdout.split())
    for text in ("--clusters", "--engine", "ray", "--members", "medoid", "--only", "--workers"):
        assert text in help


# --- durations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("90", 90), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("1h1m1s", 3661), (" 1.5H ", 5400)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(hours, minutes, seconds):
    total = 3600 * hours + 60 * minutes + seconds
    text = f"{hours}h{minutes}m{seconds}s"
    if total:
        assert parse_duration(text) == total
    else:
        with pytest.raises(InvalidInput):
            parse_duration(text)


@given(st.text(max_size=8))
def test_any_text_is_a_positive_duration_or_refused(text):
    try:
        assert 0 < parse_duration(text) < math.inf
    except InvalidInput as refusal:
        assert repr(text)[1:-1] in repr(str(refusal)) and refusal.field == "time_budget"


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "0h0m", "-5m", "5 minutes", "m5", "1m1h", "1d", "inf", "nan", "1e3", "5mm"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidInput, match="is no duration") as refusal:
        parse_duration(text)
    assert "15m" in refusal.value.hint


# --- refusals of `style` -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """``content/`` with 16 pictures, ``style.png``, and things that are wrong."""
    folder = tmp_path_factory.mktemp("pictures")
    write_hills(folder / "content", 16)
    write_hills(folder / "few", 15)
    strokes(80, 64).save(folder / "nobody_the-strokes.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no picture")
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir()
    for i in range(16):
        (folder / "unreadable").mkdir(exist_ok=True)
        (folder / "unreadable" / f"{i}.png").write_bytes(b"no picture")
    return folder


def style_arguments(pictures: Path, output: Path, **changes: object) -> list[object]:
    options = {
        "style": pictures / "nobody_the-strokes.png",
        "content": pictures / "content",
        "name": "strokes",
        "output": output,
        "steps": 4,
        "crop": 64,
        "batch": 1,
        "width": "quarter",
        "style-size": 80,
        "device": "cpu",
        "precision": "float32",
    } | changes
    return ["style", *(part for name, value in options.items() for part in (f"--{name}", value))]


BAD_OPTIONS = [
    ({"name": "The Strokes"}, "'The Strokes' is no slug"),
    ({"name": "../strokes"}, "'../strokes' is no slug"),
    ({"name": "s" * 65}, "up to 64"),
    ({"title": "t" * 121}, "121 characters, expected at most 120"),
    ({"time-budget": "soon"}, "'soon' is no duration"),
    ({"width": "double"}, "width is 'double', expected one of full, half, quarter"),
    ({"precision": "float16"}, "precision is 'float16'"),
    ({"device": "tpu"}, "device is 'tpu'"),
    ({"steps": 0}, "steps is 0"),
    ({"crop": 16}, "crop is 16"),
    ({"style-weight": -1}, "style_weight is -1"),
    ({"learning-rate": 0}, "learning_rate is 0"),
    ({"accumulate": 0}, "accumulate is 0"),
    ({"ema": 1}, "ema is 1.0, expected 0 to below 1"),
    ({"patience": -1}, "patience is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"optimizer": "sgd"}, "optimizer is 'sgd', expected one of muon, adam"),
    ({"target": "median"}, "target is 'median'"),
    ({"target": "each"}, "target is 'each', expected mean or random. One body for several styles"),
    ({"reference-pairs": 9}, "reference_pairs is 9"),
    ({"init": "unknown"}, "neither a training"),
]
BAD_PICTURES = [
    ({"style": "missing.png"}, "missing.png"),
    ({"style": "broken.png"}, "broken.png' cannot be used: The PNG picture is cut short"),
    ({"style": "text.png"}, "text.png' cannot be used: These bytes are no JPEG"),
    ({"style": "empty"}, "has no picture in it"),
    ({"content": "missing"}, "is not a folder"),
    ({"content": "text.png"}, "is not a folder"),
    ({"content": "empty"}, "has no picture in it"),
    ({"content": "few"}, "has 15 pictures, expected at least 16"),
    ({"content": "unreadable"}, "none of the validation pictures can be read"),
]


@pytest.mark.parametrize(("change", "message"), BAD_OPTIONS, ids=[str(change)[:40] for change, _ in BAD_OPTIONS])
def test_a_bad_option_ends_in_one_line_and_nothing_is_written(pictures, tmp_path, vgg19_weights, change, message):
    output = tmp_path / "models"
    assert message in refused(lienzo_train(*style_arguments(pictures, output, **change)))
    assert not output.exists()


@pytest.mark.parametrize(("change", "message"), BAD_PICTURES, ids=[str(change) for change, _ in BAD_PICTURES])
def test_bad_pictures_end_in_one_line_and_nothing_is_written(pictures, tmp_path, vgg19_weights, change, message):
    output = tmp_path / "models"
    changed = {name: pictures / value for name, value in change.items()}
    assert message in refused(lienzo_train(*style_arguments(pictures, output, **changed)))
    assert not output.exists()


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(pictures, tmp_path):
    assert "PyTorch sees no CUDA GPU" in refused(
        lienzo_train(*style_arguments(pictures, tmp_path / "m", device="cuda"))
    )
    assert not (tmp_path / "m").exists()


def test_one_unreadable_picture_in_a_folder_of_styles_is_refused(pictures, tmp_path):
    folder = tmp_path / "styles"
    folder.mkdir()
    strokes(80, 64).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    assert "bad.png" in refused(lienzo_train(*style_arguments(pictures, tmp_path / "models", style=folder)))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("missing", ["--style", "--content", "--name", "--output"])
def test_a_missing_option_is_named(pictures, tmp_path, missing):
    arguments = style_arguments(pictures, tmp_path / "models")
    place = arguments.index(missing)
    result = lienzo_train(*arguments[:place], *arguments[place + 2 :])
    assert result.exit_code == 2 and missing in result.stderr


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint.pt"), "No space left on device: 'checkpoint.pt'"),
        (TrainingFailed("the loss is not a number at step 3.", hint="Lower it."), "not a number at step 3. Lower it."),
    ],
    ids=["disk full", "not a number"],
)
def test_a_training_that_fails_ends_in_one_line_and_no_model(
    pictures, tmp_path, vgg19_weights, monkeypatch, failure, message
):
    def train_style(*arguments, **options):
        raise failure

    monkeypatch.setattr(train_command, "train_style", train_style)
    assert message in refused(lienzo_train(*style_arguments(pictures, tmp_path / "models")))
    assert not (tmp_path / "models").exists()


def test_a_start_of_another_width_is_refused_before_anything_is_written(pictures, tmp_path, vgg19_weights):
    arguments = style_arguments(pictures, tmp_path / "models", init="udnie")
    assert "--init has another architecture than a 'quarter'" in refused(lienzo_train(*arguments))
    assert not (tmp_path / "models").exists()


def test_an_interruption_is_no_error(pictures, tmp_path, monkeypatch):
    def interrupted(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "run_style_job", interrupted)
    result = lienzo_train(*style_arguments(pictures, tmp_path / "models"))
    assert result.exit_code == 130 and result.stderr == "interrupted\n"


# --- from pictures to a model that serves --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_style_is_trained_exported_and_served(pictures, tmp_path, vgg19_weights, monkeypatch):
    monkeypatch.setattr(train_command, "REFERENCE_STEPS", 2)
    output = tmp_path / "models"
    arguments = style_arguments(
        pictures,
        output,
        title="The Strokes",
        **{"reference-pairs": 1, "content-credit": "hills", "source": "drawn", "licence": "CC0", "style-weight": 3},
    )
    result = lienzo_train(*arguments)
    assert result.exit_code == 0, result.output
    assert "The Strokes" in result.stdout and "4 steps" in result.stdout

    assert sorted(path.name for path in output.iterdir()) == [".training", "strokes"]
    run = output / ".training" / "strokes"
    assert {"checkpoint.pt", "losses.png", "samples.jpg", "tensorboard"} <= {path.name for path in run.iterdir()}
    assert min(decode(run / "losses.png").size) > 100 and decode(run / "samples.jpg").size == (8 * 256, 2 * 256)

    card = read_card(output / "strokes")
    assert (card.slug, card.name, card.width, card.licence) == ("strokes", "The Strokes", "quarter", "CC0")
    (style,) = card.styles
    assert (style.title, style.artist, style.source) == ("The strokes", "Nobody", "drawn")
    assert style.sha256 == sha256(pictures / "nobody_the-strokes.png")
    assert card.training["steps"] == 4 and card.training["loss"]["style_weight"] == 3
    assert card.data == {"content": "hills", "pictures": 8}
    assert card.reference.pairs == 1 and card.reference.size == 256 and list(card.reference.optimizer_total) == ["2"]
    assert card.validation["total"] == pytest.approx(
        sum(card.validation[term] for term in ("content", "style", "tv")), rel=1e-3
    )
    assert card.cluster.id == "strokes" and card.cluster.style_space == StyleSpace.load().fingerprint

    library = ModelLibrary([output], device="cpu")
    assert list(library.models) == ["strokes"] and library.refusals == []
    painted = decode(paint_fast(library["strokes"], encode(hills(75, 61))).data)
    assert painted.size == (75, 61)
    assert np.asarray(painted).std() > 1, "not blank"
    assert library.nearest(np.array(card.cluster.centre, np.float32), card.cluster.style_space).inside


def test_a_folder_of_styles_makes_one_card_with_all_of_them(pictures, tmp_path, vgg19_weights, monkeypatch):
    """Everything but the training and the export, which the test above runs."""
    folder = tmp_path / "styles"
    folder.mkdir()
    long = "x" * 150
    for i, name in enumerate((f"a_{long}", "b_the-other")):
        strokes(80 + i, 64, seed=i).save(folder / f"{name}.png")
    seen, trained_on = {}, []

    class Result:
        network, steps, seconds, stopped_early = random_network(), 4, 1.0, True
        history = [{"step": 4, "content": 1.0, "style": 2.0, "tv": 0.0, "total": 3.0, "grid": 0.0}]  # noqa: RUF012

    def train_style(styles, *arguments, **options):
        trained_on.extend(styles)
        return Result()

    monkeypatch.setattr(train_command, "train_style", train_style)
    monkeypatch.setattr(train_command, "export_model", lambda network, folder, fields: seen.update(fields) or fields)
    job = train_command.StyleJob(
        styles=train_command.style_sources(folder), content=pictures / "content", slug="both",
        output=tmp_path / "models", title="", init="", time_budget=None,
        settings={"width": "quarter", "style_size": 80}, device="cpu",
        reference_pairs=0, content_credit="", licence="", commit="", created="2001-02-03",
    )  # fmt: skip
    train_command.run_style_job(job)
    assert [tuple(picture.shape) for picture in trained_on] == [(1, 3, 64, 80), (1, 3, 63, 80)]
    assert [style.artist for style in seen["styles"]] == ["A", "B"]
    assert seen["training"]["stopped_early"] is True and seen["training"]["steps"] == 4
    assert len(seen["name"]) == 120, "a file's long name is no reason to lose a training"
    assert seen["cluster"].radius >= train_command.SINGLE_PICTURE_RADIUS
    assert seen["reference"] is None and seen["data"]["content"] == "content"


# --- the other commands --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_mean_of_a_checkpoints_weights_is_exported(tmp_path):
    network, average = random_network(seed=1), random_network(seed=2)
    state = {f"module.{name}": tensor for name, tensor in average.state_dict().items()}
    save_checkpoint(
        tmp_path / "run",
        {"settings": {"width": "quarter"}, "network": network.state_dict(), "average": state, "names": []},
    )
    result = lienzo_train("export", tmp_path / "run", "-o", tmp_path / "network.onnx")
    assert result.exit_code == 0, result.output
    assert "parity with PyTorch" in result.stdout and (tmp_path / "network.onnx").stat().st_size > 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "run"]
    pictures = torch.rand(1, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    (painted,) = open_session(tmp_path / "network.onnx").run(None, {"pictures": pictures.numpy()})
    with torch.no_grad():
        assert np.abs(painted - average(pictures).numpy()).max() < 1e-3
        assert np.abs(painted - network(pictures).numpy()).max() > 0.05
    job = SimpleNamespace(output=tmp_path, init=str(tmp_path / "run"), slug="strokes")
    start = train_command._initial_state(job)
    assert all(torch.equal(start[name], tensor) for name, tensor in average.state_dict().items())


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    save_checkpoint(tmp_path / "run", {"settings": {"width": "quarter"}, "network": random_network().state_dict()})
    assert "older version" in refused(lienzo_train("export", tmp_path / "run", "-o", tmp_path / "network.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    assert "there is no checkpoint" in refused(lienzo_train("export", tmp_path, "-o", tmp_path / "network.onnx"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "drawn"
    folder.mkdir()
    for i in range(3):
        strokes(64, 48, seed=i).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def test_a_space_is_fitted_on_what_can_be_read(gallery, tmp_path, vgg19_weights):
    output = tmp_path / "new" / "space.safetensors"
    result = lienzo_train("space", "--gallery", gallery, "-o", output, "--dimensions", 8)
    assert result.exit_code == 0, result.output
    fitted = StyleSpace.load(output)
    assert fitted.fitted_on == "drawn (3)" and fitted.basis.shape[0] == 2
    assert "2 dimensions" in result.stdout and "drawn (3)" in result.stdout


def test_a_space_needs_two_readable_pictures(tmp_path, vgg19_weights):
    folder = tmp_path / "one"
    folder.mkdir()
    strokes(64, 48).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    line = refused(lienzo_train("space", "--gallery", folder, "-o", tmp_path / "space.safetensors"))
    assert "1 of 2 pictures could be read" in line
    assert not (tmp_path / "space.safetensors").exists()


def test_a_gallery_is_indexed_in_the_shipped_space_and_then_brought_up_to_date(tmp_path, gallery, vgg19_weights):
    pictures, output = tmp_path / "drawn", tmp_path / "new" / "index"
    shutil.copytree(gallery, pictures)
    for i in range(7):
        (pictures / f"worse-{i}.png").write_bytes(b"no picture")
    result = lienzo_train("index", "--gallery", pictures, "-o", output)
    assert result.exit_code == 0, result.output
    assert "3 pictures; 3 added, 0 changed, 0 removed" in result.stdout
    assert "index: bad: " in result.stderr and "8 problems in all" in result.stderr
    assert "worse-5" not in result.stderr, "the first few only"
    encoder = StyleEncoder(StyleSpace.load(), lambda: pytest.fail("opening needs no network"))
    index = GalleryIndex.open(output, open_gallery(pictures), [encoder])
    assert index.ids == ("0", "1", "2") and len(index.issues) == 8
    strokes(64, 48, seed=9).save(pictures / "1.png")
    (pictures / "0.png").unlink()
    strokes(64, 48, seed=8).save(pictures / "new.png")
    result = lienzo_train("index", "--gallery", pictures, "-o", output)
    assert "3 pictures; 1 added, 1 changed, 1 removed" in result.stdout


def test_a_gallerys_own_problems_are_listed(tmp_path, gallery, vgg19_weights):
    shutil.copytree(gallery, tmp_path / "drawn")
    (tmp_path / "drawn" / "metadata.csv").write_text("file,title\nmissing.png,Gone\n0.png,A\n")
    result = lienzo_train("index", "--gallery", tmp_path / "drawn", "-o", tmp_path / "index")
    assert result.exit_code == 0 and "gallery: metadata.csv:2: 'missing.png' is missing" in result.stderr


def test_ray_embeds_what_one_process_embeds(tmp_path, gallery, vgg19_weights, monkeypatch):
    pytest.importorskip("ray", reason="Ray is an extra of its own")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shared.gallery_index.SHARD", 1)
    found = []
    for engine in ("local", "ray"):
        options = ("--engine", engine, "--workers", 1) if engine == "ray" else ()
        result = lienzo_train("index", "--gallery", gallery, "-o", tmp_path / engine, "--device", "cpu", *options)
        assert result.exit_code == 0, result.output
        assert "3 added" in result.stdout and "bad: " in result.stderr
        found.append(ExactIndex.open(tmp_path / engine / "style"))
    assert found[0].ids == found[1].ids == ("0", "1", "2")
    for id in found[0].ids:
        assert found[0].vector(id) @ found[1].vector(id) > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--encoder", "smell"), "there is no image encoder 'smell'. Encoders are: style, resnet50"),
        (("--engine", "spark"), "engine is 'spark', expected one of local, ray"),
        (("--workers", 0), "workers is 0"),
    ],
)
def test_an_index_that_cannot_be_made_is_refused(tmp_path, gallery, options, message):
    assert message in refused(lienzo_train("index", "--gallery", gallery, "-o", tmp_path / "index", *options))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("command", ["space", "index"])
def test_a_gallery_that_is_not_there_is_refused(tmp_path, command):
    refused(lienzo_train(command, "--gallery", tmp_path / "missing", "-o", tmp_path / "out.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_shows_every_picture_in_every_style(gallery, tmp_path):
    for slug in ("one", "two"):
        write_negative(tmp_path / "models", slug)
    arguments = ("sheet", "--gallery", gallery, "--models", tmp_path / "models", "--size", 64)
    result = lienzo_train(*arguments, "--picture", "0", "--picture", "1", "-o", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    sheet = np.asarray(decode(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape[0] > 2 * 48 and sheet.shape[1] > 3 * 64
    content = np.asarray(decode(gallery / "0.png", longer_side=64)).astype(int)
    rows = sheet[22 : 22 + 48]  # below the names
    places = [x for x in range(sheet.shape[1] - 63) if np.abs(rows[:, x : x + 64] - content).max() == 0]
    assert places == [0], "the content once, on the left"
    places = [x for x in range(sheet.shape[1] - 63) if np.abs(rows[:, x : x + 64] - (255 - content)).max() <= 1]
    assert len(places) == 2, "and its painting in either style"


def test_a_sheet_of_one_picture_fills_rows_of_columns(gallery, tmp_path):
    for slug in ("first", "second"):
        write_negative(tmp_path / "models", slug)
    arguments = ("sheet", "--gallery", gallery, "--models", tmp_path / "models", "--size", 64, "--picture", "0")
    for columns, (across, down) in ((1, (1, 3)), (2, (2, 2)), (3, (3, 1)), (9, (3, 1))):
        result = lienzo_train(*arguments, "--columns", columns, "-o", tmp_path / "sheet.png")
        assert result.exit_code == 0, result.output
        width, height = decode(tmp_path / "sheet.png").size
        assert width == 64 * across + 6 * (across - 1), columns
        assert 48 * down <= height < 48 * down + 30 * down, columns


def test_a_sheet_of_an_unknown_kind_or_picture_is_refused(gallery, tmp_path):
    write_negative(tmp_path / "models", "one")
    arguments = ("sheet", "--gallery", gallery, "--models", tmp_path / "models")
    assert "no picture format" in refused(lienzo_train(*arguments, "--picture", "0", "-o", tmp_path / "sheet.pdf"))
    assert "has no picture 'unknown'" in refused(
        lienzo_train(*arguments, "--picture", "unknown", "-o", tmp_path / "sheet.png")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_training_can_start_from_a_shipped_style_or_a_models_folder(tmp_path):
    job = SimpleNamespace(output=tmp_path, init="udnie")
    shipped = train_command._initial_state(job)
    assert {n: t.shape for n, t in shipped.items()} == {
        n: t.shape for n, t in TransformNetwork("half").state_dict().items()
    }
    network = TransformNetwork("half").eval()
    network.load_state_dict(shipped)
    pictures = torch.rand(1, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    model = ModelLibrary((SHIPPED,), engine="onnxruntime")["udnie"]
    with torch.no_grad():
        assert np.abs(network(pictures).numpy() - model.paint(pictures.numpy())).max() < 1e-3
    job.init = str(model.folder)
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in train_command._initial_state(job).items())
    job.init = "no-such-style"
    with pytest.raises(InvalidInput, match="no-such-style") as refusal:
        train_command._initial_state(job)
    assert "udnie" in refusal.value.hint
