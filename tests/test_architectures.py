"""What the tables of the networks say is what the networks do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from shared.architectures import ARCHITECTURES, RESNET50, RESNET152, VGG16, VGG19, Architecture
from shared.encoders import Encoder
from shared.errors import InvalidInput

# Those that are read by layer name.
READ = (VGG19, VGG16, RESNET50)
each_architecture = pytest.mark.parametrize("architecture", READ, ids=[a.name for a in READ])
each_layer = pytest.mark.parametrize(
    ("architecture", "layer"),
    [pytest.param(a, layer, id=f"{a.name} {layer}") for a in READ for layer in a.layers],
)


def build(architecture: Architecture, fill: Callable, width: int | None = None, **options) -> Encoder:
    """A network with the weights ``fill(outputs, inputs, kernel, kernel)`` and no biases.

    Where ``width`` is given, that is how many channels there are at every layer; a picture keeps its three.
    """
    tensors = {}
    for name, (outputs, inputs, kernel) in {"input": (3, 3, 1), **architecture.convolutions}.items():
        outputs, inputs = (n if n == 3 else width or n for n in (outputs, inputs))
        tensors[f"{name}.weight"] = fill(outputs, inputs, kernel, kernel)
        tensors[f"{name}.bias"] = torch.zeros(outputs)
    return Encoder(tensors, architecture, **options)


def averages(*shape: int) -> torch.Tensor:
    """Weights that are all positive: an activation depends on all that it sees, and shows it."""
    return torch.full(shape, 1 / math.prod(shape[1:]))


def noise() -> Callable[..., torch.Tensor]:
    """Weights that keep activations of about one size from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))


def activations(architecture: Architecture, encoder: Encoder, height: int, width: int) -> dict[str, torch.Tensor]:
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return encoder(picture, architecture.layers)


# --- the tables against the networks -------------------------------------------------------------------------------


@each_architecture
@torch.no_grad()
def test_channels_scale_and_size_are_those_of_the_activations(architecture):
    """At the real widths: weights of any other shape than the table's would not fit together."""
    found = activations(architecture, build(architecture, noise()), 64, 96)
    assert found.keys() == architecture.layers.keys()
    for layer, tensor in found.items():
        scale = architecture[layer].scale
        assert tensor.shape == (1, architecture[layer].channels, 64 // scale, 96 // scale), layer
        assert tensor.shape[-2:] == architecture.size(layer, 64, 96), layer


@each_architecture
@torch.no_grad()
def test_size_is_that_of_the_activations_for_any_picture(architecture):
    encoder = build(architecture, noise(), width=1)
    for height, width in [(32, 33), (34, 63), (65, 47), (100, 127), (129, 71), (96, 62), (95, 94)]:
        for layer, tensor in activations(architecture, encoder, height, width).items():
            assert tensor.shape[-2:] == architecture.size(layer, height, width), (layer, height, width)


def test_nothing_is_left_of_a_picture_that_is_too_small():
    assert VGG19.size("relu4_2", 7, 40) == (0, 5)
    assert VGG19.size("relu4_2", 8, 8) == (1, 1)
    assert VGG16.size("pool5", 1, 1) == (0, 0)
    assert RESNET50.size("layer4_3", 1, 33) == (1, 2)


@each_layer
def test_an_activation_depends_on_nothing_beyond_its_reach(architecture, layer):
    """And on all within it, but for a strip of less than a scale: VGG's poolings all lean to one side."""
    step = architecture[layer]
    place = step.reach // step.scale + 2
    side = (2 * place + 1) * step.scale
    # Averages, because the gradient of a maximum is that of one pixel of its window.
    encoder = build(architecture, averages, width=1, pooling="average", dtype=torch.float64)
    picture = torch.ones(1, 3, side, side, requires_grad=True)
    encoder(picture, [layer])[layer][0, 0, place, place].backward()
    assert (picture.grad >= 0).all()
    seen = picture.grad[0].sum(0) > 0
    for pixels in (seen.any(0), seen.any(1)):
        distances = pixels.nonzero().flatten() - place * step.scale
        left, right = -int(distances.min()), int(distances.max())
        assert step.reach == max(left, right)
        assert step.reach - min(left, right) < step.scale


@each_architecture
@torch.no_grad()
def test_a_pixel_just_outside_the_reach_changes_nothing(architecture):
    """The same the other way round, with random weights and maxima."""
    layer = list(architecture.style_layers)[-1]
    step = architecture[layer]
    encoder = build(architecture, noise(), width=8)
    place = step.reach // step.scale + 2
    side = (2 * place + 1) * step.scale
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    middle = place * step.scale

    def look(x: int) -> torch.Tensor:
        changed = picture.clone()
        changed[..., x] = 1 - changed[..., x]
        return encoder(changed, [layer])[layer][0, :, place, place]

    before = encoder(picture, [layer])[layer][0, :, place, place]
    for x in (middle - step.reach - 1, middle + step.reach + 1):
        assert torch.equal(look(x), before)
    assert not torch.equal(look(middle), before)


# --- what there is -------------------------------------------------------------------------------------------------


def test_the_layers_of_vgg_are_named_as_in_the_literature():
    assert tuple(VGG19.layers)[:5] == ("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1")
    assert len(VGG19.layers) == 16 + 16 + 5 and len(VGG16.layers) == 13 + 13 + 5
    names = ("conv1_1", "relu2_2", "pool3", "relu4_2", "conv5_4")
    assert [VGG19[name].channels for name in names] == [64, 128, 256, 512, 512]
    assert [VGG19[name].scale for name in names] == [1, 2, 8, 8, 16]
    assert "conv3_4" in VGG19.layers and "conv3_4" not in VGG16.layers


def test_the_layers_of_resnet_are_its_first_three_and_its_blocks():
    assert tuple(RESNET50.layers)[:4] == ("conv1", "relu1", "pool1", "layer1_1")
    assert len(RESNET50.layers) == 3 + (3 + 4 + 6 + 3)
    names = ("conv1", "layer1_3", "layer2_1", "layer3_6", "layer4_3")
    assert [RESNET50[name].channels for name in names] == [64, 256, 512, 1024, 2048]
    assert [RESNET50[name].scale for name in names] == [2, 4, 8, 16, 32]
    assert RESNET50["layer4_3"].reach == 213, "a receptive field of 427 pixels"
    assert len(RESNET152.layers) == 3 + (3 + 8 + 36 + 3) and "layer3_36" in RESNET152.layers
    assert RESNET50.classifier == RESNET152.classifier == (1000, RESNET152["layer4_3"].channels)
    assert VGG16.classifier is VGG19.classifier is None, "it is left out"


@pytest.mark.parametrize(
    ("architecture", "convolutions", "parameters"),
    [
        (VGG16, 13, 14_714_688),
        (VGG19, 16, 20_024_384),
        (RESNET50, 53, 25_557_032 - 2_049_000 - 26_560),
        (RESNET152, 155, 60_192_808 - 2_049_000 - 75_712),
    ],
    ids=["vgg16", "vgg19", "resnet50", "resnet152"],
)
def test_convolutions_have_the_published_number_of_parameters(architecture, convolutions, parameters):
    """Without the classifier. Folding leaves one of two trained numbers for each channel (ResNet-50: 26 560)."""
    table = architecture.convolutions.values()
    assert len(table) == convolutions
    assert sum(outputs * (inputs * kernel**2 + 1) for outputs, inputs, kernel in table) == parameters


def test_architectures_go_by_their_names():
    assert all(name == architecture.name for name, architecture in ARCHITECTURES.items())
    assert [ARCHITECTURES[name] for name in ("vgg19", "vgg16", "resnet50")] == list(READ)
    assert [a for a in ARCHITECTURES.values() if a.layers] == [*READ, RESNET152]


@each_architecture
def test_the_default_layers_exist_and_their_weights_sum_to_one(architecture):
    for layers in (architecture.content_layers, architecture.style_layers):
        assert architecture.check(layers) == tuple(layers)
        assert sum(layers.values()) == pytest.approx(1)
    scales = [architecture[name].scale for name in architecture.style_layers]
    assert len(scales) == 5 and scales == sorted(set(scales)), "style is compared from fine to coarse"


def test_the_default_layers_of_vgg_are_those_of_gatys():
    for architecture in (VGG16, VGG19):
        assert architecture.content_layers == {"relu4_2": 1}
        assert architecture.style_layers == {f"relu{block}_1": 0.2 for block in range(1, 6)}


@each_architecture
def test_the_tables_cannot_be_changed(architecture):
    for table in (
        architecture.layers,
        architecture.convolutions,
        architecture.content_layers,
        architecture.style_layers,
    ):
        with pytest.raises(TypeError):
            table["relu1_1"] = None


# --- asking for layers ---------------------------------------------------------------------------------------------


@each_architecture
def test_what_is_asked_for_is_returned_in_its_order(architecture):
    first, second = list(architecture.layers)[:2]
    assert architecture.check(iter([second, first])) == (second, first)
    assert [step.name for step in architecture.through([second, first])] == [first, second]


@each_architecture
@pytest.mark.parametrize("name", ["relu6_1", "Relu1_1", "layer5_1", "layer1_0", "", "features.0"])
def test_an_unknown_layer_is_refused_with_the_list_of_those_that_exist(architecture, name):
    known = next(iter(architecture.layers))
    for ask in (
        lambda: architecture.check([known, name]),
        lambda: architecture.through([known, name]),
        lambda: architecture[name],
        lambda: architecture.size(name, 64, 64),
    ):
        with pytest.raises(InvalidInput) as refusal:
            ask()
        assert repr(name) in refusal.value.message and architecture.name in refusal.value.message
        assert repr(known) not in refusal.value.message
        assert refusal.value.field == "layers"
        assert refusal.value.hint == f"Layers are: {', '.join(architecture.layers)}."


def test_the_layers_of_one_network_are_not_those_of_another():
    for architecture, foreign in ((VGG16, "conv3_4"), (VGG19, "layer1_1"), (RESNET50, "relu4_2")):
        with pytest.raises(InvalidInput, match=f"unknown {architecture.name} layer '{foreign}'"):
            architecture[foreign]


@each_architecture
def test_no_layer_at_all_is_refused(architecture):
    for ask in (architecture.check, architecture.through):
        with pytest.raises(InvalidInput, match="no layer was named") as refusal:
            ask([])
        assert all(layer in refusal.value.hint for layer in architecture.layers)
