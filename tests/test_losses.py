"""The losses are the papers' own, whatever the layout, the size and the precision of the activations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.losses import (
    TV_FORMS,
    GaussianTarget,
    channel_means,
    content_loss,
    gram_matrix,
    grid_energy,
    style_loss,
    total_variation,
    wasserstein_loss,
)
from shared.tiles import cut

GOLDEN = Path(__file__).parent / "golden"
golden = json.loads((GOLDEN / "losses.json").read_text(encoding="utf-8"))

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**31)


def tensor(name: str) -> torch.Tensor:
    return torch.tensor(golden[name], dtype=torch.float64)[None]


def guide() -> torch.Tensor:
    """Weights of the golden features' positions, ``[1, 1, H, W]``."""
    return tensor("guide")[None]


def random(shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def moments(features: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return gram_matrix(features, weights), channel_means(features, weights)


def distance(features: torch.Tensor, target: torch.Tensor) -> float:
    """The Wasserstein loss of activations against others."""
    return float(wasserstein_loss(*moments(features), GaussianTarget.of(*moments(target))))


# --- the papers' formulas ------------------------------------------------------------------------------------------


def test_the_golden_values_are_what_their_generator_computes(monkeypatch):
    monkeypatch.syspath_prepend(GOLDEN)
    monkeypatch.delitem(sys.modules, "generate_losses", raising=False)
    import generate_losses

    computed = generate_losses.golden()
    assert computed.keys() == golden.keys()
    for name, value in computed.items():
        # Versions of Python differ in how they round sums.
        np.testing.assert_allclose(value, golden[name], rtol=1e-12, err_msg=name)


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
        golden["variation_down"] / (3 * 3 * 5) + golden["variation_across"] / (3 * 4 * 4), rel=1e-12
    )


def test_total_variation_as_sums_over_one_picture():
    features = tensor("features")
    squared = golden["variation_down"] + golden["variation_across"]
    for pictures in (features, features.repeat(3, 1, 1, 1)):
        assert float(total_variation(pictures, "sum_squared")) == pytest.approx(squared, rel=1e-12)
        assert float(total_variation(pictures, "sum_absolute")) == pytest.approx(
            golden["absolute_variation"], rel=1e-12
        )


def test_weighted_statistics_are_equation_3_of_the_paper_on_regions():
    torch.testing.assert_close(gram_matrix(tensor("features"), guide()), tensor("guided_gram"), rtol=1e-12, atol=0)
    torch.testing.assert_close(channel_means(tensor("features"), guide()), tensor("guided_means"), rtol=1e-12, atol=0)


def test_wasserstein_loss_is_the_distance_over_the_number_of_channels():
    """The golden value knows no eigenvector: it is by the root of a product that is not symmetric."""
    ours = wasserstein_loss(*moments(tensor("features")), GaussianTarget.of(*moments(tensor("target"))))
    assert float(ours) * 3 == pytest.approx(golden["wasserstein"], rel=1e-10)


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


# --- weights -------------------------------------------------------------------------------------------------------


@given(shapes, seeds, st.floats(1e-3, 1e3))
def test_constant_weights_are_none(shape, seed, weight):
    features, weights = random(shape, seed), torch.full((1, 1, *shape[2:]), weight, dtype=torch.float64)
    for ours, expected in zip(moments(features, weights), moments(features), strict=True):
        torch.testing.assert_close(ours, expected)


@given(shapes, seeds)
def test_a_mask_leaves_the_statistics_of_the_positions_in_it(shape, seed):
    features, mask = random(shape, seed), random(shape[2:], seed + 1) > 0
    mask.view(-1)[seed % mask.numel()] = True
    selected = features[..., mask][..., None]
    for ours, expected in zip(moments(features, mask.double()[None, None]), moments(selected), strict=True):
        torch.testing.assert_close(ours, expected)


@given(shapes, seeds, st.floats(1e-3, 1e3))
def test_only_the_proportions_of_weights_count(shape, seed, times):
    features, weights = random(shape, seed), random((1, 1, *shape[2:]), seed + 1).abs()
    for ours, expected in zip(moments(features, weights * times), moments(features, weights), strict=True):
        torch.testing.assert_close(ours, expected)


def test_two_halves_add_up_to_the_whole():
    features, weights = random((2, 3, 6, 4)), random((1, 1, 6, 4), 1).abs()
    upper = weights.clone()
    upper[..., 3:, :] = 0
    share = upper.sum() / weights.sum()
    for top, bottom, whole in zip(
        moments(features, upper), moments(features, weights - upper), moments(features, weights), strict=True
    ):
        torch.testing.assert_close(share * top + (1 - share) * bottom, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_of_0_everywhere_give_0_and_no_gradient(dtype):
    features = random((2, 3, 4, 5), dtype=dtype).requires_grad_()
    gram, means = moments(features, torch.zeros(1, 1, 4, 5))
    assert not gram.any() and not means.any()
    (gram.sum() + means.sum()).backward()
    assert not features.grad.any()


def test_the_weights_of_half_precision_activations_are_not_rounded_with_the_sums():
    features, weights = random((1, 4, 30, 30), 1).bfloat16(), random((1, 1, 30, 30), 2, torch.float32).abs()
    gram, means = moments(features, weights)
    assert gram.dtype == means.dtype == torch.float32
    exact = moments(features.double(), weights.double())
    torch.testing.assert_close(gram.double(), exact[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(means.double(), exact[1], rtol=1e-5, atol=1e-6)
    for weight in (0.3, 0.7, 1 / 255):  # whose roots bfloat16 rounds by up to 1 in 500
        ours = gram_matrix(features, torch.full((1, 1, 30, 30), weight)).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(ours, gram_matrix(features).diagonal(dim1=1, dim2=2), rtol=5e-4, atol=0)


# --- distances of distributions ------------------------------------------------------------------------------------

# Channels and positions such that no covariance is near singular.
many = st.tuples(st.just(1), st.integers(1, 5), st.integers(5, 9), st.integers(5, 9))


@given(many, seeds)
def test_a_distribution_is_at_no_distance_from_itself_and_as_far_from_another_as_the_other_from_it(shape, seed):
    left, right = random(shape, seed), 2 * random(shape, seed + 1) + 0.5
    assert distance(left, left) == pytest.approx(0, abs=1e-9)
    assert distance(left, right) == pytest.approx(distance(right, left), rel=1e-9)
    assert distance(left, right) > 0


@given(many, seeds)
def test_moving_a_distribution_adds_the_square_of_the_way(shape, seed):
    left, right = random(shape, seed), 2 * random(shape, seed + 1)
    left, right = (x - channel_means(x)[..., None, None] for x in (left, right))
    way = random((1, shape[1], 1, 1), seed + 2)
    squared = float(way.square().sum()) / shape[1]
    assert distance(left + way, right) == pytest.approx(distance(left, right) + squared, rel=1e-8)
    assert distance(left + way, left) == pytest.approx(squared, rel=1e-8, abs=1e-9)


@given(many, seeds, st.floats(0.1, 10))
def test_stretching_a_distribution_costs_the_square_of_the_difference_of_its_deviations(shape, seed, times):
    """Covariances that commute: the distance is that of the standard deviations along each eigenvector."""
    features = random(shape, seed)
    features = features - channel_means(features)[..., None, None]
    variance = float(features.square().mean((-2, -1)).sum())
    expected = (times - 1) ** 2 * variance / shape[1]
    assert distance(times * features, features) == pytest.approx(expected, rel=1e-8, abs=1e-9)


@given(st.lists(st.tuples(*[st.floats(0.0, 9)] * 4), min_size=1, max_size=6))
def test_independent_channels_are_compared_one_by_one(channels):
    """Diagonal covariances, some of them 0, by the closed form sum (m - n)² + (s - t)²."""
    means, deviations, other_means, other_deviations = torch.tensor(channels, dtype=torch.float64).T[:, None]

    def gram(m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.diag_embed(s**2) + m[:, :, None] * m[:, None, :]

    ours = wasserstein_loss(
        gram(means, deviations), means, GaussianTarget.of(gram(other_means, other_deviations), other_means)
    )
    expected = (means - other_means).square().mean() + (deviations - other_deviations).square().mean()
    # A variance of 0 is one of 1e-14 after rounding, and its root is 1e-7.
    assert float(ours) == pytest.approx(float(expected), rel=1e-6, abs=1e-5)


@given(many, seeds)
def test_the_distance_is_the_one_by_numpys_roots_of_a_product(shape, seed):
    left, right = random(shape, seed), random(shape, seed + 1)
    right = right + 0.5 * right.roll(1, dims=1)
    a, b = (np.cov(x[0].flatten(1).numpy(), bias=True).reshape(shape[1], shape[1]) for x in (left, right))
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real
    expected = float((channel_means(left) - channel_means(right)).square().sum()) + np.trace(a + b) - 2 * roots.sum()
    assert distance(left, right) * shape[1] == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_a_target_holds_the_root_of_its_covariance():
    features = random((1, 4, 9, 9))
    target = GaussianTarget.of(*moments(features))
    covariance = torch.from_numpy(np.cov(features[0].flatten(1).numpy(), bias=True))[None]
    torch.testing.assert_close(target.root @ target.root, covariance)
    torch.testing.assert_close(target.root, target.root.mT)
    torch.testing.assert_close(target.trace, covariance[0].trace()[None])
    torch.testing.assert_close(target.means, features.mean((-2, -1)))


def test_one_distribution_is_the_target_of_a_whole_batch():
    features, target = random((3, 4, 7, 8), 1), GaussianTarget.of(*moments(random((1, 4, 7, 8), 2)))
    alone = torch.stack([wasserstein_loss(*moments(one), target) for one in features.split(1)])
    torch.testing.assert_close(wasserstein_loss(*moments(features), target), alone.mean())


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_fewer_positions_than_channels_are_compared_and_have_a_gradient(positions):
    """Most eigenvalues are 0 then, and autograd's own way through eigenvectors would divide 0 by 0."""
    features, other = random((1, 8, 1, positions), 1, torch.float32), random((1, 8, 4, 5), 2, torch.float32)
    target = GaussianTarget.of(*moments(other))
    x = features.clone().requires_grad_()
    loss = wasserstein_loss(*moments(x), target)
    # The roots of eigenvalues that are 0 up to rounding count.
    assert float(loss.detach()) == pytest.approx(distance(features.double(), other.double()), rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all() and gradient.any()
    if positions == 1:  # no spread at all: only the mean moves
        way = features.mean((-2, -1)) - target.means
        torch.testing.assert_close(gradient[..., 0, 0], 2 * way / 8, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-30, -1e-30, 1e-8, -1e-8, 1e-7, -1e-7])
def test_a_spread_that_is_only_rounding_has_a_gradient_of_reasonable_size(noise):
    """A region of one activation: its Gram matrix is that of its mean, up to the last digit, and up or down."""
    target = GaussianTarget.of(*moments(random((1, 4, 6, 6), 1)))
    means = random((1, 4), 2)
    gram = means[:, :, None] * means[:, None, :] * (1 + noise) + noise * torch.diag(torch.tensor([1.0, 0, 0, 0]))
    gram, means = (x.requires_grad_() for x in (gram, means))
    wasserstein_loss(gram, means, target).backward()
    for gradient in (gram.grad, means.grad):
        assert gradient.isfinite().all() and gradient.abs().max() < 1e4


def test_a_target_without_any_spread_has_a_gradient():
    flat = GaussianTarget.of(*moments(torch.full((1, 3, 4, 4), 0.5)))
    x = random((1, 3, 4, 4), 1, torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(wasserstein_loss(*moments(x), flat), x)
    # The distance to a point: sum (x - m)², a mean over positions and channels.
    torch.testing.assert_close(gradient, 2 * (x.detach() - 0.5) / (16 * 3))


def test_eigenvalues_near_0_count_as_small_ones_in_the_derivative():
    """Of tr(A - 2 A^½) / 2, which is 1 - 1 / √a at each eigenvalue a: towards 0 it would be without bounds."""
    target = GaussianTarget.of(torch.eye(2, dtype=torch.float64)[None], torch.zeros(1, 2, dtype=torch.float64))
    for smallest, counted in ((1e-2, 1e-2), (1e-4, 1e-4), (1e-6, 1e-5), (0.0, 1e-5)):
        gram = torch.diag(torch.tensor([1.0, smallest], dtype=torch.float64))[None].requires_grad_()
        wasserstein_loss(gram, target.means, target).backward()
        expected = torch.diag(torch.tensor([0.0, (1 - counted**-0.5) / 2], dtype=torch.float64))
        torch.testing.assert_close(gram.grad[0], expected, rtol=1e-4, atol=1e-6)


def test_following_the_gradient_reaches_the_distribution():
    target = GaussianTarget.of(*moments(random((1, 3, 8, 8), 1) @ random((1, 3, 8, 8), 2) / 3 + 1))
    x = random((1, 3, 8, 8), 3).requires_grad_()
    descent = torch.optim.LBFGS([x], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        loss = wasserstein_loss(*moments(x), target)
        loss.backward()
        return loss

    before = float(closure().detach())
    descent.step(closure)
    assert float(closure().detach()) < 1e-6 * before


# --- zeros, gradients, sizes ---------------------------------------------------------------------------------------


@given(shapes, seeds)
def test_a_picture_has_no_loss_against_itself(shape, seed):
    features = random(shape, seed, torch.float32)
    assert content_loss(features, features.clone()) == 0
    assert style_loss(gram_matrix(features), gram_matrix(features.clone())) == 0


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1))
def test_a_constant_picture_has_no_variation(height, width, shade):
    for form in TV_FORMS:
        assert total_variation(torch.full((2, 3, height, width), shade), form) == 0


def test_variation_of_a_known_picture():
    """Columns 0, 1, 0, 1: each of the steps across is 1, each of those down 0."""
    picture = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 3, 5, 4)
    assert total_variation(picture) == 1
    assert total_variation(picture.mT) == 1
    assert total_variation(picture / 2) == 0.25


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_gradients_match_finite_differences(layout):
    features = random((2, 3, 4, 5), 1).contiguous(memory_format=layout).requires_grad_()
    check = torch.autograd.gradcheck
    target = random((2, 3, 4, 5), 2)
    gram = gram_matrix(random((1, 3, 5, 5), 3))
    assert check(lambda x: content_loss(x, target), features)
    assert check(lambda x: style_loss(gram_matrix(x), gram), features)
    assert check(lambda x: style_loss(gram_matrix(x, guide()), gram), features)
    for weights in (None, guide()):
        assert check(lambda x, weights=weights: gram_matrix(x, weights), features)
        assert check(lambda x, weights=weights: channel_means(x, weights), features)
    for form in TV_FORMS:
        assert check(lambda x, form=form: total_variation(x, form), features)
        assert check(lambda x, form=form: total_variation(x, form, starting_in=(3, 4), of=(9, 8)), features)
    assert check(lambda x: grid_energy(x, 2), features)
    assert check(lambda x: grid_energy(x, 4), features)


@pytest.mark.parametrize("weights", [None, guide()], ids=["everywhere", "weighted"])
def test_the_gradient_of_the_wasserstein_loss_matches_finite_differences(weights):
    """With covariances far from singular, and a loss far from its minimum."""
    features = (random((2, 3, 4, 5), 1) + 0.5).requires_grad_()
    target = GaussianTarget.of(*moments(2 * random((1, 3, 6, 6), 2)))
    assert torch.autograd.gradcheck(lambda x: wasserstein_loss(*moments(x, weights), target), features)
    gram, means = (x.detach().requires_grad_() for x in moments(features))
    assert torch.autograd.gradcheck(lambda g, m: wasserstein_loss(g, m, target), (gram, means))


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


@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from(TV_FORMS))
def test_the_variation_of_the_parts_of_a_picture_adds_up(height, width, side, alignment, form):
    picture = random((2, 3, height, width), height * width)
    total = 0.0
    for tile in cut(height, width, side=side, overlap=1, alignment=alignment):
        part = picture[..., tile.top : tile.crop[2], tile.left : tile.crop[3]]
        size = tile.bottom - tile.top, tile.right - tile.left
        total += float(total_variation(part, form, starting_in=size, of=(height, width)))
    assert total == pytest.approx(float(total_variation(picture, form)), rel=1e-10, abs=1e-12)


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
