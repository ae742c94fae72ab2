"""The loss that is minimised: its terms are the papers', and cutting a picture into tiles changes none of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from shared.architectures import RESNET50, VGG19, Architecture, Layer
from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.losses import TV_FORMS, gram_matrix
from shared.perceptual_loss import (
    CONTENT_FORMS,
    STYLE_FORMS,
    ContentTarget,
    LossSettings,
    LossTerms,
    PerceptualLoss,
    StyleTarget,
)

GOLDEN = Path(__file__).parent / "golden"
golden = json.loads((GOLDEN / "losses.json").read_text(encoding="utf-8"))

SHALLOW = {"relu1_1": 0.25, "relu2_1": 0.25, "relu3_1": 0.5}


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """A picture of each height and width, smooth on the whole and noisy in detail."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        coarse = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator), size, mode="bicubic").clamp(0, 1)
        found.append((coarse + 0.2 * torch.rand(1, 3, *size, generator=generator)) / 1.2)
    return found


def random_weights(architecture: Architecture, width: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep activations of about one size; with ``width``, of a network with so many channels a layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"input.weight": torch.eye(3)[..., None, None] * 3, "input.bias": torch.full((3,), -1.5)}
    for name, (outputs, inputs, kernel) in architecture.convolutions.items():
        outputs, inputs = (n if n == 3 else width or n for n in (outputs, inputs))
        # What a block of a residual network adds is kept small, or each of sixteen would double the activations.
        scale = (0.5 if name.endswith(".conv3") else 1.0) * math.sqrt(2 / (inputs * kernel**2))
        tensors[f"{name}.weight"] = scale * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def thin() -> Encoder:
    """VGG-19 with eight channels a layer: it sees as far as the real one, and costs nothing."""
    return Encoder(random_weights(VGG19, 8))


@pytest.fixture(scope="module")
def glass() -> Encoder:
    """A network that is no network: the activations of its one layer are the picture."""
    layer = Layer("glass", "conv", 3, 3, kernel=1, stride=1, padding=0, scale=1, reach=1)
    architecture = Architecture("glass", {"glass": layer}, {"glass": 1.0}, {"glass": 1.0}, {"glass": (3, 3, 1)})
    identity = {
        f"{name}.{part}": value
        for name in ("input", "glass")
        for part, value in (("weight", torch.eye(3)[..., None, None]), ("bias", torch.zeros(3)))
    }
    return Encoder(identity, architecture, dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    """So thin a network only waits for a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TERMS = ("content", "style", "tv")


def evaluate(
    loss: PerceptualLoss,
    picture: Tensor,
    content: Tensor,
    styles: Sequence[Tensor],
    regions: Sequence[Tensor | None] = (),
) -> tuple[dict[str, float], Tensor]:
    """The terms as numbers, and a gradient in which each weighs as much; a region for each style, if for any."""
    targets = [loss.style_target(style) for style in styles]
    for i, region in enumerate(regions):
        if region is not None:
            targets[i] = loss.in_region(targets[i], region, weight=1 + i)
    x = picture.clone().requires_grad_()
    terms = loss(x, loss.content_target(content), targets)
    even = sum(term / term.detach() for term in (terms.content, terms.style, terms.tv))
    return terms.values(), torch.autograd.grad(even, x)[0]


def assert_same(ours, expected, tolerance: float = 1e-4) -> None:
    """Two answers of :func:`evaluate`: each number alike, and the gradients as vectors."""
    for term in TERMS:
        assert ours[0][term] == pytest.approx(expected[0][term], rel=tolerance), term
    assert expected[1].norm() > 0 and (ours[1] - expected[1]).norm() <= tolerance * expected[1].norm()


# --- the terms -----------------------------------------------------------------------------------------------------


def test_the_perceptual_loss_is_the_weighted_sum_of_its_terms(encoder):
    """Against the same sum, spelt out over the encoder's activations."""
    picture, content, style = pictures((40, 48), (40, 48), (64, 48))
    settings = LossSettings(
        content_layers={"relu3_1": 2.0, "conv2_2": 0.5},
        style_layers={"relu1_1": 0.3, "relu2_1": 0.7},
        content_weight=0.25,
        style_weight=11,
        tv_weight=7,
    )
    loss = PerceptualLoss(encoder, settings)
    terms = loss(picture, loss.content_target(content), loss.style_target(style)).values()

    def at(pictures: Tensor, layer: str) -> Tensor:
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


def golden_terms(glass: Encoder, tile: int | None, region: bool = False, **options) -> dict[str, float]:
    """The golden features as a picture against the golden target as content and as style."""
    picture, target = (torch.tensor(golden[name], dtype=torch.float64)[None] for name in ("features", "target"))
    chosen = {"content_weight": 1.0, "style_weight": 1.0, "tv_weight": 1.0} | options
    layers = {"content_layers": {"glass": 1.0}, "style_layers": {"glass": 1.0}}
    loss = PerceptualLoss(glass, LossSettings(**layers, **chosen), tile=tile)
    style = loss.style_target(target)
    if region:
        style = loss.in_region(style, torch.tensor(golden["guide"], dtype=torch.float64)[None])
    return loss(picture, loss.content_target(target), style).values()


in_tiles = pytest.mark.parametrize("tile", [None, 2, 3], ids=["whole", "tiles of 2", "tiles of 3"])


@in_tiles
@pytest.mark.parametrize(("form", "times"), [("half_sum", 1), ("sum", 2), ("mean", 2 / (3 * 4 * 5))])
def test_the_forms_of_the_content_loss(glass, tile, form, times):
    """Equation 1 of Gatys et al. 2016 is half the sum."""
    ours = golden_terms(glass, tile, content_form=form)["content"]
    assert ours == pytest.approx(times * golden["content_loss"], rel=1e-9)


@in_tiles
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("mean_squared", golden["variation_down"] / (3 * 3 * 5) + golden["variation_across"] / (3 * 4 * 4)),
        ("sum_squared", golden["variation_down"] + golden["variation_across"]),
        ("sum_absolute", golden["absolute_variation"]),
    ],
)
def test_the_forms_of_total_variation(glass, tile, form, expected):
    assert golden_terms(glass, tile, tv_form=form)["tv"] == pytest.approx(expected, rel=1e-6)


@in_tiles
def test_the_forms_of_the_style_loss(glass, tile):
    ours = golden_terms(glass, tile, style_form="gram")["style"]
    assert ours == pytest.approx(4 * golden["style_loss"], rel=1e-9)
    ours = golden_terms(glass, tile, style_form="wasserstein")["style"]
    assert ours == pytest.approx(golden["wasserstein"] / 3, rel=1e-6)


@in_tiles
def test_the_style_loss_in_a_region_is_of_the_guided_gram_matrix(glass, tile):
    """The first row of the guide is 0, so that some tiles hold nothing."""
    target = torch.tensor(golden["target"], dtype=torch.float64).flatten(1)
    expected = (torch.tensor(golden["guided_gram"]).double() - target @ target.T / 20).square().mean()
    assert golden_terms(glass, tile, region=True)["style"] == pytest.approx(float(expected), rel=1e-6)


def test_a_picture_that_is_both_targets_has_only_its_variation(encoder):
    (picture,) = pictures((32, 32))
    for form in STYLE_FORMS:
        loss = PerceptualLoss(encoder, LossSettings(style_form=form))
        terms = loss(picture, loss.content_target(picture), loss.style_target(picture)).values()
        other = loss(picture.flip(1), loss.content_target(picture), loss.style_target(picture)).values()
        assert terms["content"] == pytest.approx(0, abs=1e-8)
        # Four positions at relu5_1 leave 508 eigenvalues that are 0 up to rounding, and their roots are summed.
        assert terms["style"] == pytest.approx(0, abs=1e-8 if form == "gram" else 0.03 * other["style"])
        assert terms["tv"] > 0


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_the_loss_of_a_batch_is_the_mean_over_its_pictures(thin, form):
    picture, content = (torch.cat(pictures((50, 40), (50, 40), seed=seed)) for seed in (1, 2))
    (style,) = pictures((48, 48))
    for content_form, tv_form, tile in zip(CONTENT_FORMS, TV_FORMS, (None, 32, 64), strict=True):
        options = {"style_layers": SHALLOW, "content_form": content_form, "style_form": form, "tv_form": tv_form}
        loss = PerceptualLoss(thin, LossSettings(**options), tile=tile)
        target = loss.style_target(style)
        both = loss(picture, loss.content_target(content), target).values()
        each = [
            loss(one, loss.content_target(its), target).values()
            for one, its in zip(picture.split(1), content.split(1), strict=True)
        ]
        for term in TERMS:
            # A sum over each picture, or a mean over all values: the content loss adds up as its form says.
            assert both[term] == pytest.approx(sum(one[term] for one in each) / 2, rel=1e-4), (term, content_form)


def test_style_alone_or_content_alone_is_allowed(encoder):
    (picture,) = pictures((32, 32))
    style_only = PerceptualLoss(encoder, LossSettings(content_layers={}))
    content_only = PerceptualLoss(encoder, LossSettings(style_layers={}))
    nothing, anything = style_only.content_target(picture), content_only.style_target(picture)
    assert not nothing.features and not anything.grams
    dark = style_only(picture, nothing, style_only.style_target(picture / 2)).values()
    assert dark["content"] == 0 and dark["style"] > 0
    dark = content_only(picture, content_only.content_target(picture / 2), anything).values()
    assert dark["style"] == 0 and dark["content"] > 0


def test_detached_terms_have_the_same_values_and_no_graph(thin):
    picture, style = pictures((40, 40), (32, 32))
    loss = PerceptualLoss(thin)
    terms = loss(picture.requires_grad_(), loss.content_target(style.new_zeros(1, 3, 40, 40)), loss.style_target(style))
    assert terms.total.requires_grad
    detached = terms.detach()
    assert isinstance(detached, LossTerms) and not detached.total.requires_grad
    assert detached.values() == terms.values()
    assert float(detached.total) == pytest.approx(terms.values()["total"], rel=1e-6)


# --- relative to the target ----------------------------------------------------------------------------------------


class Louder(Encoder):
    """The same network with activations of another size."""

    times = 1.0

    def forward(self, pictures, layers):
        return {name: self.times * tensor for name, tensor in super().forward(pictures, layers).items()}


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("times", [0.01, 30.0])
@pytest.mark.parametrize(("form", "power"), [("gram", 4), ("wasserstein", 2)])
@pytest.mark.parametrize("content_form", CONTENT_FORMS)
def test_relative_losses_do_not_depend_on_how_large_activations_are(form, power, content_form, times, tile):
    picture, content, style = pictures((57, 70), (57, 70), (64, 48))
    encoder = Louder(random_weights(VGG19, 8))
    found = {}
    for relative in (False, True):
        for factor in (1.0, times):
            encoder.times = factor
            settings = LossSettings(style_form=form, content_form=content_form, relative=relative)
            loss = PerceptualLoss(encoder, settings, tile=tile)
            found[relative, factor] = loss(picture, loss.content_target(content), loss.style_target(style)).values()
    for term in TERMS:
        assert found[True, times][term] == pytest.approx(found[True, 1.0][term], rel=1e-3), term
    assert found[False, times]["content"] == pytest.approx(times**2 * found[False, 1.0]["content"], rel=1e-3)
    assert found[False, times]["style"] == pytest.approx(times**power * found[False, 1.0]["style"], rel=1e-3)


def test_relative_losses_are_over_the_mean_square_of_the_target(glass):
    target = torch.tensor(golden["target"], dtype=torch.float64).flatten(1)
    gram = target @ target.T / 20
    plain, relative = golden_terms(glass, None), golden_terms(glass, None, relative=True)
    assert relative["content"] == pytest.approx(plain["content"] / float(target.square().mean()), rel=1e-6)
    assert relative["style"] == pytest.approx(plain["style"] / float(gram.square().mean()), rel=1e-6)
    assert relative["tv"] == plain["tv"]
    plain, relative = (golden_terms(glass, None, style_form="wasserstein", relative=r) for r in (False, True))
    assert relative["style"] == pytest.approx(plain["style"] / float(gram.square().mean().sqrt()), rel=1e-6)


# --- tiles ---------------------------------------------------------------------------------------------------------


def left_half(height: int, width: int) -> Tensor:
    region = torch.zeros(1, 1, height, width)
    region[..., : width // 2] = 1
    return region


def corner(height: int, width: int) -> Tensor:
    """A soft spot: most tiles hold nothing of it."""
    region = torch.zeros(1, 1, height, width)
    region[..., 3 : height // 4, 5 : width // 3] = 0.7
    region[..., 8 : height // 5, 9 : width // 4] = 1.0
    return region


REGIONS = {
    "everywhere": lambda h, w: [None],
    "half": lambda h, w: [left_half(h, w)],
    "corner": lambda h, w: [corner(h, w)],
    "two regions": lambda h, w: [corner(h, w), 1 - left_half(h, w)],
    "a region and the rest": lambda h, w: [corner(h, w), None],
}


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("form", STYLE_FORMS)
@pytest.mark.parametrize("regions", REGIONS.values(), ids=REGIONS)
def test_tiles_change_neither_the_loss_nor_its_gradient(thin, form, regions, relative):
    """At all layers down to relu5_1, and at sizes that no stride divides."""
    picture, content, *styles = pictures((131, 101), (131, 101), (90, 75), (64, 80))
    settings = LossSettings(style_form=form, relative=relative)
    chosen = regions(131, 101)
    whole, tiled = (
        evaluate(PerceptualLoss(thin, settings, tile=tile), picture, content, styles[: len(chosen)], chosen)
        for tile in (None, 48)
    )
    assert_same(tiled, whole)


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(33, 110), st.integers(33, 110)),
    tile=st.integers(32, 111),
    layers=st.lists(st.sampled_from(list(VGG19.layers)[:-1]), min_size=2, max_size=4, unique=True),
    pooling=st.sampled_from(["max", "average"]),
    form=st.sampled_from(STYLE_FORMS),
    content_form=st.sampled_from(CONTENT_FORMS),
    tv_form=st.sampled_from(TV_FORMS),
    region=st.sampled_from(list(REGIONS)),
)
def test_tiles_of_any_size_through_any_layers(size, tile, layers, pooling, form, content_form, tv_form, region):
    """In fp64, so that only another loss could make a difference, and no rounding."""
    # Two activations in a region have a covariance of one large eigenvalue, and the roots of what rounding leaves.
    region = region if form == "gram" else "everywhere"
    encoder = Encoder(random_weights(VGG19, 5), pooling=pooling, dtype=torch.float64)
    options = {"style_form": form, "content_form": content_form, "tv_form": tv_form}
    settings = LossSettings({layers[0]: 1.0}, dict.fromkeys(layers[1:], 1.0), **options)
    picture, content, *styles = pictures(size, size, (48, 61), (64, 33))
    chosen = REGIONS[region](*size)
    whole, tiled = (
        evaluate(PerceptualLoss(encoder, settings, tile=tile), picture, content, styles[: len(chosen)], chosen)
        for tile in (None, tile)
    )
    assert_same(tiled, whole)


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_tiles_change_nothing_with_the_real_network(encoder, form):
    settings = LossSettings({"relu3_2": 1.0}, SHALLOW, style_form=form)
    picture, content, style = pictures((75, 97), (75, 97), (64, 64))
    regions = [left_half(75, 97)]
    whole, tiled = (
        evaluate(PerceptualLoss(encoder, settings, tile=tile), picture, content, [style], regions)
        for tile in (None, 40)
    )
    assert_same(tiled, whole)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_tiles_change_nothing_with_a_residual_network(pooling):
    """ResNet-50 at its own width, whose convolutions with a stride round sizes up."""
    encoder = Encoder(random_weights(RESNET50), RESNET50, pooling=pooling)
    settings = LossSettings(RESNET50.content_layers, RESNET50.style_layers, relative=True)
    picture, content, style = pictures((65, 129), (65, 129), (64, 64))
    whole, tiled = (
        evaluate(PerceptualLoss(encoder, settings, tile=tile), picture, content, [style]) for tile in (None, 64)
    )
    assert_same(tiled, whole)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("form", STYLE_FORMS)
def test_tiles_change_nothing_with_a_thin_residual_network(form, region):
    encoder = Encoder(random_weights(RESNET50, 8), RESNET50)
    settings = LossSettings(RESNET50.content_layers, RESNET50.style_layers, style_form=form, relative=True)
    picture, content, *styles = pictures((97, 131), (97, 131), (64, 64), (96, 64))
    chosen = REGIONS[region](97, 131)
    whole, tiled = (
        evaluate(PerceptualLoss(encoder, settings, tile=tile), picture, content, styles[: len(chosen)], chosen)
        for tile in (None, 64)
    )
    assert_same(tiled, whole)


def test_tiles_in_half_precision(vgg19):
    encoder = Encoder(vgg19, dtype=torch.bfloat16)
    settings = LossSettings({"relu2_1": 1.0}, {"relu1_1": 0.5, "relu2_1": 0.5})
    picture, content, style = pictures((75, 97), (75, 97), (64, 64))
    whole, tiled = (
        evaluate(PerceptualLoss(encoder, settings, tile=tile), picture, content, [style]) for tile in (None, 40)
    )
    assert_same(tiled, whole, tolerance=0.01)


def test_the_last_tile_may_be_a_sliver(thin):
    """33 pixels are two activations at relu5_1: one row of pixels more than two tiles of 16 would hold."""
    picture, content, style = pictures((33, 65), (33, 65), (48, 48))
    whole, tiled = (
        evaluate(PerceptualLoss(thin, tile=tile), picture, content, [style], [left_half(33, 65)]) for tile in (None, 32)
    )
    assert_same(tiled, whole)


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_targets_are_the_same_by_tiles(thin, form):
    content, *styles = pictures((99, 130), (70, 131), (48, 40))
    settings = LossSettings({"relu4_2": 1.0, "relu1_2": 0.5}, style_form=form, relative=True)
    whole, tiled = (PerceptualLoss(thin, settings, tile=tile) for tile in (None, 48))

    one, many = whole.content_target(content), tiled.content_target(content)
    assert len(one.features) == 1 and len(many.features) == 9
    for layer in settings.content_layers:
        torch.testing.assert_close(many.power[layer], one.power[layer], rtol=1e-4, atol=0)
        activations = sum(part[layer].numel() for part in many.features)
        assert activations == one.features[0][layer].numel(), "each activation once"
        # Row by row: three tiles make a band.
        bands = [torch.cat([part[layer] for part in many.features[i : i + 3]], dim=3) for i in (0, 3, 6)]
        torch.testing.assert_close(torch.cat(bands, dim=2), one.features[0][layer], rtol=1e-4, atol=1e-4)

    one, many = (loss.style_target(styles, [2, 1]) for loss in (whole, tiled))
    for layer in settings.style_layers:
        torch.testing.assert_close(many.grams[layer], one.grams[layer], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(many.power[layer], one.power[layer], rtol=1e-4, atol=0)
        if form == "wasserstein":
            left, right = many.gaussians[layer], one.gaussians[layer]
            torch.testing.assert_close(left.means, right.means, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(left.root @ left.root, right.root @ right.root, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(left.trace, right.trace, rtol=1e-4, atol=0)
    assert bool(one.gaussians) == (form == "wasserstein")


class Watched(Encoder):
    """Notes at every call how many of the activations that it has handed out still take memory."""

    def watch(self) -> None:
        self.handed_out: list[StorageWeakRef] = []
        self.alive: list[int] = []

    def forward(self, pictures, layers):
        self.alive.append(self.held())
        found = super().forward(pictures, layers)
        self.handed_out += [StorageWeakRef(tensor.untyped_storage()) for tensor in found.values()]
        return found

    def held(self) -> int:
        return sum(not reference.expired() for reference in self.handed_out)


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_the_activations_of_one_tile_are_held_at_a_time(form):
    encoder = Watched(random_weights(VGG19, 4))
    encoder.watch()
    picture, content, style = pictures((96, 120), (96, 120), (48, 48))
    settings = LossSettings({"relu2_2": 1.0}, SHALLOW, style_form=form)
    calls = {}
    for tile in (None, 32):
        loss = PerceptualLoss(encoder, settings, tile=tile)
        targets = loss.content_target(content), loss.in_region(loss.style_target(style), corner(96, 120))
        encoder.watch()
        terms = loss(picture.clone().requires_grad_(), *targets)
        # Kept for the derivative, unless the tiles are there to be computed again.
        assert encoder.held() == (len(settings.layers) if tile is None else 0)
        terms.total.backward()
        del terms
        assert encoder.held() == 0
        assert not any(encoder.alive)
        calls[tile] = len(encoder.alive)
    assert calls == {None: 1, 32: 24}, "12 tiles, each once more for the gradient"


def test_what_is_kept_for_the_gradient_is_less_by_tiles(thin):
    picture, content, style = pictures((96, 120), (96, 120), (48, 48))
    kept = {}
    for tile in (None, 32):
        loss = PerceptualLoss(thin, LossSettings({"relu2_2": 1.0}, SHALLOW), tile=tile)
        targets = loss.content_target(content), loss.style_target(style)
        storages = {}

        def pack(tensor: Tensor, storages=storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(picture.clone().requires_grad_(), *targets)
        kept[tile] = sum(storages.values())
    assert kept[32] < kept[None] / 5


def test_without_a_gradient_each_tile_is_computed_once():
    encoder = Watched(random_weights(VGG19, 4))
    encoder.watch()
    picture, style = pictures((96, 120), (48, 48))
    loss = PerceptualLoss(encoder, LossSettings({"relu2_2": 1.0}, SHALLOW), tile=32)
    content, target = loss.content_target(picture), loss.style_target(style)
    encoder.watch()
    with torch.no_grad():
        terms = loss(picture, content, target)
    assert len(encoder.alive) == 12 and not any(encoder.alive) and encoder.held() == 0
    assert not terms.total.requires_grad


def test_a_picture_as_large_as_a_tile_is_not_cut():
    encoder = Watched(random_weights(VGG19, 4))
    for size, tile, calls in (((64, 50), 64, 1), ((64, 65), 64, 2)):
        encoder.watch()
        PerceptualLoss(encoder, tile=tile).content_target(*pictures(size))
        assert len(encoder.alive) == calls


@pytest.mark.parametrize("tile", [-1, 0, 16, 31])
def test_a_tile_that_is_too_small_is_refused(thin, tile):
    """Down to relu5_1, 16 pixels are one activation."""
    with pytest.raises(InvalidInput, match=f"tile is {tile}, expected at least 32 pixels") as refusal:
        PerceptualLoss(thin, tile=tile)
    assert refusal.value.field == "tile"
    PerceptualLoss(thin, tile=32)
    PerceptualLoss(thin, LossSettings({}, {"relu1_1": 1.0}), tile=2)


# --- several styles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_several_targets_add_up_by_their_weights(thin, form):
    picture, content, *styles = pictures((50, 60), (50, 60), (48, 48), (64, 40))
    loss = PerceptualLoss(thin, LossSettings(style_form=form))
    content_target = loss.content_target(content)
    targets = [loss.style_target(style) for style in styles]
    alone = [loss(picture, content_target, target).values()["style"] for target in targets]
    together = loss(picture, content_target, [replace(targets[0], weight=2.0), replace(targets[1], weight=0.5)])
    assert together.values()["style"] == pytest.approx(2 * alone[0] + 0.5 * alone[1], rel=1e-4)
    assert loss(picture, content_target, targets[:1]).values() == loss(picture, content_target, targets[0]).values()


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("form", STYLE_FORMS)
def test_targets_in_several_regions_add_up(thin, form, tile):
    """Each as it counts on its own, whatever regions the others have."""
    picture, *styles = pictures((50, 60), (48, 48), (64, 40), (40, 56))
    loss = PerceptualLoss(thin, LossSettings({}, SHALLOW, style_form=form), tile=tile)
    targets = [loss.style_target(style) for style in styles]
    targets[0] = loss.in_region(targets[0], left_half(50, 60), weight=0.5)
    targets[1] = loss.in_region(targets[1], 1 - left_half(50, 60), weight=2.0)
    nothing = ContentTarget((), {})
    alone = [loss(picture, nothing, target).values()["style"] for target in targets]
    assert loss(picture, nothing, targets).values()["style"] == pytest.approx(sum(alone), rel=1e-4)
    swapped = [replace(target, region=other.region) for target, other in zip(targets, targets[1::-1], strict=False)]
    assert loss(picture, nothing, swapped).values()["style"] != pytest.approx(sum(alone), rel=1e-2)


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_the_style_target_of_several_pictures_is_their_weighted_mean(thin, form):
    """Pictures of different sizes, alone and in a batch; of each, its share of the weights."""
    first, second = pictures((48, 64), (80, 40))
    batch = torch.cat(pictures((48, 48), (48, 48), seed=1))
    loss = PerceptualLoss(thin, LossSettings(style_form=form))
    each = [loss.style_target(one) for one in (first, *batch.split(1), second)]
    for weights, shares in (((3, 0, 1, 4), (3 / 8, 0, 1 / 8, 1 / 2)), (None, (0.25,) * 4)):
        blend = loss.style_target([first, batch, second], weights)
        for layer in loss.settings.style_layers:
            mean = sum(share * one.grams[layer] for share, one in zip(shares, each, strict=True))
            assert mean.shape[0] == 1
            torch.testing.assert_close(blend.grams[layer], mean, rtol=1e-4, atol=1e-5)
            if form == "wasserstein":
                means = sum(share * one.gaussians[layer].means for share, one in zip(shares, each, strict=True))
                torch.testing.assert_close(blend.gaussians[layer].means, means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 2.0, 3.0], [], [0, 0], [1, -1], [1, math.nan], [math.inf, 1]], ids=repr
)
def test_weights_that_fit_no_pictures_are_refused(thin, weights):
    styles = pictures((32, 32), (40, 32))
    with pytest.raises(InvalidInput) as refusal:
        PerceptualLoss(thin).style_target(styles, weights)
    assert refusal.value.field == "style_weights"
    if len(weights) != 2:
        assert f"{len(weights)} weights were given for 2 style pictures" in refusal.value.message


# --- regions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_a_region_that_is_everywhere_is_none(thin, form):
    picture, content, style = pictures((67, 58), (67, 58), (48, 48))
    loss = PerceptualLoss(thin, LossSettings(style_form=form))
    for level in (1.0, 0.3):
        region = torch.full((1, 1, 67, 58), level)
        assert_same(
            evaluate(loss, picture, content, [style], [region]), evaluate(loss, picture, content, [style]), 1e-3
        )


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_a_style_in_a_region_sees_nothing_beyond_it(thin, form):
    """relu2_1 sees five pixels to each side."""
    picture, style = pictures((40, 64), (48, 48))
    loss = PerceptualLoss(thin, LossSettings({}, {"relu1_1": 1.0, "relu2_1": 1.0}, style_form=form))
    _, gradients = evaluate_style(loss, picture, style, left_half(40, 64))
    assert gradients[..., :30].abs().amax(1).gt(0).float().mean() > 0.9
    assert not gradients[..., 32 + 5 :].any()


def evaluate_style(loss: PerceptualLoss, picture: Tensor, style: Tensor, region: Tensor) -> tuple[float, Tensor]:
    x = picture.clone().requires_grad_()
    term = loss(x, ContentTarget((), {}), loss.in_region(loss.style_target(style), region)).style
    return float(term.detach()), torch.autograd.grad(term, x)[0]


@pytest.mark.parametrize("form", STYLE_FORMS)
def test_what_a_region_leaves_out_does_not_count(thin, form):
    picture, style = pictures((40, 64), (48, 48))
    loss = PerceptualLoss(thin, LossSettings({}, {"relu1_1": 1.0, "relu2_1": 1.0}, style_form=form))
    region = left_half(40, 64)
    repainted = picture.clone()
    repainted[..., 40:] = 1 - repainted[..., 40:]
    assert evaluate_style(loss, repainted, style, region)[0] == evaluate_style(loss, picture, style, region)[0]
    repainted[..., :30] = 1 - repainted[..., :30]
    assert evaluate_style(loss, repainted, style, region)[0] != evaluate_style(loss, picture, style, region)[0]


def test_targets_may_share_a_region(thin):
    """Then its statistics are computed once."""
    picture, *styles = pictures((50, 60), (48, 48), (64, 40))
    loss = PerceptualLoss(thin, LossSettings({}))
    region = corner(50, 60)
    apart = [loss.in_region(loss.style_target(style), region, weight) for style, weight in zip(styles, (1, 2))]  # noqa: B905
    shared = [apart[0], replace(apart[1], region=apart[0].region)]
    nothing = ContentTarget((), {})
    assert loss(picture, nothing, shared).values() == loss(picture, nothing, apart).values()


@pytest.mark.parametrize("form", STYLE_FORMS)
@pytest.mark.parametrize("side", [1, 2, 5, 16])
def test_a_tiny_region_has_a_gradient(encoder, side, form):
    """One activation at relu5_1, or a part of one: a distribution without any spread."""
    picture, style = pictures((64, 64), (64, 64))
    region = torch.zeros(1, 1, 64, 64)
    region[..., 16 : 16 + side, 16 : 16 + side] = 1
    loss, gradient = evaluate_style(PerceptualLoss(encoder, LossSettings({}, style_form=form)), picture, style, region)
    assert math.isfinite(loss) and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_an_empty_region_is_refused(thin, value):
    loss = PerceptualLoss(thin)
    target = loss.style_target(*pictures((32, 32)))
    with pytest.raises(InvalidInput, match="empty") as refusal:
        loss.in_region(target, torch.full((1, 1, 40, 40), value))
    assert refusal.value.field == "mask"


def test_a_target_in_a_region_leaves_the_target_as_it_was(thin):
    loss = PerceptualLoss(thin)
    target = loss.style_target(*pictures((32, 32)))
    placed = loss.in_region(target, left_half(40, 48), weight=3)
    assert target.region is None and target.weight == 1
    assert isinstance(placed, StyleTarget) and placed.weight == 3 and placed.grams is target.grams
    for layer, weights in placed.region.items():
        assert weights.shape == (1, 1, *VGG19.size(layer, 40, 48))
        assert weights.min() == 0 and weights.max() == 1


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["content_weight", "style_weight", "tv_weight"])
def test_a_weight_that_is_no_weight_is_refused(name, weight):
    with pytest.raises(InvalidInput, match=name) as refusal:
        LossSettings(**{name: weight})
    assert refusal.value.field == name


@pytest.mark.parametrize("name", ["content_form", "style_form", "tv_form"])
def test_a_form_that_does_not_exist_is_refused(name):
    with pytest.raises(InvalidInput, match=f"^{name} is 'median', expected one of ") as refusal:
        LossSettings(**{name: "median"})
    assert refusal.value.field == name


@pytest.mark.parametrize("kind", ["content_layers", "style_layers"])
def test_a_layer_that_does_not_exist_is_refused(encoder, kind):
    with pytest.raises(InvalidInput, match="unknown vgg19 layer 'relu9_1'") as refusal:
        PerceptualLoss(encoder, LossSettings(**{kind: {"relu9_1": 1.0}}))
    assert refusal.value.field == "layers"
    assert all(layer in refusal.value.hint for layer in VGG19.layers)
    with pytest.raises(InvalidInput, match="relu1_1"):
        LossSettings(**{kind: {"relu1_1": -0.1}})
    with pytest.raises(InvalidInput, match="no layer"):
        LossSettings(content_layers={}, style_layers={})


def test_settings_as_plain_data_survive_json():
    settings = LossSettings(
        {"relu3_1": 0.5},
        {"relu1_1": 2.0},
        style_weight=3,
        content_form="half_sum",
        style_form="wasserstein",
        tv_form="sum_absolute",
        relative=True,
    )
    assert set(settings.as_dict()) == set(LossSettings.__dataclass_fields__)
    for one in (settings, LossSettings()):
        assert LossSettings(**json.loads(json.dumps(one.as_dict()))) == one
