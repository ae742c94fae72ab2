"""The transform network paints any size at its own size, without frames and without checkerboards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_network
from torch import nn

from shared.errors import InvalidInput
from shared.transform_network import MIN_SIDE, RESIDUAL_BLOCKS, STRIDE, WIDTHS, SharedNetwork, TransformNetwork


@pytest.fixture(scope="module")
def network() -> TransformNetwork:
    return random_network("quarter")


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(st.integers(MIN_SIDE, 70), st.integers(MIN_SIDE, 70), st.integers(1, 2))
@torch.no_grad()
def test_every_size_keeps_its_size_and_range(network, height, width, batch):
    painted = network(picture(height, width, batch))
    assert painted.shape == (batch, 3, height, width)
    assert painted.dtype == torch.float32
    assert painted.min() >= 0 and painted.max() <= 1
    assert painted.isfinite().all()


@torch.no_grad()
def test_the_output_lies_strictly_inside_the_range(network):
    painted = TransformNetwork("quarter")(picture(40, 40))
    assert painted.min() > 0 and painted.max() < 1, "a sigmoid, not a clamp: gradients never vanish altogether"


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 34), (35, 47), (46, 61)], ids=str)
def test_gradients_reach_every_weight_at_every_size(size):
    network = TransformNetwork("quarter")
    with torch.enable_grad():
        network(picture(*size)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def parameters(width: str) -> int:
    return sum(parameter.numel() for parameter in TransformNetwork(width).parameters())


def convolution_weights(n: int) -> int:
    """c9s1-n, d2n, d4n, five residual blocks of two, u2n, un, c9s1-3 with its bias."""
    ends = 2 * 81 * 3 * n + 3
    reductions = enlargements = 9 * (n * 2 * n + 2 * n * 4 * n)
    return ends + reductions + 5 * 2 * 9 * (4 * n) ** 2 + enlargements


@pytest.mark.parametrize("width", WIDTHS)
def test_the_parameters_are_the_papers(width):
    n = WIDTHS[width]
    normalised = n + 2 * n + 4 * n + RESIDUAL_BLOCKS * 2 * 4 * n + 2 * n + n
    assert parameters(width) == convolution_weights(n) + 2 * normalised


def test_full_width_differs_from_the_usual_count_by_the_biases_that_normalisation_takes_away():
    """1,679,235 is the usual implementation's count. Its convolutions keep a bias before each instance normalisation,
    one of each of the 1,600 normalised channels, which has no effect there."""
    assert parameters("full") == 1_679_235 - 1_600


def test_no_normalised_convolution_has_a_bias_and_the_last_has():
    network = TransformNetwork("quarter")
    biased = [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None
    ]
    assert biased == ["leave"]


def test_nothing_is_transposed_and_everything_is_padded_by_reflection():
    modules = list(TransformNetwork("half").modules())
    assert not any(isinstance(module, nn.modules.conv._ConvTransposeNd) for module in modules)
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 16
    assert {convolution.padding_mode for convolution in convolutions} == {"reflect"}
    graph = torch.export.export(TransformNetwork("quarter").eval(), (picture(40, 40),)).graph
    operators = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert any("conv2d" in name for name in operators) and any("upsample_nearest2d" in name for name in operators)
    assert not any("transpose" in name for name in operators)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (32, 80), (61, 75)], ids=str)
@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_a_constant_picture_has_no_frame(size, shade):
    painted = constant_network()(torch.full((1, 3, *size), shade, dtype=torch.float64))
    middle = painted[..., size[0] // 2 : size[0] // 2 + 1, size[1] // 2 : size[1] // 2 + 1]
    assert (painted - middle).abs().max() < 1e-4
    assert float(middle.min()) > 0.01 and float(middle.max()) < 0.99, "not hidden by a saturated sigmoid"


@torch.no_grad()
def test_the_constant_picture_would_show_zero_padding():
    """The test above can fail: the same network padded with zeros draws a frame."""
    network = constant_network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    painted = network(torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64))
    assert (painted - painted[..., 32:33, 32:33]).abs().max() > 0.05


def constant_network() -> TransformNetwork:
    """A network for constant pictures: each of its normalisations would enlarge what rounding leaves 300 times, so they
    divide by a spread of at least 1 here, in fp64."""
    network = random_network("quarter").double()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.eps = 1.0
    return network


@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_one_another(network):
    pictures = picture(37, 45, batch=3)
    together = network(pictures)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], network(pictures[i : i + 1]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_training_and_evaluation_paint_alike(network):
    """Instance normalisation keeps no running statistics."""
    evaluated = network(picture(40, 44))
    network.train()
    try:
        assert torch.equal(network(picture(40, 44)), evaluated)
    finally:
        network.eval()


@torch.no_grad()
def test_contrast_of_the_content_is_normalised_away(network):
    """What instance normalisation is for (Ulyanov et al. 2016): a duller picture is painted alike."""
    content = picture(64, 64)
    dull = 0.5 + (content - 0.5) * 0.5
    torch.testing.assert_close(network(dull), network(content), rtol=0, atol=0.02)


@torch.no_grad()
def test_the_stride_is_what_the_module_says(network):
    shapes = []
    handle = network.body[-1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[-2:]))
    network(picture(64, 96))
    handle.remove()
    assert shapes == [(64 // STRIDE, 96 // STRIDE)]


def test_an_unknown_width_is_refused():
    with pytest.raises(InvalidInput, match="'wide', expected one of full, half, quarter") as refusal:
        TransformNetwork("wide")
    assert refusal.value.field == "width"


# --- one body, many styles -----------------------------------------------------------------------------------------


@pytest.fixture
def shared_network(network) -> SharedNetwork:
    shared = SharedNetwork(network, 3)
    with torch.no_grad():
        shared.styles.add_(0.3 * torch.randn(shared.styles.shape, generator=torch.Generator().manual_seed(5)))
    return shared


def test_scales_are_two_numbers_a_normalised_channel(network):
    channels = [norm.num_features for norm in network.norms()]
    n = WIDTHS["quarter"]
    assert channels == [n, 2 * n, 4 * n, *([4 * n] * 2 * RESIDUAL_BLOCKS), 2 * n, n]
    assert network.scales().shape == (2 * sum(channels),)
    assert torch.equal(network.scales()[:n], network.enter.norm.weight)
    assert torch.equal(network.scales()[-n:], network.up2.norm.bias)


@torch.no_grad()
def test_given_scales_take_the_place_of_the_networks_own(network):
    pictures = picture(35, 46, batch=2)
    torch.testing.assert_close(network(pictures, network.scales().repeat(2, 1)), network(pictures), atol=1e-5, rtol=0)
    other = network.with_scales(network.scales() * 1.5)
    mixed = network(pictures, torch.stack([network.scales(), 1.5 * network.scales()]))
    torch.testing.assert_close(mixed[:1], network(pictures[:1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[1:], other(pictures[1:]), atol=1e-5, rtol=0)
    assert (mixed[1:] - network(pictures[1:])).abs().max() > 0.01
    assert torch.equal(other.down1.conv.weight, network.down1.conv.weight), "the body is the same"


@torch.no_grad()
@pytest.mark.parametrize("mixture", [[1.0, 0, 0], [0, 0, 1.0], [0.2, 0.3, 0.5]], ids=str)
def test_a_mixture_is_a_network_of_its_own(shared_network, mixture):
    pictures, mixture = picture(33, 47), torch.tensor(mixture)
    own = shared_network.network_of(mixture)
    torch.testing.assert_close(shared_network(pictures, mixture[None]), own(pictures), atol=1e-5, rtol=0)
    assert type(own) is TransformNetwork
    expected = sum(share * scales for share, scales in zip(mixture, shared_network.styles, strict=True))
    torch.testing.assert_close(own.scales(), expected)


def test_each_picture_teaches_its_own_style_and_all_teach_the_body(network):
    shared = SharedNetwork(network, 3)
    assert torch.equal(shared.styles, network.scales().expand(3, -1)), "all start from the body's"
    shared(picture(32, 32, batch=2), torch.eye(3)[[0, 2]]).square().mean().backward()
    moved = shared.styles.grad.abs().sum(1)
    assert moved[0] > 0 and moved[1] == 0 and moved[2] > 0
    trained = {name for name, parameter in shared.named_parameters() if parameter.requires_grad}
    assert "styles" in trained and "network.leave.weight" in trained
    assert not any(".norm." in name for name in trained)
