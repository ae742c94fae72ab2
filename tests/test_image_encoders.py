"""Encoders of one interface: vectors of length 1, pictures prepared as their networks expect, refusals in one line."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import write_extractor
from PIL import Image
from scenes import hills, strokes

from services.cli import _configure
from shared import image_encoders, weights
from shared.errors import InvalidInput, ModelRefused, NotFound, WeightsUnavailable
from shared.galleries import read_folder
from shared.image_encoders import (
    IMAGENET,
    THESIS,
    OnnxEncoder,
    ResNetEncoder,
    StyleEncoder,
    absolute_spec,
    join,
    open_encoder,
)
from shared.images import decode
from shared.retrieval import Retrieval
from shared.style_space import StyleSpace
from shared.torchvision_compat import import_torchvision

models = import_torchvision().models
COLOURS = [(250, 20, 30), (20, 240, 60), (10, 40, 230), (128, 128, 128)]


def solid(colour: tuple[int, int, int], width: int = 40, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def normalised(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """What ImageNet's preparation makes of a picture of one colour."""
    return (np.array(colours) / 255 - IMAGENET.mean) / IMAGENET.std


# --- preparation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 150), (150, 201), (113, 320), (90, 70), (256, 256)])
def test_imagenet_preparation_is_torchvisions(size):
    picture = strokes(*size)
    theirs = models.ResNet50_Weights.IMAGENET1K_V1.transforms()(picture)[None].numpy()
    # Torchvision resizes the picture that Pillow holds, too: levels are rounded alike.
    np.testing.assert_allclose(IMAGENET(picture), theirs, atol=1e-5)


def test_thesis_preparation_subtracts_each_channels_mean():
    prepared = THESIS(solid((255, 51, 0), 500, 300))
    assert prepared.shape == (1, 3, 256, 256) and prepared.dtype == np.float32
    expected = np.array([1 - 123.68 / 255, 51 / 255 - 116.779 / 255, 0 - 103.939 / 255])
    np.testing.assert_allclose(prepared[0, :, 100, 7], expected, atol=1e-6)


def test_the_middle_is_kept_and_nothing_is_distorted():
    picture = solid((0, 0, 0), 600, 300)
    picture.paste((255, 255, 255), (140, 0, 460, 300))  # more than the middle square
    prepared = THESIS(picture)[0]
    assert (prepared.max(axis=(1, 2)) - prepared.min(axis=(1, 2)) < 0.01).all(), "only white is seen"
    picture.paste((0, 0, 0), (150, 0, 165, 300))
    assert THESIS(picture)[0, :, :, 0].max() < THESIS(picture)[0, :, :, 200].min()


def test_training_draws_crops_and_flips():
    rng = np.random.default_rng(0)
    picture = strokes(300, 280)
    views = [IMAGENET(picture, rng) for _ in range(12)]
    assert {view.shape for view in views} == {(1, 3, 224, 224)}
    assert len({view.tobytes() for view in views}) == 12
    again = np.random.default_rng(0)
    assert all(np.array_equal(view, IMAGENET(picture, again)) for view in views)
    # A picture that is dark on the left is dark on the right in about half of the views.
    picture = solid((0, 0, 0), 256, 256)
    picture.paste((255, 255, 255), (128, 0, 256, 256))
    flipped = [view[0, 0, 0, 0] > view[0, 0, 0, -1] for view in (IMAGENET(picture, rng) for _ in range(40))]
    assert 8 < sum(flipped) < 32


# --- ONNX networks ------------------------------------------------------------------------------------------------


def test_an_onnx_network_gives_its_output_at_length_one(tmp_path):
    encoder = open_encoder(str(write_extractor(tmp_path / "mean.onnx")), device="cpu")
    found = encoder.embed([solid(colour) for colour in COLOURS])
    assert found.shape == (4, 3) == (4, encoder.dimensions) and found.dtype == np.float32
    np.testing.assert_allclose(found, unit(normalised(COLOURS)), atol=1e-3)
    assert encoder.embed([]).shape == (0, 3)


def test_the_output_goes_by_its_name(tmp_path):
    path = write_extractor(tmp_path / "mean.onnx")
    first, with_last = (open_encoder(f"{path}:{name}", device="cpu") for name in ("features", "with_one"))
    assert (first.dimensions, with_last.dimensions) == (3, 4)
    pictures = [solid(colour) for colour in COLOURS]
    with_one = np.concatenate([normalised(COLOURS), np.ones((4, 1))], axis=1)
    np.testing.assert_allclose(with_last.embed(pictures), unit(with_one), atol=1e-3)
    np.testing.assert_array_equal(first.embed(pictures), open_encoder(str(path), device="cpu").embed(pictures))
    assert first.fingerprint != with_last.fingerprint


@pytest.mark.parametrize("shape", [["n", 3, "h", "w"], [4, 3, "h", "w"], ["n", 3, 32, 48], [1, 3, 40, 40]])
def test_fixed_sizes_are_kept_and_batches_are_not_seen(tmp_path, shape):
    encoder = OnnxEncoder(write_extractor(tmp_path / "mean.onnx", shape=shape), device="cpu")
    pictures = [hills(60 + i, 50, seed=i) for i in range(19)]
    together = encoder.embed(pictures)
    assert together.shape == (19, 3)
    np.testing.assert_allclose(together, np.concatenate([encoder.embed([p]) for p in pictures]), atol=1e-6)
    expected = unit(np.concatenate([encoder.preparation(p).mean((2, 3)) for p in pictures]))
    np.testing.assert_allclose(together, expected, atol=1e-4)
    assert encoder.preparation.crop == tuple(s if isinstance(s, int) else 224 for s in shape[2:])


def test_augmented_vectors_differ_from_the_middles(tmp_path):
    encoder = OnnxEncoder(write_extractor(tmp_path / "mean.onnx"), device="cpu")
    pictures, rng = [strokes(300, 260)], np.random.default_rng(0)
    assert np.abs(encoder.embed(pictures, augment=rng) - encoder.embed(pictures)).max() > 1e-4


def test_a_fingerprint_stands_for_the_file_and_a_name_hides_the_folder(tmp_path):
    (tmp_path / "private").mkdir()
    first = open_encoder(str(write_extractor(tmp_path / "private" / "a.onnx")), device="cpu")
    same = open_encoder(str(write_extractor(tmp_path / "b.onnx")), device="cpu")
    other = open_encoder(str(write_extractor(tmp_path / "c.onnx", shape=["n", 3, 64, 64])), device="cpu")
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert first.name == "a.onnx"
    int(first.fingerprint, 16)


def external(path: Path) -> None:
    network = onnx.load(write_extractor(path))
    onnx.save(network, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


@pytest.mark.parametrize(
    ("make", "output", "said"),
    [
        (lambda p: p.write_bytes(b"no network"), "", "cannot load"),
        (write_extractor, ":logits", "'x.onnx' has no output 'logits'. Its outputs are: features, with_one, map."),
        (write_extractor, ":map", "as 'map' for 2 pictures, expected float32 [2, K]"),
        (lambda p: write_extractor(p, shape=["n", 1, "h", "w"]), "", "expected float [N, 3, H, W]"),
        (lambda p: write_extractor(p, shape=["n", 3, "h"]), "", "expected float [N, 3, H, W]"),
        (lambda p: write_extractor(p, kind=onnx.TensorProto.DOUBLE), "", "takes tensor(double)"),
        (lambda p: write_extractor(p, inputs=2), "", "has 2 inputs, expected 1"),
        (external, "", "keeps weights in another file beside it"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path, make: Callable[[Path], object], output, said):
    make(tmp_path / "x.onnx")
    with pytest.raises(ModelRefused) as refusal:
        open_encoder(f"{tmp_path / 'x.onnx'}{output}", device="cpu")
    assert said in str(refusal.value) and refusal.value.hint


def test_a_file_that_is_missing_is_said(tmp_path):
    with pytest.raises(NotFound, match=r"there is no ONNX file .*gone\.onnx") as refusal:
        open_encoder(str(tmp_path / "gone.onnx"))
    assert refusal.value.field == "encoder"


# --- torchvision's networks -----------------------------------------------------------------------------------------


def drawn(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A ResNet of torchvision with random weights, and what our conversion makes of them."""
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.weight.data.uniform_(0.3, 0.6)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    source = replace(weights.SOURCES[name], checkpoint_sha256=sha256(buffer.getvalue()).hexdigest())
    return network, weights._convert(source, network.state_dict())


@pytest.fixture(scope="module")
def resnet50() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return drawn("resnet50")


@torch.no_grad()
def outputs(network: torch.nn.Module, prepared: np.ndarray) -> dict[str, np.ndarray]:
    """Torchvision's own average pool and logits."""
    pools = []
    hook = network.avgpool.register_forward_hook(lambda module, given, pooled: pools.append(pooled.flatten(1)))
    logits = network(torch.from_numpy(prepared))
    hook.remove()
    return {"pool": unit(pools[0].numpy()), "logits": unit(logits.numpy())}


@pytest.mark.parametrize(
    ("output", "preparation", "taken", "dimensions"),
    [(None, THESIS, "pool", 2048), ("pool", IMAGENET, "pool", 2048), ("logits", IMAGENET, "logits", 1000)],
)
def test_resnet50_is_torchvisions(resnet50, monkeypatch, output, preparation, taken, dimensions):
    monkeypatch.setattr(image_encoders, "pick_dtype", lambda *_: torch.float32)
    network, tensors = resnet50
    encoder = ResNetEncoder("resnet50", output, device="cpu", tensors=tensors)
    pictures = [strokes(120, 90), hills(90, 130)]
    found = encoder.embed(pictures)
    expected = outputs(network, np.concatenate([preparation(picture) for picture in pictures]))[taken]
    assert found.shape == (2, dimensions) == (2, encoder.dimensions) and found.dtype == np.float32
    assert encoder.name == ("resnet50" if output is None else f"resnet50:{output}")
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert np.abs(found[0] - found[1]).max() > 5e-5, "a difference counts more than the tolerance"


def test_resnet152_is_torchvisions(monkeypatch):
    monkeypatch.setattr(image_encoders, "pick_dtype", lambda *_: torch.float32)
    network, tensors = drawn("resnet152")
    encoder = ResNetEncoder("resnet152", device="cpu", tensors=tensors)
    picture = strokes(120, 90)
    np.testing.assert_allclose(encoder.embed([picture]), outputs(network, THESIS(picture))["pool"], atol=5e-6)
    assert (encoder.name, encoder.dimensions) == ("resnet152", 2048)


def test_fingerprints_tell_networks_outputs_and_preparations_apart(resnet50):
    _, tensors = resnet50
    found = {ResNetEncoder("resnet50", output, device="cpu", tensors=tensors).fingerprint for output in (None, "pool")}
    assert len(found) == 2 and all(len(fingerprint) == 16 for fingerprint in found)


def test_weights_that_are_nowhere_are_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("LIENZO_CACHE", str(tmp_path))
    monkeypatch.delenv("LIENZO_WEIGHTS", raising=False)
    nowhere = weights.Download("http://127.0.0.1:9/resnet152-394f9c45.pth")
    monkeypatch.setitem(weights.SOURCES, "resnet152", replace(weights.SOURCES["resnet152"], origin=nowhere))
    with pytest.raises(WeightsUnavailable) as refusal:
        open_encoder("resnet152", device="cpu")
    line = str(refusal.value)
    assert "\n" not in line and "the weights 'resnet152' could not be had" in line
    assert "lienzo weights fetch resnet152 --from resnet152-394f9c45.pth" in line and "NETWORK.onnx" in line


# --- the style embedding, and several together -----------------------------------------------------------------------


def test_the_style_encoder_is_the_style_space(encoder):
    space = StyleSpace.load()
    made = []
    found = open_encoder("style", vgg19=lambda: made.append(1) or encoder)
    assert not made, "nothing is loaded before the first picture"
    pictures = [strokes(90, 70), hills(60, 80)]
    np.testing.assert_array_equal(found.embed(pictures), [space.embed(encoder, picture) for picture in pictures])
    assert (found.name, found.fingerprint, found.dimensions) == ("style", space.fingerprint, 64)
    assert found.embed([]).shape == (0, 64)


def test_joined_encoders_have_the_mean_of_their_cosines(tmp_path, encoder):
    path = write_extractor(tmp_path / "mean.onnx")
    both = open_encoder(f"style+{path}", device="cpu", vgg19=lambda: encoder)
    pictures = [strokes(90, 70), hills(60, 80)]
    rows = [part.embed(pictures) for part in both.parts]
    found = both.embed(pictures)
    assert found.shape == (2, 67) == (2, both.dimensions) and both.name == "style+mean.onnx"
    np.testing.assert_array_equal(found, join(rows))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found[0] @ found[1] == pytest.approx(np.mean([row[0] @ row[1] for row in rows]), abs=1e-6)
    assert both.fingerprint not in {part.fingerprint for part in both.parts}


def test_a_plus_in_a_path_joins_nothing(tmp_path):
    (tmp_path / "c++").mkdir()
    path = write_extractor(tmp_path / "c++" / "mean.onnx")
    assert open_encoder(f"{path}:features", device="cpu").name == "mean.onnx:features"
    assert open_encoder(f"{path}:features+{path}:with_one", device="cpu").dimensions == 7


@pytest.mark.parametrize("spec", ["", "vgg", "resnet50:layer4_3", "style:pool", "resnet101", "style+vgg", "mean.pt"])
def test_an_encoder_that_is_none_is_told_with_those_that_are(spec, encoder):
    with pytest.raises(InvalidInput, match="there is no image encoder") as refusal:
        open_encoder(spec, vgg19=lambda: encoder)
    assert refusal.value.field == "encoder"
    assert all(name in refusal.value.hint for name in ("style", "resnet50:logits", "resnet152", "NETWORK.onnx"))


def test_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("style+nets/a.onnx:out+resnet50") == f"style+{tmp_path / 'nets' / 'a.onnx'}:out+resnet50"


def test_the_option_becomes_the_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIENZO_STYLE_ENCODER", "resnet50")
    _configure(None, None, None, "auto", "auto")
    assert os.environ["LIENZO_STYLE_ENCODER"] == "resnet50"
    _configure(None, None, "a.onnx", "auto", "auto")
    assert os.environ["LIENZO_STYLE_ENCODER"] == str(tmp_path / "a.onnx")


# --- finding style pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("red", (230, 30, 30)), ("blue", (30, 30, 230)), ("rose", (230, 80, 90))):
        picture = strokes(90, 70) if name == "red" else hills(90, 70)
        Image.blend(picture, solid(colour, 90, 70), 0.8).save(folder / f"{name}.png")
    return folder


def test_style_pictures_are_found_in_the_chosen_space(folder, tmp_path, encoder):
    """Colours alone count for this finder, and the style embedding is still what clusters are asked with."""
    finder = open_encoder(str(write_extractor(tmp_path / "mean.onnx")), device="cpu")
    plain, chosen = (
        Retrieval.open(folder, lambda: encoder, finder=each, cache=tmp_path / "cache") for each in (None, finder)
    )
    assert [match.picture.id for match in chosen.style_of("red", 2)] == ["rose", "blue"]
    red = decode(folder / "red.png")
    (nearest, second, _) = chosen.style_like(red, 3)
    assert (nearest.picture.id, second.picture.id) == ("red", "rose") and nearest.distance < 1e-3
    rows = finder.embed([decode(folder / name) for name in ("red.png", "rose.png")])
    # An index keeps half floats.
    assert second.distance == pytest.approx(1 - float(rows[0] @ rows[1]), abs=1e-3)
    assert chosen.distance("red", "rose") == pytest.approx(second.distance, abs=1e-3)
    assert plain.distance("red", "rose") != pytest.approx(second.distance, abs=1e-3)
    for retrieval in (plain, chosen):
        assert retrieval.space.fingerprint == StyleSpace.load().fingerprint
        np.testing.assert_allclose(retrieval.embed(red), retrieval.index.embedding("red"), atol=1e-3)
    assert isinstance(plain.finder, StyleEncoder) and list(plain.index.spaces) == ["style"]
    assert list(chosen.index.spaces) == ["style", "mean-onnx"]


def test_the_finders_index_is_kept(folder, tmp_path, encoder):
    finder = open_encoder(str(write_extractor(tmp_path / "mean.onnx")), device="cpu")
    seen: list[int] = []
    for _ in range(2):
        Retrieval.open(
            folder,
            lambda: encoder,
            finder=finder,
            cache=tmp_path / "cache",
            progress=lambda stage, done, total: seen.append(stage),
        )
    assert seen and seen.count(seen[-1]) < 4, "the index is built once"
    assert len(read_folder(folder).pictures) == 3
