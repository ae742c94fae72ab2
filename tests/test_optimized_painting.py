"""From encoded pictures to an encoded painting: sizes, colours, regions, several styles, and runs that are watched."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import hills, strokes

from shared import images, optimized_painting, weights
from shared.adain import AdaINDecoder, paint_by_statistics
from shared.errors import InvalidInput, PictureError
from shared.images import DecodeLimits, decode, encode, preserve_color, to_picture, to_tensor
from shared.optimized_painting import OptimizedPainting, StyleFile, paint_optimized
from shared.optimizer import Checkpoint, Iteration, OptimizationFailed, OptimizerSettings, optimize
from shared.perceptual_loss import LossSettings, PerceptualLoss

SHALLOW = LossSettings({"relu2_1": 1.0}, {"relu1_1": 0.5, "relu2_1": 0.5}, style_weight=20.0)
"""Layers that take little time."""

CONTENT, STYLE, OTHER = encode(hills(120, 90)), encode(strokes(90, 90)), encode(strokes(80, 100, seed=3))
"""PNG files; at 64 pixels they are 64×48, 64×64 and 51×64."""


def settings(steps: int = 2, **options) -> OptimizerSettings:
    return OptimizerSettings(**{"steps": steps, "scales": 1, "loss": SHALLOW} | options)


@pytest.fixture
def paint(encoder):
    """Paints at 64 pixels what a test does not say otherwise."""

    def run(style=STYLE, steps: int = 2, *, content=CONTENT, size: int = 64, **options) -> OptimizedPainting:
        chosen = options.pop("settings", settings(steps))
        return paint_optimized(encoder, content, style, chosen, size=size, **options)

    return run


def levels(picture: Image.Image | bytes) -> np.ndarray:
    picture = decode(picture) if isinstance(picture, bytes) else picture
    return np.asarray(picture.convert("RGB")).astype(int)


def first_losses(encoder, targets, picture: torch.Tensor = None) -> dict[str, float]:
    """Of the content itself, where a run begins, against style targets that ``targets`` makes of the loss."""
    loss, content = PerceptualLoss(encoder, SHALLOW), to_tensor(decode(CONTENT, longer_side=64))
    with torch.no_grad():
        return loss(content if picture is None else picture, loss.content_target(content), targets(loss)).values()


class Notes:
    """A record of a run that keeps everything."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.starts: list[np.ndarray] = []
        self.checkpoints: list[Checkpoint] = []
        self.losses: list[dict[str, float]] = []
        self.result: Image.Image | None = None

    def __call__(self, content: Image.Image, styles: Sequence[Image.Image]) -> Notes:
        self.calls.append("made")
        self.content, self.styles = content, list(styles)
        return self

    def on_iteration(self, iteration: Iteration) -> bool:
        self.calls.append(f"step {iteration.step}")
        self.losses.append(iteration.losses)
        return False  # only the caller's own answer may end a run

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.calls.append(f"checkpoint {checkpoint.done}")
        self.checkpoints.append(checkpoint)

    def finish(self, picture: Image.Image) -> None:
        self.calls.append("finished")
        self.result = picture


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def saved_often(monkeypatch):
    """A checkpoint after every second evaluation."""
    monkeypatch.setitem(optimize.__kwdefaults__, "checkpoint_every", 2)


# The painting


def test_a_painting_is_an_encoded_picture_with_its_recipe(paint):
    painting = paint(steps=3, recipe={"Software": "Lienzo", "Steps": "3"})
    picture = Image.open(io.BytesIO(painting.data))
    assert (picture.format, picture.size) == ("PNG", (64, 48))
    assert picture.text == {"Software": "Lienzo", "Steps": "3"}
    assert (painting.steps, painting.stopped) == (3, False)
    assert set(painting.losses) == {"content", "style", "tv", "total"}
    assert list(painting.seconds) == ["decode", "network", "finish", "encode"]
    assert all(spent >= 0 for spent in painting.seconds.values())
    assert np.abs(levels(picture) - levels(decode(CONTENT, longer_side=64))).mean() > 2, "something was painted"


@pytest.mark.parametrize(("format", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_format_is_the_one_asked_for(paint, format, name):
    assert Image.open(io.BytesIO(paint(steps=1, format=format).data)).format == name


def test_one_picture_is_one_style_of_any_weight(paint):
    expected = paint(STYLE).data
    assert paint([StyleFile(STYLE)]).data == expected
    assert paint([StyleFile(STYLE, 7.0)]).data == expected


def test_strength_and_the_contents_colours_come_last(paint):
    content, painted = decode(CONTENT, longer_side=64), decode(paint().data)
    np.testing.assert_array_equal(levels(paint(strength=0.0).data), levels(content))
    half = levels(paint(strength=0.5).data)
    np.testing.assert_allclose(half, (levels(content) + levels(painted)) / 2, atol=0.51)
    kept = levels(paint(preserve_color=True).data)
    np.testing.assert_array_equal(kept, levels(preserve_color(painted, content)))


# Sizes


def test_pictures_are_compared_at_the_size_asked_for(paint, notes):
    paint(steps=1, record=notes)
    assert (notes.content.size, [style.size for style in notes.styles]) == ((64, 48), [(64, 64)])
    np.testing.assert_array_equal(levels(notes.content), levels(decode(CONTENT, longer_side=64)))
    np.testing.assert_array_equal(levels(notes.styles[0]), levels(decode(STYLE, longer_side=64)))


@pytest.mark.parametrize(("style_scale", "side"), [(1.5, 96), (0.75, 48), (0.635, 41)])
def test_the_scale_of_the_style_is_that_of_its_strokes(paint, notes, style_scale, side):
    painting = paint([StyleFile(STYLE), StyleFile(OTHER)], 1, style_scale=style_scale, record=notes)
    assert [max(style.size) for style in notes.styles] == [side, side]
    np.testing.assert_array_equal(levels(notes.styles[0]), levels(decode(STYLE, longer_side=side)))
    assert notes.content.size == decode(painting.data).size == (64, 48)


def test_the_scale_of_the_style_changes_the_target(encoder, paint):
    for side, scale in ((64, 1.0), (128, 2.0)):
        expected = first_losses(encoder, lambda loss, side=side: loss.style_target(_opened(STYLE, side)))
        assert paint(steps=1, style_scale=scale).losses == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _opened(data: bytes, side: int) -> torch.Tensor:
    return to_tensor(decode(data, longer_side=side))


def test_square_brings_every_picture_to_a_square(paint, notes):
    start = encode(strokes(64, 20, seed=9))
    painting = paint([StyleFile(OTHER)], 1, square=True, style_scale=1.25, start=start, record=notes)
    assert decode(painting.data).size == notes.content.size == (64, 64)
    assert [style.size for style in notes.styles] == [(80, 80)]
    squeezed = decode(CONTENT, longer_side=64).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(levels(notes.content), levels(squeezed))
    assert paint(OTHER, 1, square=False).data != painting.data


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"style_scale": 0.3}, "style is 19×19 pixels, expected at least 32×32"),
        ({"content": encode(hills(200, 60))}, "content is 64×19 pixels, expected at least 32×32"),
    ],
)
def test_a_picture_that_is_too_small_for_the_layers_is_told_with_both_sizes(paint, notes, options, numbers):
    with pytest.raises(InvalidInput, match=numbers):
        paint(record=notes, **options)
    assert "finished" not in notes.calls and "step 1" not in notes.calls


# Colours


def test_the_style_takes_the_contents_colours_before_it_is_compared(encoder, paint, notes):
    painting = paint([StyleFile(STYLE), StyleFile(OTHER)], 1, match_color=True, record=notes)
    content = decode(CONTENT, longer_side=64)
    for style, data in zip(notes.styles, (STYLE, OTHER), strict=True):
        np.testing.assert_array_equal(levels(style), levels(images.match_color(decode(data, longer_side=64), content)))
    expected = first_losses(encoder, lambda loss: loss.style_target([to_tensor(style) for style in notes.styles]))
    assert painting.losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert paint([StyleFile(STYLE), StyleFile(OTHER)], 1).losses["style"] != pytest.approx(expected["style"], rel=0.05)


# Where to paint


def left_half(width: int, height: int) -> Image.Image:
    """White on the left, black on the right."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


@pytest.mark.parametrize("size", [(64, 48), (200, 33)])
@pytest.mark.parametrize("finish", [{}, {"preserve_color": True}, {"strength": 0.4}], ids=str)
def test_what_the_mask_leaves_out_is_the_content_to_the_last_level(paint, size, finish):
    """Also where the mask has another size, and with all that is done to a painting in the end."""
    mask = left_half(*size)
    painted = levels(paint(steps=3, mask=encode(mask), **finish).data)
    content = levels(decode(CONTENT, longer_side=64))
    outside = np.asarray(mask.resize((64, 48), Image.Resampling.BILINEAR)) == 0
    assert 0.4 < outside.mean() <= 0.5
    np.testing.assert_array_equal(painted[outside], content[outside])
    assert np.abs(painted - content)[~outside].mean() > 1


def test_a_mask_that_is_grey_paints_by_half(paint):
    grey = encode(Image.new("RGB", (64, 48), (128, 128, 128)))
    everywhere = encode(Image.new("L", (64, 48), 255))
    content = levels(decode(CONTENT, longer_side=64))
    half, whole = (np.abs(levels(paint(steps=1, mask=mask).data) - content).mean() for mask in (grey, everywhere))
    assert half == pytest.approx(whole / 2, rel=0.1)


def test_a_mask_over_everything_is_none(paint):
    mask = encode(Image.new("L", (40, 40), 255))
    difference = np.abs(levels(paint(mask=mask).data) - levels(paint().data))
    assert difference.max() <= 1


@pytest.mark.parametrize("where", ["mask", "style"])
def test_a_mask_that_is_black_or_no_picture_is_refused(paint, where):
    for data, error in ((encode(Image.new("L", (64, 48), 0)), InvalidInput), (b"no picture", PictureError)):
        options = {"mask": data} if where == "mask" else {"style": [StyleFile(STYLE, mask=data)]}
        with pytest.raises(error, match="black everywhere" if error is InvalidInput else "no JPEG"):
            paint(**options)


# Several styles


def test_styles_are_blended_by_weight(encoder, paint):
    styles = [_opened(STYLE, 64), _opened(OTHER, 64)]
    found = {}
    for shares in ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        files = [StyleFile(data, share) for data, share in zip((STYLE, OTHER), shares, strict=True)]
        expected = first_losses(encoder, lambda loss, shares=shares: loss.style_target(styles, shares))
        found[shares] = paint(files, 1).losses
        assert found[shares] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    styles_alone = [losses["style"] for losses in found.values()]
    assert len({round(loss, 1) for loss in styles_alone}) == 3


def test_each_style_has_its_place(encoder, paint):
    """Left and right; the masks have another size than the content."""
    left = left_half(128, 96)
    right = left.point(lambda level: 255 - level)
    files = [StyleFile(STYLE, 2.0, encode(left)), StyleFile(OTHER, 1.0, encode(right))]

    def targets(loss: PerceptualLoss) -> list:
        regions = [to_tensor(mask.resize((64, 48), Image.Resampling.BILINEAR))[:, :1] for mask in (left, right)]
        styles = [loss.style_target(_opened(data, 64)) for data in (STYLE, OTHER)]
        return [
            loss.in_region(style, region, share)
            for style, region, share in zip(styles, regions, (2 / 3, 1 / 3), strict=True)
        ]

    expected = first_losses(encoder, targets)
    assert paint(files, 1).losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
    swapped = [StyleFile(STYLE, 2.0, encode(right)), StyleFile(OTHER, 1.0, encode(left))]
    assert paint(swapped, 1).losses["style"] != pytest.approx(expected["style"], rel=0.02)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(paint, weight):
    with pytest.raises(InvalidInput, match="expected a number above 0") as refusal:
        paint([StyleFile(STYLE), StyleFile(OTHER, weight)])
    assert refusal.value.field == "style_weights"


def test_no_style_at_all_is_refused(paint):
    with pytest.raises(InvalidInput, match="no style was given"):
        paint([])


# Where it starts


class FirstPicture:
    """What the first evaluation sees."""

    def __call__(self, iteration: Iteration) -> None:
        if iteration.step == 1:
            self.losses = iteration.losses
            self.picture = iteration.picture()


def test_a_start_is_brought_to_the_size_of_the_content(encoder, paint):
    start = strokes(200, 170, seed=5)
    resized = to_tensor(start.resize((64, 48), Image.Resampling.LANCZOS))
    expected = first_losses(encoder, lambda loss: loss.style_target(_opened(STYLE, 64)), resized)
    first = FirstPicture()
    paint(start=encode(start), settings=settings(start="uniform"), on_iteration=first)
    assert first.losses == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def decoder() -> AdaINDecoder:
    return AdaINDecoder(weights.load("adain-decoder"))


def test_a_first_painting_by_statistics_is_where_it_starts(encoder, decoder, paint):
    painted = paint_by_statistics(encoder, decoder, _opened(CONTENT, 64), _opened(STYLE, 64))
    expected = first_losses(encoder, lambda loss: loss.style_target(_opened(STYLE, 64)), painted)
    first = FirstPicture()
    paint(decoder=decoder, settings=settings(start="uniform"), on_iteration=first)
    assert first.losses == pytest.approx(expected, rel=1e-4)
    # A start that is given goes before it.
    start = encode(strokes(64, 48, seed=5))
    assert paint(decoder=decoder, start=start).data == paint(start=start).data != paint(decoder=decoder).data


def test_first_paintings_of_several_styles_lie_where_these_are_painted(encoder, decoder, paint):
    """Blended by weight; and by region, with the content where no style is."""
    seen, tiny = [], 1e-5

    def start(files: list[StyleFile]) -> torch.Tensor:
        chosen = settings(1, learning_rate=tiny)
        seen.append(decode(paint(files, settings=chosen, decoder=decoder).data))
        return to_tensor(seen[-1])

    alone = [paint_by_statistics(encoder, decoder, _opened(CONTENT, 64), _opened(data, 64)) for data in (STYLE, OTHER)]
    blended = start([StyleFile(STYLE, 3.0), StyleFile(OTHER, 1.0)])
    torch.testing.assert_close(blended, 0.75 * alone[0] + 0.25 * alone[1], atol=0.6 / 255, rtol=0)
    left = left_half(64, 48)
    quarter = left.copy()
    quarter.paste(0, (0, 0, 64, 24))
    placed = start([StyleFile(STYLE, 1.0, encode(left)), StyleFile(OTHER, 1.0, encode(quarter))])
    expected = _opened(CONTENT, 64)
    expected[..., :24, :32] = alone[0][..., :24, :32]
    expected[..., 24:, :32] = (alone[0] + alone[1])[..., 24:, :32] / 2
    torch.testing.assert_close(placed, expected, atol=0.6 / 255, rtol=0)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"content": encode(hills(600, 20))}, "content is 64×2 pixels, expected at least 32×32"),
        ({"style_scale": 0.1}, "style is 6×6 pixels, expected at least 32×32"),
    ],
)
def test_what_is_too_small_for_a_first_painting_is_refused_as_any_other(paint, decoder, options, numbers):
    with pytest.raises(InvalidInput, match=numbers):
        paint(decoder=decoder, **options)


# Watching, stopping, going on


def test_a_record_sees_the_whole_run(paint, notes, saved_often):
    told = []
    painting = paint(steps=5, record=notes, on_iteration=lambda iteration: told.append(iteration.step))
    made, *rest = notes.calls
    assert made == "made"
    assert rest == ["step 1", "step 2", "checkpoint 2", "step 3", "step 4", "checkpoint 4", "step 5", "finished"]
    assert told == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(levels(notes.result), levels(painting.data))
    assert notes.losses[-1] == painting.losses
    assert list(painting.seconds)[-1] == "record"
    assert paint(steps=5).data == painting.data, "being watched changes nothing"


def test_the_record_is_given_the_finished_picture(paint, notes):
    painting = paint(record=notes, strength=0.5, mask=encode(left_half(64, 48)), preserve_color=True)
    np.testing.assert_array_equal(levels(notes.result), levels(painting.data))


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bytes(paint, notes, saved_often, optimizer):
    options = {
        "settings": settings(6, optimizer=optimizer, search_iterations=2, start="white"),
        "style": [StyleFile(STYLE, 2.0), StyleFile(OTHER, 1.0)],
        "mask": encode(left_half(64, 48)),
        "match_color": True,
    }
    whole = paint(record=notes, **options)
    checkpoint = notes.checkpoints[0]
    assert 0 < checkpoint.done < 6
    again = Notes()
    resumed = paint(resume=checkpoint, record=again, **options)
    assert resumed.data == whole.data
    assert (resumed.steps, resumed.losses) == (whole.steps, whole.losses)
    assert again.calls[1] == f"step {checkpoint.done + 1}"
    assert again.losses == notes.losses[checkpoint.done :]


def test_a_checkpoint_of_another_size_is_refused(paint, notes, saved_often):
    paint(steps=4, record=notes)
    with pytest.raises(InvalidInput, match="of another run") as refusal:
        paint(steps=4, size=72, resume=notes.checkpoints[0])
    assert refusal.value.field == "resume"


def test_time_that_is_up_ends_the_run_with_what_there_is(paint, notes, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(optimized_painting, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    constant = {"learning_rate": 0.02, "final_rate": 1.0}
    painting = paint(settings=settings(50, **constant), max_seconds=3.5, record=notes)
    assert (painting.steps, painting.stopped) == (4, True)
    assert notes.calls[-2:] == ["step 4", "finished"]
    assert painting.data == paint(settings=settings(4, **constant)).data


def test_no_time_at_all_still_gives_a_picture(paint):
    painting = paint(steps=50, max_seconds=0)
    assert (painting.steps, painting.stopped) == (1, True)
    assert decode(painting.data).size == (64, 48)


def test_time_enough_changes_nothing(paint):
    painting = paint(steps=3, max_seconds=600)
    assert (painting.steps, painting.stopped) == (3, False)


def test_the_caller_may_end_the_run(paint, notes):
    painting = paint(steps=50, record=notes, on_iteration=lambda iteration: iteration.step < 2)
    assert (painting.steps, painting.stopped) == (2, True)
    assert notes.calls == ["made", "step 1", "step 2", "finished"]


def test_a_run_that_fails_is_never_finished(paint, notes):
    overflowing = settings(loss=LossSettings(SHALLOW.content_layers, SHALLOW.style_layers, style_weight=3e38))
    with pytest.raises(OptimizationFailed, match="not a number"):
        paint(settings=overflowing, record=notes)
    assert notes.calls == ["made", "step 1", "step 2"]


# Refusals


@pytest.mark.parametrize("where", ["content", "style", "start", "mask", "style mask"])
def test_limits_hold_for_every_picture(paint, where):
    large = encode(hills(300, 200))
    options = {
        "content": {"content": large},
        "style": {"style": large},
        "start": {"start": large},
        "mask": {"mask": large},
        "style mask": {"style": [StyleFile(STYLE, mask=large)]},
    }[where]
    limits = DecodeLimits(max_pixels=120 * 100)
    assert paint(steps=1, limits=limits).steps == 1
    with pytest.raises(PictureError, match="300×200") as refusal:
        paint(steps=1, limits=limits, **options)
    assert refusal.value.code == "picture_too_large"


def test_the_result_of_a_run_is_that_of_the_optimiser(encoder, paint):
    """Nothing is done to the pictures beyond what is said."""
    painting = optimize(_opened(CONTENT, 64), _opened(STYLE, 64), encoder, settings(3))
    np.testing.assert_array_equal(levels(paint(steps=3).data), levels(to_picture(painting.picture)))
