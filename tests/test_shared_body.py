"""One body for many styles: trained together, kept in a file, a start for networks of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import random_network
from safetensors import safe_open
from scenes import strokes, write_hills
from typer.testing import CliRunner

from shared.errors import InvalidInput
from shared.fast_models import ModelLibrary, read_card
from shared.images import to_tensor
from shared.perceptual_loss import LossSettings
from shared.transform_network import SharedNetwork, TransformNetwork
from training.checkpoints import load_checkpoint
from training.cli import app
from training.content_pictures import ContentPictures
from training.style_trainer import TrainingSettings, train_style, trained_weights
from training.train_command import BODIES, load_body, save_body

CROP = 64


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> tuple[Path, ...]:
    return write_hills(tmp_path_factory.mktemp("content"), 5)


@pytest.fixture(scope="module")
def styles() -> list[torch.Tensor]:
    return [to_tensor(strokes(72, 64, seed=seed)) for seed in range(3)]


@pytest.fixture
def train(paths, styles, vgg19, tmp_path):
    def run(folder: str = "run", on_step=None, init=None, trained_on=styles, **changes):
        options = {"width": "quarter", "steps": 4, "batch": 2, "crop": CROP, "precision": "float32", "target": "each"}
        return train_style(
            trained_on,
            ContentPictures(paths[1:], crop=CROP, batch=2),
            ContentPictures(paths[:1], crop=CROP, batch=1),
            vgg19,
            TrainingSettings(**(options | changes)),
            tmp_path / folder,
            init=init,
            names=["a", "b", "c"],
            device="cpu",
            checkpoint_every=2,
            validate_every=1000,
            on_step=on_step,
        )

    return run


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_styles_part_while_the_body_is_one(train, tmp_path):
    result = train(steps=3, learning_rate=5e-3)
    network = result.network
    assert isinstance(network, SharedNetwork) and network.styles.shape[0] == 3
    # Six crops of three styles: each was drawn, so each has moved, and not alike.
    start = TransformNetwork("quarter").scales()
    assert all((scales - start).abs().max() > 1e-4 for scales in network.styles)
    assert (network.styles[0] - network.styles[1]).abs().max() > 1e-4
    assert result.history[-1]["step"] == 3

    checkpoint = load_checkpoint(tmp_path / "run")
    for name, mixture in (("a", [1.0, 0, 0]), ("c", [0, 0, 1.0]), ("unknown", [1 / 3] * 3)):
        state = trained_weights(checkpoint, name)
        expected = network.network_of(torch.tensor(mixture)).state_dict()
        assert state.keys() == expected.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, expected[key], msg=f"{name} {key}")


def test_an_interrupted_body_goes_on_bit_for_bit(train):
    def interrupt(step):
        if step.step == 3:
            raise KeyboardInterrupt

    whole = train("whole", steps=5)
    with pytest.raises(KeyboardInterrupt):
        train("cut", steps=5, on_step=interrupt)
    assert same(train("cut", steps=5).network, whole.network)


def test_only_scales_leaves_the_body_as_it_is(train, styles):
    start = random_network("quarter")
    result = train(
        steps=3, target="mean", only_scales=True, trained_on=styles[:1], init=start.state_dict(), learning_rate=5e-3
    )
    before, after = start.state_dict(), result.network.state_dict()
    for name, tensor in after.items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (".norm." in name), name


def test_a_body_of_losses_that_it_cannot_learn_is_refused():
    with pytest.raises(InvalidInput, match="plain Gram losses") as refusal:
        TrainingSettings(target="each", loss=LossSettings(relative=True))
    assert refusal.value.field == "target"


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def body(tmp_path) -> tuple[SharedNetwork, Path]:
    network = SharedNetwork(random_network("quarter"), 2)
    with torch.no_grad():
        network.styles.add_(0.2 * torch.randn(network.styles.shape, generator=torch.Generator().manual_seed(1)))
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    save_body(network, ["waves", "night"], tmp_path / "body.safetensors")
    return network, tmp_path / "body.safetensors"


@pytest.mark.parametrize(
    ("name", "mixture"), [("waves", [1.0, 0.0]), ("night", [0.0, 1.0]), ("another", [0.5, 0.5]), ("", [0.5, 0.5])]
)
def test_a_body_comes_back_from_its_file(body, name, mixture):
    network, path = body
    assert same(load_body(path, name), network.network_of(torch.tensor(mixture)))


def test_the_file_holds_halves_and_nothing_that_runs(body):
    network, path = body
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert path.stat().st_size < 2.1 * sum(p.numel() for p in network.state_dict().values()) + 5000


def test_what_is_no_body_is_refused(tmp_path, body):
    path = tmp_path / "other.safetensors"
    for content in (b"", b"no tensors", body[1].read_bytes()[:-10]):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="is no shared body") as refusal:
            load_body(path)
        assert refusal.value.field == "init"


def test_the_body_that_ships_is_a_start_for_every_style():
    with safe_open(BODIES / "body.safetensors", framework="pt") as file:
        names = json.loads(file.metadata()["names"])
    assert {"great-wave", "ukiyo-e"} <= set(names) <= set(ModelLibrary(device="cpu").models), "each became a network"
    picture = to_tensor(strokes(48, 40))
    with torch.no_grad():
        painted = [load_body(BODIES / "body.safetensors", name).eval()(picture) for name in (*names, "unknown")]
    assert all(each.isfinite().all() and each.std() > 0.02 for each in painted)
    for i, each in enumerate(painted):
        assert all((each - other).abs().mean() > 0.01 for other in painted[i + 1 :])


# --- the command ---------------------------------------------------------------------------------------------------


def lienzo_train(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_body_is_trained_exported_and_started_from(tmp_path, vgg19_weights):
    write_hills(tmp_path / "content", 16)
    (tmp_path / "styles").mkdir()
    for seed, name in enumerate(("anna_first-strokes", "berta_second-strokes")):
        strokes(72, 64, seed=seed).save(tmp_path / "styles" / f"{name}.png")
    common = [
        "--content", tmp_path / "content", "-o", tmp_path / "models", "--width", "quarter", "--crop", 64,
        "--style-size", 72, "--device", "cpu", "--precision", "float32", "--reference-pairs", 0,
    ]  # fmt: skip
    result = lienzo_train("body", "--style", tmp_path / "styles", "--steps", 3, *common)
    assert result.exit_code == 0, result.output
    assert {"first-strokes", "second-strokes", "body.safetensors"} <= {p.name for p in (tmp_path / "models").iterdir()}
    library = ModelLibrary([tmp_path / "models"], device="cpu")
    assert sorted(library.models) == ["first-strokes", "second-strokes"] and library.refusals == []
    card = library["second-strokes"].card
    assert card.training["body"] == "body" and card.styles[0].artist == "Berta" and card.name == "Second strokes"

    result = lienzo_train(
        "style", "--style", tmp_path / "styles" / "berta_second-strokes.png", "--name", "second-strokes",
        "--init", tmp_path / "models" / "body.safetensors", "--only-scales", "--steps", 2, *common,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    card = read_card(tmp_path / "models" / "second-strokes")
    assert card.training["only_scales"] is True
    assert card.training["init"] == "body.safetensors", "not the folder that it lay in"


@pytest.mark.parametrize(
    ("styles", "message"), [([], "there are 0 styles"), (["a.png"], "there are 1 styles"), (["a.png", "a.png"], "same")]
)
def test_too_few_styles_or_two_of_one_name_are_refused(tmp_path, vgg19_weights, styles, message):
    write_hills(tmp_path / "content", 16)
    strokes(72, 64).save(tmp_path / "a.png")
    named = [part for style in styles for part in ("--style", tmp_path / style)]
    result = lienzo_train("body", *named, "--content", tmp_path / "content", "-o", tmp_path / "models")
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "models").exists()
