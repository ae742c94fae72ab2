"""The losses are the papers' own, whatever the layout, the size and the precision of the activations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidInput
from shared.losses import content_loss, gram_matrix, grid_energy, style_loss, total_variation
from shared.perceptual_loss import LossSettings, PerceptualLoss

GOLDEN = Path(__file__).parent / "golden"
golden = json.loads((GOLDEN / "losses.json").read_text(encoding="utf-8"))

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**31)


def tensor(name: str) -> torch.Tensor:
    return torch.tensor(golden[name], dtype=torch.float64)[None]


def random(shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- the papers' formulas ------------------------------------------------------------------------------------------


def test_the_golden_values_are_what_their_generator_computes(monkeypatch):
    monkeypatch.syspath_prepend(GOLDEN)
    monkeypatch.delitem(sys.modules, "generate_losses", raising=False)
    import generate_losses

    assert generate_losses.golden() == golden


def test_gram_is_equation_3_over_the_number_of_positions():
    features = tensor("features")
    positions = features.shape[-2] * features.shape[-1]
    torch.testing.assert_close(gram_matrix(features) * positions, tensor("gram"))


def test_content_loss_is_equation_1_times_2_over_the_number_of_activations():
    features = tensor("features")
    ours = content_loss(features, tensor("target"))
    assert float(ours) * features.numel() / 2 == pytest.approx(golden["content_loss"], rel=1e-12)


def test_style_loss_is_four_times_equation_4():
    ours = style_loss(gram_matrix(tensor("features")), gram_matrix(tensor("target")))
    assert float(ours) / 4 == pytest.approx(golden["style_loss"], rel=1e-12)


def test_the_gradient_of_the_style_loss_is_four_times_equation_6():
    features = tensor("features").requires_grad_()
    style_loss(gram_matrix(features), gram_matrix(tensor("target"))).backward()
    torch.testing.assert_close(features.grad.flatten(2) / 4, tensor("style_gradient"))


def test_pictures_of_two_sizes_are_compared_position_by_position():
    """Gatys' sums over 20 and over 14 positions could not be compared; their means can."""
    expected = (tensor("gram") / 20 - tensor("gram_other") / 14).square().mean()
    torch.testing.assert_close(style_loss(gram_matrix(tensor("features")), gram_matrix(tensor("other"))), expected)


def test_total_variation_is_the_mean_over_both_directions():
    ours = total_variation(tensor("features"))
    assert float(ours) == pytest.approx(
        golden["variation_down"] / (3 * 3 * 5) + golden["variation_across"] / (3 * 4 * 4)
    )


# --- what a Gram matrix is -----------------------------------------------------------------------------------------


@given(shapes, seeds)
def test_a_gram_matrix_is_symmetric_and_positive_semi_definite(shape, seed):
    gram = gram_matrix(random(shape, seed))
    assert gram.shape == (shape[0], shape[1], shape[1])
    torch.testing.assert_close(gram, gram.mT, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(gram).min() > -1e-10


@given(shapes, seeds)
def test_a_gram_matrix_follows_its_channels_and_ignores_where_things_are(shape, seed):
    features = random(shape, seed)
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randperm(shape[1], generator=generator)
    positions = torch.randperm(shape[2] * shape[3], generator=generator)
    gram = gram_matrix(features)
    torch.testing.assert_close(gram_matrix(features[:, channels]), gram[:, channels][:, :, channels])
    torch.testing.assert_close(gram_matrix(features.flatten(2)[..., positions].reshape(shape)), gram)


@given(shapes, seeds)
def test_memory_layout_changes_nothing(shape, seed):
    features = random(shape, seed)
    weights = random((shape[0], shape[1], shape[1]), seed + 1)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = features.clone(memory_format=layout).requires_grad_()
        gram = gram_matrix(x)
        (gram * weights).sum().backward()
        results.append((gram, x.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_a_view_that_is_contiguous_in_no_layout():
    features = random((2, 5, 8, 6))[:, 1:4, ::2, 1:]
    torch.testing.assert_close(gram_matrix(features), gram_matrix(features.contiguous()))


def test_each_picture_of_a_batch_has_its_own_gram_matrix():
    features = random((3, 4, 5, 6))
    alone = torch.cat([gram_matrix(one) for one in features.split(1)])
    torch.testing.assert_close(gram_matrix(features), alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_summed_in_fp32(dtype):
    exact = random((1, 8, 40, 40)).relu().to(dtype)
    wide = exact.double().requires_grad_()
    expected = gram_matrix(wide)
    expected.square().sum().backward()

    narrow = exact.clone().requires_grad_()
    gram = gram_matrix(narrow)
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram.double(), expected, rtol=1e-5, atol=1e-6)
    gram.square().sum().backward()
    assert narrow.grad.dtype == dtype
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=2e-2, atol=2e-2 * float(wide.grad.abs().max()))
    for loss in (content_loss(exact, exact + 1), total_variation(exact)):
        assert loss.dtype == torch.float32


# --- zeros, gradients, sizes ---------------------------------------------------------------------------------------


@given(shapes, seeds)
def test_a_picture_has_no_loss_against_itself(shape, seed):
    features = random(shape, seed, torch.float32)
    assert content_loss(features, features.clone()) == 0
    assert style_loss(gram_matrix(features), gram_matrix(features.clone())) == 0


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1))
def test_a_constant_picture_has_no_variation(height, width, shade):
    assert total_variation(torch.full((2, 3, height, width), shade)) == 0


def test_variation_of_a_known_picture():
    """Columns 0, 1, 0, 1: each of the steps across is 1, each of those down 0."""
    picture = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 3, 5, 4)
    assert total_variation(picture) == 1
    assert total_variation(picture.mT) == 1
    assert total_variation(picture / 2) == 0.25


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_gradients_match_finite_differences(layout):
    features = random((2, 3, 4, 3), 1).contiguous(memory_format=layout).requires_grad_()
    target = random((2, 3, 4, 3), 2)
    gram = gram_matrix(random((1, 3, 5, 5), 3))
    assert torch.autograd.gradcheck(gram_matrix, features)
    assert torch.autograd.gradcheck(lambda x: content_loss(x, target), features)
    assert torch.autograd.gradcheck(lambda x: style_loss(gram_matrix(x), gram), features)
    assert torch.autograd.gradcheck(total_variation, features)


def test_the_gradient_of_a_gram_matrix_is_autograds_also_for_an_asymmetric_incoming_one():
    features = random((2, 4, 3, 5), 1).requires_grad_()
    incoming = random((2, 4, 4), 2)
    (ours,) = torch.autograd.grad(gram_matrix(features), features, incoming)
    flat = features.flatten(2)
    (theirs,) = torch.autograd.grad(flat @ flat.mT / 15, features, incoming)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("times", [2, 3])
def test_losses_do_not_depend_on_how_many_pixels_there_are(times):
    """Activations of a picture tiled or enlarged by pixel repetition hold the same things, more often."""
    features, target = random((1, 4, 6, 5), 1), random((1, 4, 6, 5), 2)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(times, -1).repeat_interleave(times, -2)

    torch.testing.assert_close(gram_matrix(enlarged(features)), gram_matrix(features))
    torch.testing.assert_close(content_loss(enlarged(features), enlarged(target)), content_loss(features, target))
    torch.testing.assert_close(
        style_loss(gram_matrix(features.repeat(1, 1, times, 1)), gram_matrix(target)),
        style_loss(gram_matrix(features), gram_matrix(target)),
    )


def test_variation_means_the_same_at_every_size():
    """A fixed grain at twice the size keeps its total variation; a sum over pixels would grow fourfold."""
    grain = torch.rand(1, 3, 400, 400, generator=torch.Generator().manual_seed(0))
    assert float(total_variation(grain)) == pytest.approx(float(total_variation(grain[..., :200, :200])), rel=0.02)


def test_one_target_serves_a_whole_batch():
    grams = gram_matrix(random((3, 4, 5, 6), 1))
    target = gram_matrix(random((1, 4, 5, 6), 2))
    expected = torch.stack([style_loss(gram[None], target) for gram in grams]).mean()
    torch.testing.assert_close(style_loss(grams, target), expected)


# --- rasters -------------------------------------------------------------------------------------------------------


@given(
    st.tuples(st.integers(1, 2), st.just(3), st.integers(4, 17), st.integers(4, 17)), st.sampled_from([2, 3, 4]), seeds
)
def test_grid_energy_is_the_spectrum_on_the_rasters_own_lines(shape, period, seed):
    """By Parseval, against NumPy's Fourier transform of every row and column."""
    picture = random(shape, seed)
    expected = 0.0
    for lines in (picture.numpy(), picture.numpy().swapaxes(-1, -2)):
        length = lines.shape[-1] // period * period
        spectrum = np.fft.fft(lines[..., :length]) / length
        on_the_raster = spectrum[..., length // period :: length // period]
        expected += (np.abs(on_the_raster) ** 2).sum(-1).mean()
    assert float(grid_energy(picture, period)) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_grid_energy_of_known_pictures():
    lines = torch.tensor([1.0, 0, 0, 0]).repeat(16).expand(1, 3, 48, 64)
    assert grid_energy(lines) == 3 / 16
    assert grid_energy(lines.mT) == 3 / 16, "down as across"
    assert grid_energy(torch.full((1, 3, 33, 47), 0.3)) == 0
    assert grid_energy(torch.tensor([1.0, 0, 0, 0, 0]).repeat(16).expand(1, 3, 40, 80)) < 1e-3, "another raster"


def test_grid_energy_tells_a_raster_from_a_texture():
    texture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    raster = torch.tensor([0.1, 0, 0, 0]).repeat(64)
    assert grid_energy(texture + raster) > 1.5 * grid_energy(texture)
    assert grid_energy(texture) < 0.05 * texture.var()


def test_grid_energy_has_a_gradient_and_is_summed_in_fp32():
    picture = random((1, 3, 9, 8), dtype=torch.float32)
    assert grid_energy(picture.bfloat16()).dtype == torch.float32
    x = picture.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(grid_energy(x), x)
    direction, step = random(picture.shape, 1, torch.float32), 1e-2
    difference = (grid_energy(picture + step * direction) - grid_energy(picture - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-2)


# --- the sum of the three ------------------------------------------------------------------------------------------


def test_the_perceptual_loss_is_the_weighted_sum_of_its_terms(encoder):
    """Against the same sum, spelt out over the encoder's activations."""
    generator = torch.Generator().manual_seed(0)
    picture, content, style = (torch.rand(1, 3, size, 48, generator=generator) for size in (40, 40, 64))
    settings = LossSettings(
        content_layers={"relu3_1": 2.0, "conv2_2": 0.5},
        style_layers={"relu1_1": 0.3, "relu2_1": 0.7},
        content_weight=0.25,
        style_weight=11,
        tv_weight=7,
    )
    loss = PerceptualLoss(encoder, settings)
    terms = loss(picture, loss.content_target(content), loss.style_target(style)).values()

    def at(pictures: torch.Tensor, layer: str) -> torch.Tensor:
        return encoder(pictures, [layer])[layer].double()

    expected_content = 0.25 * (
        2.0 * F.mse_loss(at(picture, "relu3_1"), at(content, "relu3_1"))
        + 0.5 * F.mse_loss(at(picture, "conv2_2"), at(content, "conv2_2"))
    )
    expected_style = 11 * sum(
        weight * F.mse_loss(gram_matrix(at(picture, layer)), gram_matrix(at(style, layer)))
        for layer, weight in (("relu1_1", 0.3), ("relu2_1", 0.7))
    )
    down, across = picture[..., 1:, :] - picture[..., :-1, :], picture[..., 1:] - picture[..., :-1]
    assert terms["content"] == pytest.approx(float(expected_content), rel=1e-4)
    assert terms["style"] == pytest.approx(float(expected_style), rel=1e-4)
    assert terms["tv"] == pytest.approx(7 * float(down.square().mean() + across.square().mean()), rel=1e-4)
    assert terms["total"] == pytest.approx(terms["content"] + terms["style"] + terms["tv"])


def test_a_picture_that_is_both_targets_has_only_its_variation(encoder):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = PerceptualLoss(encoder)
    terms = loss(picture, loss.content_target(picture), loss.style_target(picture)).values()
    assert terms["content"] == pytest.approx(0, abs=1e-8)
    assert terms["style"] == pytest.approx(0, abs=1e-8)
    assert terms["tv"] > 0


def test_the_style_target_of_several_pictures_is_their_mean(encoder):
    pictures = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    loss = PerceptualLoss(encoder)
    both, each = loss.style_target(pictures), [loss.style_target(one) for one in pictures.split(1)]
    for layer, gram in both.items():
        assert gram.shape[0] == 1
        torch.testing.assert_close(gram, (each[0][layer] + each[1][layer]) / 2, rtol=1e-3, atol=1e-3)


def test_style_alone_or_content_alone_is_allowed(encoder):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    style_only = PerceptualLoss(encoder, LossSettings(content_layers={}))
    content_only = PerceptualLoss(encoder, LossSettings(style_layers={}))
    assert style_only.content_target(picture) == {} and content_only.style_target(picture) == {}
    dark = style_only(picture, {}, style_only.style_target(picture / 2)).values()
    assert dark["content"] == 0 and dark["style"] > 0
    dark = content_only(picture, content_only.content_target(picture / 2), {}).values()
    assert dark["style"] == 0 and dark["content"] > 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["content_weight", "style_weight", "tv_weight"])
def test_a_weight_that_is_no_weight_is_refused(name, weight):
    with pytest.raises(InvalidInput, match=name) as refusal:
        LossSettings(**{name: weight})
    assert refusal.value.field == name


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(InvalidInput, match="relu9_1"):
        LossSettings(style_layers={"relu9_1": 1.0})
    with pytest.raises(InvalidInput, match="relu1_1"):
        LossSettings(style_layers={"relu1_1": -0.1})
    with pytest.raises(InvalidInput, match="no layer"):
        LossSettings(content_layers={}, style_layers={})


def test_settings_as_plain_data_survive_json():
    settings = LossSettings(style_weight=3)
    assert LossSettings(**json.loads(json.dumps(settings.as_dict()))) == settings
