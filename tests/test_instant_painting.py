"""A painting in one pass in any style: sizes, colours, borders, several styles, and what is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import hills, strokes

from shared import weights
from shared.adain import LAYER, MARGIN, AdaINDecoder, paint_by_statistics
from shared.errors import InvalidInput, PictureError
from shared.fast_painting import EncodedPainting
from shared.images import decode, encode, match_color, preserve_color, to_picture, to_tensor
from shared.instant_painting import SHARE, STYLE_SIDES, paint_instantly

CONTENT, STYLE, OTHER = encode(hills(120, 90)), encode(strokes(90, 90)), encode(strokes(80, 100, seed=3))


@pytest.fixture(scope="module")
def decoder() -> AdaINDecoder:
    return AdaINDecoder(weights.load("adain-decoder"))


@pytest.fixture
def paint(encoder, decoder, monkeypatch):
    """Paints at 96 pixels, with style pictures of that size, what a test does not say otherwise."""
    monkeypatch.setattr("shared.instant_painting.STYLE_SIDES", (96, 96))

    def run(content=CONTENT, style=STYLE, *, size: int | None = 96, **options) -> EncodedPainting:
        return paint_instantly(encoder, decoder, content, style, size=size, **options)

    return run


def levels(picture: Image.Image | bytes) -> np.ndarray:
    picture = decode(picture) if isinstance(picture, bytes) else picture
    return np.asarray(picture.convert("RGB")).astype(int)


def flat(level: int, width: int = 96, height: int = 72) -> bytes:
    return encode(Image.new("RGB", (width, height), (level,) * 3))


def statistics(encoder, data: bytes) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(torch.std_mean(encoder(to_tensor(decode(data, longer_side=96)), [LAYER])[LAYER], (-2, -1)))


def test_the_painting_has_the_styles_statistics_and_colours(encoder, paint):
    painted = paint().data
    wanted, before, after = (statistics(encoder, data) for data in (STYLE, CONTENT, painted))
    assert (after - wanted).norm() < 0.6 * (before - wanted).norm()
    colours, style = (levels(data).reshape(-1, 3) for data in (painted, decode_to(STYLE, 96)))
    assert np.abs(colours.mean(0) - style.mean(0)).max() < 8
    # It is still the content's picture: light where that was light.
    luma = [np.asarray(decode(data, longer_side=96).convert("L")).ravel() for data in (painted, CONTENT)]
    assert abs(np.corrcoef(luma)[0, 1]) > 0.3


def decode_to(data: bytes, side: int) -> bytes:
    return encode(decode(data, longer_side=side))


def test_what_is_painted_is_the_pass_in_the_styles_colours(encoder, decoder, paint):
    content, style = (decode(data, longer_side=96) for data in (CONTENT, STYLE))
    expected = paint_by_statistics(
        encoder, decoder, to_tensor(content), to_tensor(style), strength=SHARE, margin=MARGIN
    )
    expected = match_color(to_picture(expected), style)
    assert np.abs(levels(paint().data) - levels(expected)).max() <= 1
    kept = preserve_color(expected, content)
    assert np.abs(levels(paint(preserve_color=True).data) - levels(kept)).max() <= 2


@pytest.mark.parametrize("size", [(32, 32), (33, 39), (64, 40), (97, 71), (101, 64)])
def test_every_size_is_kept(paint, size):
    painting = paint(encode(hills(*size)), size=None)
    assert decode(painting.data).size == size
    assert set(painting.seconds) == {"decode", "network", "finish", "encode"}


def test_the_longer_side_is_the_one_asked_for(paint):
    assert decode(paint(size=77).data).size == (77, 58)


def test_strength_0_is_the_content_and_between_it_is_the_mixture(paint):
    content = levels(decode(CONTENT, longer_side=96))
    nothing, half, whole = (levels(paint(strength=strength).data) for strength in (0.0, 0.5, 1.0))
    assert (nothing == content).all()
    assert np.abs(whole - content).mean() > 10
    assert np.abs(half - (content + whole) / 2).max() <= 1


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_picture_is_painted_evenly_up_to_its_border(paint, level):
    """Without mirrored surroundings the encoder's zeros beyond the border stand as a frame in the painting."""
    painted = levels(paint(flat(level)).data)
    inside = painted[24:-24, 24:-24].mean()
    for border in (painted[:8], painted[-8:], painted[:, :8], painted[:, -8:]):
        assert abs(border.mean() - inside) < 4
    assert np.abs(painted.mean((0, 1)) - levels(decode_to(STYLE, 96)).mean((0, 1))).max() < 12


def test_without_a_margin_the_border_would_show(encoder, decoder):
    content, style = to_tensor(decode(flat(128))), to_tensor(decode(STYLE))
    even, framed = (paint_by_statistics(encoder, decoder, content, style, margin=m) for m in (MARGIN, 0))
    assert even.std((-2, -1)).max() < 0.1 < framed.std((-2, -1)).max()


def test_a_grey_style_gives_a_grey_painting(paint):
    grey = encode(strokes(90, 90).convert("L").convert("RGB"))
    painted = levels(paint(style=grey).data)
    assert (painted.max(-1) - painted.min(-1)).max() <= 2 and painted.std() > 10


def test_a_flat_style_gives_its_colour(paint):
    painted = levels(paint(style=encode(Image.new("RGB", (64, 64), (200, 40, 90)))).data)
    assert np.abs(painted - (200, 40, 90)).max() <= 2


def test_several_styles_are_mixed_by_weight(paint):
    alone, other = (levels(paint(style=style).data) for style in (STYLE, OTHER))
    assert (levels(paint(style=[(STYLE, 3.0)]).data) == alone).all()
    assert (levels(paint(style=[(STYLE, 2.0), (OTHER, 0.0)]).data) == alone).all()
    mixed, means = levels(paint(style=[(STYLE, 1.0), (OTHER, 3.0)]).data), [alone.mean((0, 1)), other.mean((0, 1))]
    assert np.abs(mixed.mean((0, 1)) - (means[0] + 3 * means[1]) / 4).max() < 4
    assert np.abs(mixed - other).mean() < np.abs(mixed - alone).mean()


def test_the_mixture_of_statistics_is_the_mixture_of_activations(encoder):
    """Equation 15, seen from the decoder."""
    given = []

    def decode(features: torch.Tensor) -> torch.Tensor:
        given.append(features)
        return torch.zeros(1, 3, features.shape[-2] * 8, features.shape[-1] * 8)

    content, first, second = to_tensor(hills(64, 64)), to_tensor(strokes(64, 72)), to_tensor(strokes(80, 64, seed=3))
    for style in (first, second, [(first, 1.0), (second, 3.0)]):
        paint_by_statistics(encoder, decode, content, style, margin=MARGIN)
    torch.testing.assert_close(given[2], (given[0] + 3 * given[1]) / 4, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("weights_", [[], [0.0, 0.0], [1.0, -0.5], [float("nan"), 1.0]])
def test_weights_that_mean_nothing_are_refused(paint, weights_):
    with pytest.raises(InvalidInput, match="weights of the styles") as caught:
        paint(style=[(STYLE, weight) for weight in weights_])
    assert caught.value.field == "style"


@pytest.mark.parametrize(
    ("content", "style", "complaint"),
    [
        (encode(hills(96, 20)), STYLE, "the picture would be 96×20 pixels"),
        (CONTENT, encode(hills(96, 20)), "the style picture would be 96×20 pixels"),
    ],
)
def test_what_is_too_narrow_is_refused(paint, content, style, complaint):
    with pytest.raises(InvalidInput, match=complaint) as caught:
        paint(content, style)
    assert caught.value.field == "size" and caught.value.hint


def test_bytes_that_are_no_picture_are_refused(paint):
    for arguments in ((b"nothing", STYLE), (CONTENT, b"nothing")):
        with pytest.raises(PictureError):
            paint(*arguments)


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_the_recipe_is_written_into_the_picture(paint, format):
    picture = Image.open(io.BytesIO(paint(size=64, format=format, recipe={"Engine": "instant"}).data))
    found = picture.text if format == "png" else json.loads(picture.getexif()[270])
    assert found == {"Engine": "instant"}


@pytest.mark.parametrize(("size", "expected"), [(64, 256), (300, 300), (600, 384)])
def test_the_style_picture_is_brought_to_a_scale_that_the_decoder_knows(decoder, size, expected):
    seen = []

    def look(picture: torch.Tensor, layers: list[str]) -> dict[str, torch.Tensor]:
        seen.append(max(picture.shape[-2:]) - 2 * MARGIN)
        return {LAYER: torch.zeros(1, 512, picture.shape[-2] // 8, picture.shape[-1] // 8)}

    look.device = torch.device("cpu")
    paint_instantly(look, lambda x: torch.zeros(1, 3, x.shape[-2] * 8, x.shape[-1] * 8), CONTENT, STYLE, size=size)
    assert seen[1] == expected and STYLE_SIDES == (256, 384)
