"""Each network computes what the published one computes, at the layer that was named and no deeper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shared import weights
from shared.architectures import RESNET50, VGG16, VGG19
from shared.encoders import Encoder, load_encoder
from shared.errors import InvalidInput
from shared.torchvision_compat import import_torchvision

GOLDEN = Path(__file__).parent / "golden"
golden = json.loads((GOLDEN / "vgg19.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """The picture of the golden values, by their generator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GOLDEN)
        import generate_vgg19
    return generate_vgg19.picture().float()


@pytest.fixture(scope="module")
def activations(encoder, picture) -> dict[str, torch.Tensor]:
    """Every layer of the golden picture."""
    return encoder(picture, golden)


def random_picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def convolutions(monkeypatch) -> list[torch.Size]:
    """The weights' shapes of the convolutions that run from now on."""
    seen = []
    really = F.conv2d

    def counted(x, weight, *args, **kwargs):
        seen.append(weight.shape)
        return really(x, weight, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", counted)
    return seen


def test_a_network_is_loaded_by_its_name_for_a_device_in_a_precision(vgg19, monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "load", lambda name, *, progress: (asked.append((name, progress)), vgg19)[1])
    loaded = load_encoder(device="cpu", pooling="average", precision="bfloat16", progress=print)
    assert asked == [("vgg19", print)]
    assert (loaded.architecture, loaded.pooling, loaded.dtype, loaded.device.type) == (
        VGG19, "average", torch.bfloat16, "cpu"
    )  # fmt: skip
    asked.clear()
    with pytest.raises(InvalidInput, match="device is 'tpu'"):
        load_encoder(device="tpu")
    assert not asked, "nothing is fetched for a device that is not there"


# --- values --------------------------------------------------------------------------------------------------------


def test_the_golden_values_cover_every_layer_but_the_last_pooling():
    assert tuple(golden) == tuple(VGG19.layers)[:-1]


@pytest.mark.parametrize("layer", golden)
def test_activations_are_the_published_networks(activations, layer):
    expected, found = golden[layer], activations[layer].double()
    spread = expected["std"]
    assert list(found.shape) == expected["shape"]
    assert float(found.mean()) == pytest.approx(expected["mean"], abs=1e-4 * spread)
    assert float(found.std(correction=0)) == pytest.approx(spread, rel=1e-4)
    assert float(found.min()) == pytest.approx(expected["min"], abs=1e-3 * spread)
    assert float(found.max()) == pytest.approx(expected["max"], abs=1e-3 * spread)
    last = found[0, -1]
    points = [last[0, 0], last[-1, -1], last[last.shape[0] // 2, last.shape[1] // 2]]
    assert [float(point) for point in points] == pytest.approx(expected["points"], abs=1e-3 * spread)


def test_the_activations_of_a_photograph_like_picture_are_normalised(encoder):
    """The network of Gatys et al. was rescaled so that mean activations are of one size at every layer."""
    smooth = F.interpolate(random_picture(12, 16), size=(96, 128), mode="bicubic").clamp(0, 1)
    layers = [f"relu{block}_1" for block in range(1, 6)]
    for layer, found in encoder(smooth, layers).items():
        assert 0.2 < float(found.mean()) < 5, layer


def test_pictures_of_a_batch_do_not_see_one_another(encoder):
    pictures = random_picture(32, 48, batch=2)
    both = encoder(pictures, ["relu3_1"])["relu3_1"]
    for i in range(2):
        alone = encoder(pictures[i : i + 1], ["relu3_1"])["relu3_1"]
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-3)


# --- torchvision's networks ----------------------------------------------------------------------------------------


def converted(name: str, state: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """What our own conversion makes of a checkpoint with ``state``."""
    file = folder / "checkpoint.pth"
    torch.save(dict(state), file)
    pinned = {"checkpoint_sha256": sha256(file.read_bytes()).hexdigest(), "checkpoint_size": file.stat().st_size}
    return weights.load(replace(weights.SOURCES[name], **pinned), path=file)


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """As torchvision prepares pictures for all of these networks."""
    preset = import_torchvision().models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1) for values in (preset.mean, preset.std))
    return (pictures.double() - mean) / std


def compare(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for layer, theirs in expected.items():
        spread = float(theirs.std())
        assert spread > 0, layer
        torch.testing.assert_close(
            found[layer].double(), theirs, rtol=1e-4, atol=1e-4 * spread, msg=lambda text, name=layer: f"{name}: {text}"
        )


# Sides that every stride divides, and sides where windows overhang the border.
SIZES = [(64, 64), (75, 102)]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_resnet50_is_torchvisions_at_every_layer(tmp_path, size):
    torch.manual_seed(0)
    network = import_torchvision().models.resnet50(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
    # A variance of next to nothing is where the constant that is added to it shows.
    network.bn1.running_var[::7] = 1e-5
    tensors = converted("resnet50", network.state_dict(), tmp_path)

    picture = random_picture(*size)
    network.double()
    x, expected = normalised(picture), {}
    x = expected["conv1"] = network.bn1(network.conv1(x))
    x = expected["relu1"] = F.relu(x)
    x = expected["pool1"] = network.maxpool(x)
    for stage in range(1, 5):
        for i, block in enumerate(getattr(network, f"layer{stage}"), start=1):
            x = expected[f"layer{stage}_{i}"] = block(x)
    assert expected.keys() == RESNET50.layers.keys()
    compare(Encoder(tensors, RESNET50)(picture, RESNET50.layers), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "letter", "architecture"), [("vgg16", "D", VGG16), ("vgg19-torchvision", "E", VGG19)])
def test_vgg_is_torchvisions_at_every_layer(tmp_path, name, letter, architecture, size):
    torch.manual_seed(0)
    vgg = import_torchvision().models.vgg
    # Without the classifier, which is four fifths of a VGG.
    features = vgg.make_layers(vgg.cfgs[letter]).eval()
    for module in features:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            module.bias.normal_(0, 0.3)
    tensors = converted(name, {f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path)

    picture = random_picture(*size)
    x, expected = normalised(picture), {}
    # Their rectifiers overwrite what they get.
    for layer, module in zip(architecture.layers, features.double(), strict=True):
        x = expected[layer] = module(x.clone())
    compare(Encoder(tensors, architecture)(picture, architecture.layers), expected)


@torch.no_grad()
def test_average_pooling_of_resnet_leaves_the_padding_out():
    """A picture of one colour stays one at the first pooling, border included."""
    tensors = {}
    for name, (outputs, inputs, kernel) in {"input": (3, 3, 1), **RESNET50.convolutions}.items():
        tensors[f"{name}.weight"] = torch.zeros(outputs, inputs, kernel, kernel)
        tensors[f"{name}.bias"] = torch.full((outputs,), 2.0)
    found = Encoder(tensors, RESNET50, pooling="average")(random_picture(32, 40), ["pool1"])["pool1"]
    torch.testing.assert_close(found, torch.full((1, 64, 8, 10), 2.0))


# --- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu6_1", "conv1_3", "relu4_5", "pool6", "Relu1_1", "", "features.0"])
def test_an_unknown_layer_is_refused_with_the_list_of_those_that_exist(encoder, name):
    with pytest.raises(InvalidInput) as refusal:
        encoder(random_picture(32, 32), ["relu1_1", name])
    assert repr(name) in refusal.value.message
    assert refusal.value.field == "layers"
    assert all(layer in refusal.value.hint for layer in VGG19.layers)


def test_no_layer_at_all_is_refused(encoder):
    with pytest.raises(InvalidInput, match="no layer was named"):
        encoder(random_picture(32, 32), [])


@pytest.mark.parametrize(("layer", "smallest"), [("conv1_1", 1), ("pool1", 2), ("relu4_2", 8), ("relu5_1", 16)])
def test_the_smallest_picture_of_a_layer_works_and_a_smaller_one_is_refused(encoder, layer, smallest):
    assert encoder(random_picture(smallest, smallest), [layer])[layer].shape[-2:] == (
        (1, 1) if smallest > 1 else (smallest, smallest)
    )
    if smallest == 1:
        return
    for height, width in ((smallest - 1, 40), (40, smallest - 1)):
        with pytest.raises(InvalidInput) as refusal:
            encoder(random_picture(height, width), ["relu1_1", layer])
        assert f"{width}×{height}" in refusal.value.message, "the size that was given"
        assert f"{smallest}×{smallest}" in refusal.value.message, "the size that would do"
        assert layer in refusal.value.message
        assert refusal.value.field == "size"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(["conv1_1"], 1), (["relu1_1"], 1), (["pool2", "relu1_1"], 4), (["relu4_2"], 10), (["relu5_1", "relu4_2"], 13)],
)
def test_the_network_runs_no_deeper_than_asked(encoder, convolutions, layers, expected):
    encoder(random_picture(32, 32), layers)
    assert convolutions[0] == (3, 3, 1, 1), "the input's normalisation"
    assert len(convolutions) == 1 + expected


def test_the_order_and_number_of_names_do_not_matter(encoder):
    picture = random_picture(32, 32)
    once, again = encoder(picture, ["relu2_1", "relu1_1"]), encoder(picture, iter(["relu1_1", "relu2_1", "relu2_1"]))
    assert once.keys() == again.keys()
    for layer in once:
        assert torch.equal(once[layer], again[layer])


@pytest.mark.parametrize("layer", ["conv1_1", "conv2_2", "conv5_1"])
def test_a_convolution_is_not_overwritten_by_the_rectifier_after_it(encoder, layer):
    rectified = layer.replace("conv", "relu")
    picture = random_picture(32, 32)
    both = encoder(picture, [layer, rectified])
    assert both[layer].min() < 0, "raw values"
    assert torch.equal(both[rectified], both[layer].clamp_min(0))
    assert torch.equal(both[layer], encoder(picture, [layer])[layer])


# --- options -------------------------------------------------------------------------------------------------------


def test_average_pooling(vgg19):
    average, maximum = Encoder(vgg19, pooling="average"), Encoder(vgg19)
    picture = random_picture(33, 34)
    layers = ["relu1_2", "pool1"]
    found, other = average(picture, layers), maximum(picture, layers)
    assert torch.equal(found["relu1_2"], other["relu1_2"])
    torch.testing.assert_close(found["pool1"], F.avg_pool2d(found["relu1_2"], 2))
    assert torch.equal(other["pool1"], F.max_pool2d(other["relu1_2"], 2))
    assert (other["pool1"] >= found["pool1"] - 1e-6).all() and not torch.equal(other["pool1"], found["pool1"])


def test_another_pooling_is_refused(vgg19):
    with pytest.raises(InvalidInput, match="'min', expected one of max, average") as refusal:
        Encoder(vgg19, pooling="min")
    assert refusal.value.field == "pooling"


def test_bfloat16_stays_close_to_fp32(vgg19, encoder, picture, activations):
    layers = ["relu1_1", "relu2_1", "relu3_1", "relu4_2", "relu5_1"]
    found = Encoder(vgg19, dtype=torch.bfloat16)(picture, layers)
    for layer in layers:
        assert found[layer].dtype == torch.bfloat16
        difference = (found[layer].float() - activations[layer]).norm() / activations[layer].norm()
        # 8 bits of mantissa are 0.4 %, a little more after a dozen layers; the first layer sees a picture in fp32.
        assert difference < (0.01 if layer == "relu1_1" else 0.05), layer


def test_pictures_in_any_float_type_or_layout_give_the_same(encoder):
    picture = random_picture(32, 32)
    expected = encoder(picture, ["relu2_1"])["relu2_1"]
    for other in (picture.double(), picture.contiguous(memory_format=torch.channels_last), picture.flip(-1).flip(-1)):
        torch.testing.assert_close(encoder(other, ["relu2_1"])["relu2_1"], expected, rtol=1e-4, atol=1e-4)


# --- frozen --------------------------------------------------------------------------------------------------------


def test_the_network_is_frozen_but_lets_gradients_through(encoder):
    assert list(encoder.parameters()) == []
    assert not any(tensor.requires_grad for tensor in encoder.buffers())
    before = [tensor.clone() for tensor in encoder.buffers()]
    picture = random_picture(32, 32).requires_grad_()
    encoder(picture, ["relu3_1"])["relu3_1"].square().mean().backward()
    assert picture.grad.isfinite().all() and picture.grad.abs().max() > 0
    assert all(torch.equal(now, then) for now, then in zip(encoder.buffers(), before, strict=True))


def test_the_pictures_gradient_matches_a_finite_difference(encoder):
    picture = random_picture(16, 16)
    direction = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))

    def loss(x: torch.Tensor) -> torch.Tensor:
        found = encoder(x, ["conv1_1", "relu1_1", "relu2_1"])
        return found["conv1_1"].square().mean() + found["relu1_1"].mean() + found["relu2_1"].square().mean()

    x = picture.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-3
    with torch.no_grad():
        difference = (loss(picture + step * direction) - loss(picture - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-2)


def test_the_callers_picture_and_weights_stay_as_they_were(vgg19):
    picture, weights = random_picture(32, 32), {name: tensor.clone() for name, tensor in vgg19.items()}
    before = picture.clone()
    Encoder(weights)(picture, ["relu1_1", "relu2_1"])
    assert torch.equal(picture, before)
    assert all(torch.equal(weights[name], vgg19[name]) for name in vgg19)


def test_weights_are_not_saved_with_a_state_dict(encoder):
    """80 MB that have a file of their own."""
    assert encoder.state_dict() == {}
