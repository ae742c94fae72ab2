"""The reference optimiser descends the loss that it names, in exactly the steps that were asked for."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scenes import hills, strokes

from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.images import to_tensor
from shared.optimizer import (
    DEFAULT_LOSS,
    MAX_STEPS,
    OPTIMIZERS,
    SMALLEST_SIDE,
    STARTS,
    Iteration,
    OptimizationFailed,
    OptimizerSettings,
    optimize,
)
from shared.perceptual_loss import LossSettings, PerceptualLoss


@pytest.fixture(scope="module")
def content() -> torch.Tensor:
    return to_tensor(hills(72, 64))


@pytest.fixture(scope="module")
def style() -> torch.Tensor:
    return to_tensor(strokes(64, 80))


@pytest.fixture(scope="module")
def judge(encoder, content, style):
    """The losses of a picture as numbers, by the default settings, apart from the optimiser."""
    loss = PerceptualLoss(encoder, DEFAULT_LOSS)
    content_target, style_target = loss.content_target(content), loss.style_target(style)

    def losses(picture: torch.Tensor) -> dict[str, float]:
        with torch.no_grad():
            return loss(picture, content_target, style_target).values()

    return losses


def settings(steps: int, **options) -> OptimizerSettings:
    """Settings with one scale unless a test asks for more."""
    return OptimizerSettings(**{"steps": steps, "scales": 1, "learning_rate": 0.02} | options)


class Trace(list):
    """Collects iterations with the picture as it was at each."""

    def __call__(self, iteration: Iteration) -> None:
        iteration.losses  # noqa: B018 (read now: the next step writes over the pixels)
        self.append((iteration, iteration.picture()))


# --- descent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_falls_from_every_start(encoder, content, style, judge, optimizer, start):
    trace = Trace()
    painting = optimize(content, style, encoder, settings(14, optimizer=optimizer, start=start), on_iteration=trace)
    first, last = trace[0][0].losses["total"], judge(painting.picture)["total"]
    assert last < 0.9 * first
    assert painting.picture.shape == content.shape
    assert painting.picture.dtype == torch.float32
    assert painting.picture.min() >= 0 and painting.picture.max() <= 1
    assert not painting.picture.requires_grad
    assert len(trace) == painting.steps == 14 and not painting.stopped
    assert [iteration.step for iteration, _ in trace] == list(range(1, 15))
    assert all(iteration.steps == 14 for iteration, _ in trace)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("content", lambda content, style: content),
        ("grey", lambda content, style: torch.full_like(content, 0.5)),
    ],
)
def test_the_first_evaluation_is_of_the_start(encoder, content, style, judge, optimizer, start, expected):
    trace = Trace()
    optimize(content, style, encoder, settings(1, optimizer=optimizer, start=start), on_iteration=trace)
    assert trace[0][0].losses == pytest.approx(judge(expected(content, style)), rel=1e-4, abs=1e-6)


def test_every_reported_loss_is_that_of_the_picture_before_the_step(encoder, content, style, judge):
    """Against an evaluation of one's own, all along Adam's path."""
    trace = Trace()
    painting = optimize(content, style, encoder, settings(6, start="noise"), on_iteration=trace)
    for (_, picture), (following, _) in pairwise(trace):
        assert following.losses == pytest.approx(judge(picture), rel=1e-3)
    assert painting.losses == trace[-1][0].losses
    assert torch.equal(painting.picture, trace[-1][1])
    losses = painting.losses
    assert losses["total"] == pytest.approx(losses["content"] + losses["style"] + losses["tv"])


def test_the_weights_of_the_losses_are_used(encoder, content, style):
    """Nothing but content: the picture stays. Nothing but style: it leaves."""
    only_content = LossSettings(style_weight=0, tv_weight=0)
    only_style = LossSettings(content_weight=0, tv_weight=0)
    kept = optimize(content, style, encoder, settings(5, loss=only_content))
    left = optimize(content, style, encoder, settings(5, loss=only_style))
    assert kept.losses["total"] == pytest.approx(0, abs=1e-6)
    # The gradient of exactly 0 is 0 up to rounding, which Adam turns into steps of any sign.
    assert left.losses["content"] == 0 and left.losses["style"] > 0
    assert (left.picture - content).abs().mean() > 0.01


def test_reduced_precision_optimises_as_well(vgg19, content, style, judge):
    encoder = Encoder(vgg19, dtype=torch.bfloat16)
    trace = Trace()
    painting = optimize(content, style, encoder, settings(10, start="noise"), on_iteration=trace)
    assert trace[0][0].terms.total.dtype == torch.float32
    assert judge(painting.picture)["total"] < 0.8 * trace[0][0].losses["total"]


# --- determinism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_seed_gives_one_painting_bit_for_bit(encoder, content, style, optimizer):
    def paint(seed: int, elsewhere: int) -> torch.Tensor:
        torch.manual_seed(elsewhere)
        return optimize(content, style, encoder, settings(4, optimizer=optimizer, start="noise", seed=seed)).picture

    assert torch.equal(paint(7, elsewhere=0), paint(7, elsewhere=1)), "the process's own generator has no say"
    assert not torch.equal(paint(7, elsewhere=0), paint(8, elsewhere=0))


def test_the_pictures_given_stay_as_they_were(encoder, content, style):
    given = [content.clone(), style.clone(), content.clone()]
    optimize(given[0], given[1], encoder, settings(2), start=given[2])
    optimize(given[0], given[1], encoder, settings(2, start="content", optimizer="lbfgs"))
    assert torch.equal(given[0], content) and torch.equal(given[1], style) and torch.equal(given[2], content)


def test_a_given_start_replaces_the_settings_start(encoder, content, style, judge):
    warm = optimize(content, style, encoder, settings(8)).picture
    trace = Trace()
    optimize(content, style, encoder, settings(1, start="noise"), start=warm, on_iteration=trace)
    assert trace[0][0].losses == pytest.approx(judge(warm), rel=1e-3)


# --- the callback --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_callback_that_returns_false_ends_the_run(encoder, content, style, optimizer):
    seen = []

    def stop_at_three(iteration: Iteration) -> bool:
        seen.append(iteration.step)
        return iteration.step < 3

    painting = optimize(content, style, encoder, settings(50, optimizer=optimizer), on_iteration=stop_at_three)
    assert seen == [1, 2, 3]
    assert painting.stopped and painting.steps == 3
    assert painting.picture.shape == content.shape and painting.picture.isfinite().all()


@pytest.mark.parametrize("answer", [None, True, 0, ""], ids=repr)
def test_any_other_answer_of_the_callback_goes_on(encoder, content, style, answer):
    painting = optimize(content, style, encoder, settings(2), on_iteration=lambda iteration: answer)
    assert painting.steps == 2 and not painting.stopped


def test_an_iteration_shows_a_copy_of_the_picture(encoder, content, style):
    def scribble(iteration: Iteration) -> None:
        picture = iteration.picture()
        assert picture.shape == content.shape and picture.is_contiguous() and not picture.requires_grad
        assert picture.min() >= 0 and picture.max() <= 1
        picture.zero_()

    scribbled = optimize(content, style, encoder, settings(3), on_iteration=scribble).picture
    assert torch.equal(scribbled, optimize(content, style, encoder, settings(3)).picture)


def test_an_error_in_the_callback_reaches_the_caller(encoder, content, style):
    def fail(iteration: Iteration) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimize(content, style, encoder, settings(3), on_iteration=fail)


# --- scales --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_last_scale_is_the_contents_own_size_also_when_odd(encoder, style, optimizer):
    content = to_tensor(hills(97, 131))
    trace = Trace()
    painting = optimize(
        content, style, encoder, settings(7, scales=2, optimizer=optimizer, start="noise"), on_iteration=trace
    )
    sizes = [(iteration.height, iteration.width) for iteration, _ in trace]
    assert painting.picture.shape == (1, 3, 131, 97)
    # √2 smaller first; the step that does not divide goes to the smaller one.
    assert sizes == [(93, 69)] * 4 + [(131, 97)] * 3
    assert painting.steps == 7
    assert trace[-1][0].losses["total"] < trace[4][0].losses["total"], "the loss falls within the last scale"
    for (iteration, picture), size in zip(trace, sizes, strict=True):
        assert picture.shape[-2:] == size and iteration.height == size[0]


@pytest.mark.parametrize(("steps", "scales"), [(1, 3), (2, 3), (3, 3), (8, 3), (1, 1)])
def test_steps_are_counted_over_all_scales(encoder, style, steps, scales):
    content = to_tensor(hills(140, 132))
    trace = Trace()
    painting = optimize(content, style, encoder, settings(steps, scales=scales), on_iteration=trace)
    assert painting.steps == len(trace) == steps
    assert (trace[-1][0].height, trace[-1][0].width) == (132, 140), "the size asked for is always painted at"
    heights = [iteration.height for iteration, _ in trace]
    assert heights == sorted(heights)
    assert set(heights) <= {66, 93, 132}


def test_scales_that_would_be_too_small_are_left_out(encoder, content, style):
    trace = Trace()
    optimize(content, style, encoder, settings(4, scales=6), on_iteration=trace)
    assert {(iteration.height, iteration.width) for iteration, _ in trace} == {(64, 72)}


def test_stopping_at_a_small_scale_still_gives_the_contents_size(encoder, style):
    content = to_tensor(hills(133, 131))
    painting = optimize(content, style, encoder, settings(9, scales=3), on_iteration=lambda iteration: False)
    assert painting.steps == 1 and painting.stopped
    assert painting.picture.shape == content.shape
    assert painting.picture.min() >= 0 and painting.picture.max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (33, 129), (96, 40)], ids=str)
def test_the_style_may_have_another_size(encoder, content, size):
    height, width = size
    painting = optimize(content, to_tensor(strokes(width, height)), encoder, settings(2, start="style"))
    assert painting.picture.shape == content.shape


def test_the_size_of_the_style_sets_the_size_of_the_strokes(encoder, content, judge):
    """The same picture twice as large has other statistics, so it is another target."""
    small, large = (to_tensor(strokes(64, 80).resize((64 * k, 80 * k))) for k in (1, 2))
    results = [optimize(content, style, encoder, settings(1)).losses["style"] for style in (small, large)]
    assert results[0] == pytest.approx(judge(content)["style"], rel=1e-4)
    assert results[0] != pytest.approx(results[1], rel=0.02)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["content", "style"])
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (64, 64)], ids=str)
def test_a_shape_that_is_no_picture_is_refused(encoder, content, style, field, shape):
    pictures = {"content": content, "style": style, field: torch.rand(shape)}
    with pytest.raises(InvalidInput, match="expected \\(1, 3, height, width\\)") as refusal:
        optimize(**pictures, encoder=encoder, settings=settings(1))
    assert refusal.value.field == field


@pytest.mark.parametrize("field", ["content", "style"])
@pytest.mark.parametrize("size", [(SMALLEST_SIDE - 1, 200), (200, SMALLEST_SIDE - 1), (1, 1)], ids=str)
def test_a_picture_that_is_too_small_is_refused(encoder, content, style, field, size):
    pictures = {"content": content, "style": style, field: torch.rand(1, 3, *size)}
    with pytest.raises(InvalidInput) as refusal:
        optimize(**pictures, encoder=encoder, settings=settings(1))
    assert refusal.value.field == field
    assert f"{size[1]}×{size[0]}" in refusal.value.message
    assert f"{SMALLEST_SIDE}×{SMALLEST_SIDE}" in refusal.value.message


def test_the_smallest_picture_is_painted(encoder, style):
    smallest = torch.rand(1, 3, SMALLEST_SIDE, SMALLEST_SIDE)
    assert optimize(smallest, style, encoder, settings(1)).picture.shape == smallest.shape


@pytest.mark.parametrize("field", ["content", "style", "start"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(encoder, content, style, field, value):
    pictures = {"content": content, "style": style, "start": content.clone()}
    pictures[field] = pictures[field].clone()
    pictures[field][0, 1, 5, 6] = value
    with pytest.raises(InvalidInput, match="not numbers") as refusal:
        optimize(**pictures, encoder=encoder, settings=settings(1))
    assert refusal.value.field == field


@pytest.mark.parametrize("shape", [(1, 3, 64, 71), (3, 64, 72), (1, 3, 72, 64)], ids=str)
def test_a_start_of_another_shape_is_refused(encoder, content, style, shape):
    with pytest.raises(InvalidInput, match="expected the content's shape \\(1, 3, 64, 72\\)") as refusal:
        optimize(content, style, encoder, settings(1), start=torch.rand(shape))
    assert refusal.value.field == "start"


@pytest.mark.parametrize("stop", [True, False])
def test_a_loss_that_is_no_number_is_reported_and_no_picture_returned(encoder, content, style, stop):
    overflowing = LossSettings(style_weight=3e38)
    with pytest.raises(OptimizationFailed, match="not a number") as failure:
        optimize(content, style, encoder, settings(2, loss=overflowing), on_iteration=lambda iteration: not stop)
    assert failure.value.code == "optimization_failed"
    assert "learning rate" in failure.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", -1),
        ("steps", MAX_STEPS + 1),
        ("optimizer", "sgd"),
        ("start", "white"),
        ("scales", 0),
        ("scales", 7),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", 10),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InvalidInput, match=f"^{field} is ") as refusal:
        OptimizerSettings(**{field: value})
    assert refusal.value.field == field
    assert str(value) in refusal.value.message and "expected" in refusal.value.message


def test_settings_at_the_limits_are_taken():
    OptimizerSettings(steps=1, scales=1)
    OptimizerSettings(steps=MAX_STEPS, scales=6, learning_rate=9.99)
