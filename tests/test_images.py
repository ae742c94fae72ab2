from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import picture_corpus as pictures
import pytest
import scipy.linalg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base as Tag

from shared import images
from shared.errors import InvalidInput, NotFound, PictureError
from shared.images import (
    FORMATS,
    DecodeLimits,
    blend,
    decode,
    encode,
    from_array,
    match_color,
    preserve_color,
    resize,
    thumbnail,
    to_array,
    to_picture,
    to_tensor,
)

# Pillow warns about damaged EXIF; the pictures still decode, which is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

CORPUS = pictures.corpus()
HOSTILE = pictures.hostile()
FINE, FLAT = pictures.noise(), pictures.patches()


def levels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def decoded(name: str, **options) -> np.ndarray:
    return levels(decode(CORPUS[name], **options))


def grey_of(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma as RGB, as Pillow writes greys."""
    return np.asarray(Image.fromarray(rgb).convert("L").convert("RGB")).astype(int)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return np.floor(rgb * share + 255 * (1 - share) + 0.5).astype(int)


def luma(picture: Image.Image) -> np.ndarray:
    return levels(picture) @ np.array([0.299, 0.587, 0.114])


# Kinds


@pytest.mark.parametrize("name", CORPUS)
def test_every_kind_becomes_upright_rgb(name):
    assert decoded(name).shape == (pictures.HEIGHT, pictures.WIDTH, 3)


LOSSLESS = [
    "png", "png-rgb-16", "png-chunks-unknown", "png-animated", "webp-lossless", "webp-animated", "bmp", "tiff",
    "tiff-lzw", "tiff-pages", "tiff-cmyk",
]  # fmt: skip
LOSSY = ["jpeg", "jpeg-progressive", "jpeg-cmyk", "jpeg-and-more", "jpeg-exif-broken", "tiff-jpeg", "tiff-lab"]
PALETTES = ["png-palette", "gif", "gif-animated", "bmp-palette", "tiff-palette"]
ORIENTED = ["png", "webp", "tiff-raw", "tiff-tiff_lzw"]


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_kinds_are_exact_and_of_the_first_frame(name):
    np.testing.assert_array_equal(decoded(name), FINE)


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_are_exact(name):
    np.testing.assert_array_equal(decoded(name), FLAT)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_kinds_are_near(name):
    np.testing.assert_allclose(decoded(name), FLAT, atol=2)


def test_lossy_webp_is_near_inside_the_patches():
    centres = decoded("webp")[[8, 8, 20, 20], [8, 24, 8, 24]]
    np.testing.assert_allclose(centres, pictures.PATCHES, atol=4)


@pytest.mark.parametrize("name", ["png-grey", "gif-grey"])
def test_greys_are_exact(name):
    np.testing.assert_array_equal(decoded(name), grey_of(FINE))


def test_a_grey_jpeg_is_near():
    np.testing.assert_allclose(decoded("jpeg-grey"), grey_of(FLAT), atol=2)


@pytest.mark.parametrize("name", ["png-1", "bmp-1", "tiff-1"])
def test_black_and_white_is_exact(name):
    expected = np.asarray(Image.fromarray(FINE).convert("1")).astype(int)[..., None] * 255
    np.testing.assert_array_equal(decoded(name), expected.repeat(3, axis=2))


def test_a_run_length_bitmap_is_exact():
    row = [(255, 0, 0)] * 16 + [(0, 0, 255)] * 16
    np.testing.assert_array_equal(decoded("bmp-run-length"), [row] * 24)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ORIENTED)
def test_every_exif_orientation_is_upright_exactly(kind, orientation):
    np.testing.assert_array_equal(decoded(f"{kind}-exif-{orientation}"), FINE)


@pytest.mark.parametrize("kind", ORIENTED)
def test_a_turned_picture_keeps_its_aspect_when_resized(kind):
    assert decode(CORPUS[f"{kind}-exif-6"], longer_side=16).size == (16, 12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("longer_side", [None, 32, 16])
def test_every_exif_orientation_of_a_jpeg_is_upright_also_when_resized(orientation, longer_side):
    got = decoded(f"jpeg-exif-{orientation}", longer_side=longer_side)
    scale = (longer_side or 32) / 32
    assert got.shape == (24 * scale, 32 * scale, 3)
    rows, columns = (np.array(at) * scale for at in ([8, 8, 20, 20], [8, 24, 8, 24]))
    np.testing.assert_allclose(got[rows.astype(int), columns.astype(int)], pictures.PATCHES, atol=6)


# Transparency


@pytest.mark.parametrize("name", ["png-rgba", "webp-alpha", "tiff-deflate-alpha"])
def test_alpha_lies_over_white_exactly(name):
    np.testing.assert_array_equal(decoded(name), over_white(FINE, FINE[..., 2]))


def test_alpha_of_a_grey_lies_over_white_exactly():
    np.testing.assert_array_equal(decoded("png-grey-alpha"), over_white(grey_of(FINE), FINE[..., 2]))


def test_alpha_of_a_palette_lies_over_white_exactly():
    # The palette's order is Pillow's: find each patch's alpha through its index.
    indices = np.asarray(Image.fromarray(FLAT).quantize(4))
    np.testing.assert_array_equal(decoded("png-palette-alpha"), over_white(FLAT, indices * 85))
    np.testing.assert_array_equal(decoded("gif-transparent"), over_white(FLAT, np.where(indices == 0, 0, 255)))


def test_a_colour_key_is_transparent():
    key = (FINE[0, 0] == FINE).all(axis=2)
    np.testing.assert_array_equal(decoded("png-rgb-colour-key"), np.where(key[..., None], 255, FINE))
    np.testing.assert_array_equal(decoded("png-rgb-16-colour-key"), np.where(key[..., None], 255, FINE))
    grey = grey_of(FINE)
    np.testing.assert_array_equal(decoded("png-grey-colour-key"), np.where(grey == grey[0, 0], 255, grey))


def test_a_colour_key_counts_in_the_depth_of_the_file():
    # Two bits: the levels 0, 1, 2, 3 of each row are 0, 85, 170, 255, and level 2 is the key.
    np.testing.assert_array_equal(decoded("png-grey-2-bit-colour-key")[0, :4, 0], [0, 85, 255, 255])
    deep = FINE[..., :1].astype(int).repeat(3, axis=2)
    np.testing.assert_array_equal(decoded("png-grey-16-colour-key"), np.where(deep == deep[0, 0], 255, deep))


# 16 bits


@pytest.mark.parametrize(
    "name", ["png-grey-16", "tiff-grey-16", "tiff-grey-16-big-endian", "tiff-grey-16-white-is-zero"]
)
def test_16_bits_scale_to_8(name):
    np.testing.assert_array_equal(decoded(name), FINE[..., :1].astype(int).repeat(3, axis=2))


def test_16_bits_round_to_the_nearest_level():
    greys = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    data = pictures.png((32, 32), 16, 0, [row.astype(">u2").tobytes() for row in greys])
    np.testing.assert_array_equal(levels(decode(data))[..., 0], np.rint(greys / 257))


def test_32_bits_in_one_channel_are_no_picture():
    for name in ("tiff-float", "tiff-32-bit"):
        with pytest.raises(PictureError, match="8 or 16 bits") as refusal:
            decode(HOSTILE[name])
        assert refusal.value.code == "not_a_picture"


# ICC profiles


def test_a_profile_with_swapped_primaries_swaps_the_channels():
    np.testing.assert_allclose(decoded("png-icc"), FINE[..., [1, 0, 2]], atol=2)
    np.testing.assert_allclose(decoded("webp-icc"), FINE[..., [1, 0, 2]], atol=2)
    np.testing.assert_allclose(decoded("jpeg-icc"), FLAT[..., [1, 0, 2]], atol=4)


def test_a_linear_profile_brightens_by_the_transfer_function():
    data = pictures.save(FINE, "PNG", icc_profile=pictures.rgb_profile(linear=True))
    expected = np.vectorize(pictures.to_srgb)(FINE / 255) * 255
    np.testing.assert_allclose(levels(decode(data)), expected, atol=2)


def test_a_grey_profile_applies_to_the_grey():
    grey = grey_of(FINE)
    expected = np.vectorize(pictures.to_srgb)(grey / 255) * 255
    usual = grey > 10  # LittleCMS is coarse where the curve is steepest
    np.testing.assert_allclose(decoded("png-grey-icc")[usual], expected[usual], atol=1)


def test_a_profile_applies_to_the_colours_before_they_lie_over_white():
    np.testing.assert_array_equal(decoded("png-grey-alpha-icc"), over_white(decoded("png-grey-icc"), FINE[..., 2]))


def test_a_colour_profile_applies_to_a_grey_picture():
    data = pictures.save(Image.fromarray(FINE).convert("L"), "PNG", icc_profile=pictures.rgb_profile(linear=True))
    expected = np.vectorize(pictures.to_srgb)(grey_of(FINE) / 255) * 255
    np.testing.assert_allclose(levels(decode(data)), expected, atol=2)


@pytest.mark.parametrize(("name", "upright"), [("jpeg-cmyk-icc", FLAT), ("tiff-cmyk-icc", FINE)])
def test_a_cmyk_profile_applies_to_the_inks(name, upright):
    cyan = 1 - upright[..., 0] / 255  # Pillow's inks of an RGB picture; this profile knows lightness by cyan alone
    lightness = 100 * (1 - cyan)
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)  # CIE 1976
    expected = (np.vectorize(pictures.to_srgb)(luminance) * 255)[..., None].repeat(3, axis=2)
    np.testing.assert_allclose(decoded(name), expected, atol=3)


def test_a_profile_still_counts_in_a_jpeg_decoded_at_a_fraction():
    large = np.kron(FLAT, np.ones((20, 20, 1), np.uint8))
    data = pictures.save(large, "JPEG", quality=95, icc_profile=pictures.rgb_profile("grb"))
    small = levels(decode(data, longer_side=64))[[16, 16, 40, 40], [16, 48, 16, 48]]
    np.testing.assert_allclose(small, np.array(pictures.PATCHES)[:, [1, 0, 2]], atol=4)


@pytest.mark.parametrize("name", ["jpeg-icc-broken", "jpeg-icc-of-another-space"])
def test_a_profile_that_cannot_be_used_is_ignored_and_logged(name, caplog):
    with caplog.at_level(logging.INFO, "shared.images"):
        np.testing.assert_array_equal(decoded(name), decoded("jpeg"))
    assert "ICC profile ignored" in caplog.text


# Refusals

CODES = {
    "empty_picture": ["empty"],
    "not_a_picture": [
        "text", "web-page", "svg", "postscript", "photoshop", "windows-icon", "portable-pixmap", "zip", "zeros",
        "letters-bm", "riff-sound", "tiff-float", "tiff-32-bit",
    ],
    "truncated_picture": [
        "png-signature-only", "jpeg-signature-only", "png-half", "jpeg-half", "webp-half", "gif-half", "bmp-half",
        "tiff-half", "gif-without-frame", "png-checksum", "jpeg-12-bit", "tiff-directory-outside", "png-text-bomb",
        "png-profile-bomb",
    ],
    "picture_too_small": ["png-1x1", "jpeg-1x1", "gif-1x1", "png-thin"],
    "picture_too_large": [
        "png-30000x30000", "png-9000x9000", "png-side-2-billion", "jpeg-65000x65000", "gif-65535x65535",
        "gif-frame-beyond-canvas", "webp-16000x11000", "bmp-60000x60000", "tiff-60000x60000", "jpeg-scan-bomb",
        "jpeg-exif-bomb", "jpeg-segment-bomb", "tiff-strip-bomb", "tiff-tile-bomb", "bmp-run-length-bomb",
    ],
}  # fmt: skip
CODE_OF = {name: code for code, names in CODES.items() for name in names}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_by_code_and_at_once(name):
    start = time.perf_counter()
    with pytest.raises(PictureError) as refusal:
        decode(HOSTILE[name])
    assert time.perf_counter() - start < 0.5
    assert refusal.value.code == CODE_OF[name]
    assert refusal.value.message and refusal.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("png-1x1", "The picture is 1×1 pixels; each side must have at least 16."),
        ("png-9000x9000", "The picture is 9000×9000 = 81,000,000 pixels; at most 64,000,000 pixels are accepted."),
        ("png-30000x30000", "The picture is 30000×30000 pixels; at most 20,000 pixels a side are accepted."),
        ("gif-frame-beyond-canvas", "The picture has more than 178,956,970 pixels; at most 64,000,000 pixels are "),
        ("jpeg-segment-bomb", "The JPEG picture has at least 2,001 segments; at most 2,000 are accepted."),
        ("tiff-strip-bomb", "The TIFF picture has 200,000 strips or tiles; at most 100,000 are accepted."),
    ],
)
def test_a_refusal_states_both_numbers(name, message):
    with pytest.raises(PictureError) as refusal:
        decode(HOSTILE[name])
    assert refusal.value.message.startswith(message)


def test_the_header_alone_refuses_a_large_picture(monkeypatch):
    monkeypatch.setattr(Image.core, "new", None)  # nothing may allocate pixels
    monkeypatch.setattr(Image.core, "fill", None)
    start = time.perf_counter()
    with pytest.raises(PictureError) as refusal:
        decode(HOSTILE["png-30000x30000"])
    assert time.perf_counter() - start < 0.1
    assert refusal.value.code == "picture_too_large"


@pytest.mark.parametrize("name", ["jpeg", "png", "bmp", "webp-lossless", "gif", "tiff"])
def test_the_limits_are_those_given_and_not_pillows(name):
    data, most = CORPUS[name], 32 * 24
    assert decode(data, limits=DecodeLimits(max_pixels=most, max_side=32, min_side=24, max_bytes=len(data)))
    for limits, code in (
        (DecodeLimits(max_pixels=most - 1), "picture_too_large"),
        (DecodeLimits(max_side=31), "picture_too_large"),
        (DecodeLimits(max_bytes=len(data) - 1), "picture_too_large"),
        (DecodeLimits(min_side=25), "picture_too_small"),
    ):
        with pytest.raises(PictureError) as refusal:
            decode(data, limits=limits)
        assert refusal.value.code == code


def test_pillows_own_limit_is_neither_changed_nor_used(monkeypatch):
    before = Image.MAX_IMAGE_PIXELS
    for data in (CORPUS["png"], HOSTILE["png-9000x9000"]):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                decode(data)
            except PictureError as error:
                assert error.code == "picture_too_large"
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Image.open would refuse 768 pixels
    np.testing.assert_array_equal(decoded("png"), FINE)
    np.testing.assert_array_equal(decoded("bmp"), FINE)


def test_the_number_of_bytes_is_limited():
    with pytest.raises(PictureError, match=r"33,554,433 bytes; at most 33,554,432 bytes") as refusal:
        decode(CORPUS["png"].ljust(32 * 2**20 + 1, b"\0"))
    assert refusal.value.code == "picture_too_large"


def test_bytes_after_the_picture_do_no_harm():
    np.testing.assert_array_equal(decode(CORPUS["jpeg"] + HOSTILE["jpeg-segment-bomb"]), decode(CORPUS["jpeg"]))


CUT = ["jpeg", "jpeg-progressive", "png", "webp", "webp-lossless", "gif", "bmp", "tiff", "tiff-lzw", "tiff-jpeg"]


@pytest.mark.parametrize("percent", range(0, 100, 5))
@pytest.mark.parametrize("name", CUT)
def test_a_picture_cut_short_is_whole_or_refused(name, percent):
    data = CORPUS[name][: len(CORPUS[name]) * percent // 100]
    try:
        got = levels(decode(data))
    except PictureError as error:
        assert error.code in ("empty_picture", "not_a_picture", "truncated_picture")
    else:
        np.testing.assert_array_equal(got, decoded(name))


@pytest.mark.parametrize("name", sorted(CORPUS.keys() - {"jpeg-and-more", "tiff-pages"}))
def test_half_a_picture_is_refused(name):  # but for those whose first half holds the whole first picture
    with pytest.raises(PictureError) as refusal:
        decode(CORPUS[name][: len(CORPUS[name]) // 2])
    assert refusal.value.code == "truncated_picture"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(CORPUS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=12),
    in_header=st.booleans(),
    longer_side=st.sampled_from([None, 16, 48]),
)
def test_flipped_bits_only_ever_raise_picture_errors(name, flips, in_header, longer_side):
    data = bytearray(CORPUS[name])
    reach = min(len(data), 160) if in_header else len(data)
    for at, bit in flips:
        data[int(at * reach)] ^= 1 << bit
    try:
        picture = decode(bytes(data), limits=DecodeLimits(max_pixels=1_000_000), longer_side=longer_side)
    except PictureError as error:
        assert error.code in CODES
    except InvalidInput as error:  # the flipped size is so narrow that the one asked for is out of range
        assert error.field == "size"
    else:
        assert picture.mode == "RGB"
        assert longer_side is None or max(picture.size) == longer_side


SIGNATURES = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF    WEBPVP8X", b""]


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from(SIGNATURES), tail=st.binary(max_size=200))
def test_any_bytes_only_ever_raise_picture_errors(head, tail):
    try:
        decode(head + tail, limits=DecodeLimits(max_pixels=1_000_000))
    except PictureError as error:
        assert error.code in CODES


# Paths


def test_a_path_decodes_like_its_bytes_whatever_its_name(tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(CORPUS["png"])
    np.testing.assert_array_equal(levels(decode(path)), FINE)


def test_a_text_file_called_jpg_is_not_a_picture(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(HOSTILE["text"])
    with pytest.raises(PictureError, match="no JPEG, PNG, WebP, GIF, BMP or TIFF") as refusal:
        decode(path)
    assert refusal.value.code == "not_a_picture"


def test_a_path_that_cannot_be_read_is_not_found(tmp_path):
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(NotFound, match="cannot be read"):
            decode(path)


def test_a_large_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    with pytest.raises(PictureError, match=r"5,008 bytes; at most 1,000 bytes"):
        decode(path, limits=DecodeLimits(max_bytes=1000))
    (tmp_path / "empty.png").touch()
    with pytest.raises(PictureError) as refusal:
        decode(tmp_path / "empty.png")
    assert refusal.value.code == "empty_picture"


# Sizes


@pytest.mark.parametrize(
    ("size", "longer_side", "expected"),
    [
        ((32, 24), 16, (16, 12)),
        ((24, 32), 64, (48, 64)),
        ((32, 24), 32, (32, 24)),
        ((1000, 16), 20, (20, 1)),
        ((33, 32), 16, (16, 16)),
    ],
)
def test_the_longer_side_is_exact_and_the_aspect_kept(size, longer_side, expected):
    picture = Image.new("RGB", size, "teal")
    assert resize(picture, longer_side).size == expected
    for format in ("PNG", "JPEG"):
        assert decode(pictures.save(picture, format), longer_side=longer_side).size == expected


def test_a_resized_picture_is_that_of_lanczos():
    expected = Image.fromarray(FINE).resize((16, 12), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize(Image.fromarray(FINE), 16), expected)
    np.testing.assert_array_equal(decode(CORPUS["png"], longer_side=16), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decoded_at_a_fraction_is_close_to_the_whole_resized(mode, monkeypatch):
    size = (1601, 1203)  # no multiple of 8: a fraction's last block reaches beyond the picture
    large = Image.fromarray(pictures.noise()).resize(size, Image.Resampling.BICUBIC).convert(mode)
    data = pictures.save(large, "JPEG", quality=95)
    loaded = []
    load = images.JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        images.JpegImagePlugin.JpegImageFile, "load", lambda self: (loaded.append(self.size), load(self))[1]
    )
    small = decode(data, longer_side=150)
    assert loaded[0] == (401, 301), "a quarter, still more than twice the size asked for"
    difference = np.abs(levels(small) - levels(resize(decode(data), 150)))
    assert difference.mean() < 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize("longer_side", [0, -5, 20_001])
def test_a_longer_side_out_of_range_is_refused(longer_side):
    with pytest.raises(InvalidInput, match=rf"asked for is {longer_side:,} pixels; it must be 1–20,000") as refusal:
        decode(CORPUS["png"], longer_side=longer_side)
    assert refusal.value.field == "size" and not isinstance(refusal.value, PictureError)
    if longer_side < 1:
        with pytest.raises(InvalidInput, match="at least 1"):
            resize(Image.fromarray(FINE), longer_side)
        with pytest.raises(InvalidInput, match="at least 1"):
            thumbnail(Image.fromarray(FINE), longer_side)


def test_a_size_of_too_many_pixels_is_refused():
    with pytest.raises(InvalidInput, match="20000×15000 = 300,000,000 pixels; at most 64,000,000") as refusal:
        decode(CORPUS["png"], longer_side=20_000)
    assert refusal.value.field == "size"


def test_a_thumbnail_never_grows():
    assert thumbnail(Image.fromarray(FINE), 16).size == (16, 12)
    np.testing.assert_array_equal(thumbnail(Image.fromarray(FINE), 300), FINE)


# Tensors


def every_level() -> Image.Image:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=2))


def test_tensors_hold_levels_over_255_and_come_back_exactly():
    picture = every_level()
    tensor = to_tensor(picture)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor[0, 0].flatten().tolist() == [np.float32(level) / np.float32(255) for level in range(256)]
    np.testing.assert_array_equal(to_picture(tensor), picture)
    np.testing.assert_array_equal(to_picture(tensor[0]), picture)


def test_arrays_hold_what_tensors_hold():
    array = to_array(every_level())
    assert array.dtype == np.float32 and array.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(array, to_tensor(every_level()).numpy())
    np.testing.assert_array_equal(from_array(array), every_level())
    np.testing.assert_array_equal(from_array(array[0]), every_level())


def test_what_leaves_the_range_is_clamped_and_what_lies_between_rounded():
    values = torch.tensor([-3.0, -0.001, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5, float("inf")])
    tensor = values.view(1, 1, 1, 7).expand(1, 3, 1, 7).requires_grad_()
    assert levels(to_picture(tensor))[0, :, 1].tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert levels(to_picture(tensor.to(torch.bfloat16)))[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 8, 8), (8, 8, 3), (3, 8), (1, 1, 3, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InvalidInput, match=r"one picture is \[1, 3, H, W\] or \[3, H, W\]"):
        to_picture(torch.zeros(shape))
    with pytest.raises(InvalidInput, match=r"one picture is \[1, 3, H, W\] or \[3, H, W\]"):
        from_array(np.zeros(shape, np.float32))


def test_serving_never_imports_torch():
    code = (
        "import sys, shared.images as i; p = i.decode(sys.stdin.buffer.read(), longer_side=20);"
        "p = i.from_array(i.to_array(p)); p = i.blend(p, i.preserve_color(p, p), 0.5); i.encode(p, 'jpeg');"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(images.__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, input=CORPUS["jpeg"], check=False)
    assert ran.returncode == 0


# Encoding


def test_a_png_comes_back_exactly():
    np.testing.assert_array_equal(levels(decode(encode(Image.fromarray(FINE)))), FINE)


@pytest.mark.parametrize("format", FORMATS)
def test_the_bytes_are_of_the_media_type(format):
    data = encode(Image.fromarray(FLAT), format)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.get_format_mimetype() == FORMATS[format]
    assert np.abs(levels(decode(data)) - FLAT).mean() < 8


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_costs_bytes(format):
    sizes = [len(encode(Image.fromarray(FINE), format, quality=quality)) for quality in (10, 92, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_can_be_read_back(format):
    metadata = {"title": "Das Mädchen mit dem Perlenohrgehänge", "engine": "fast", "note": "日本 100 %"}
    data = encode(Image.fromarray(FLAT), format, metadata=metadata)
    with Image.open(io.BytesIO(data)) as picture:
        found = picture.text if format == "png" else json.loads(picture.getexif()[Tag.ImageDescription])
    assert found == metadata
    assert decode(data).size == (32, 24)


def test_encoding_refuses_what_it_cannot_write():
    picture = Image.fromarray(FLAT)
    with pytest.raises(InvalidInput, match=r"'gif' is unknown; it must be one of png, jpeg, webp\.") as refusal:
        encode(picture, "gif")
    assert (refusal.value.code, refusal.value.field) == ("unknown_format", "format")
    for quality in (0, 101):
        with pytest.raises(InvalidInput, match=f"quality is {quality}; it must lie in 1–100") as refusal:
            encode(picture, "jpeg", quality=quality)
        assert refusal.value.field == "quality"
    with pytest.raises(InvalidInput, match="16400×1 with this metadata does not fit into webp"):
        encode(Image.new("RGB", (16_400, 1)), "webp")
    with pytest.raises(InvalidInput, match="does not fit into jpeg"):
        encode(picture, "jpeg", metadata={"title": "x" * 70_000})


# Colour and strength


def test_a_picture_with_its_own_colours_is_itself():
    np.testing.assert_array_equal(preserve_color(Image.fromarray(FINE), Image.fromarray(FINE)), FINE)


def test_luminance_is_the_stylised_pictures_even_where_colours_would_leave_the_cube():
    stylised, content = Image.fromarray(FINE), Image.fromarray(pictures.noise(1))
    painted = preserve_color(stylised, content)
    np.testing.assert_allclose(luma(painted), luma(stylised), atol=0.6)
    clipped = np.clip(levels(content) + (luma(stylised) - luma(content))[..., None], 0, 255)
    assert np.abs(clipped @ [0.299, 0.587, 0.114] - luma(stylised)).max() > 20, "clipping would not have kept it"


def test_colours_are_the_contents():
    content = Image.fromarray(pictures.noise(1) // 4 + 96)  # greyish, so that all colours fit
    stylised = Image.fromarray(FINE // 4 + 96)
    painted = preserve_color(stylised, content)
    chroma = levels(painted) - luma(painted)[..., None]
    np.testing.assert_allclose(chroma, levels(content) - luma(content)[..., None], atol=1.1)


def test_a_grey_content_gives_a_grey_painting():
    painted = levels(preserve_color(Image.fromarray(FINE), Image.new("RGB", (32, 24), (90, 90, 90))))
    np.testing.assert_array_equal(painted[..., 0], painted[..., 2])
    np.testing.assert_array_equal(painted, grey_of(FINE))


def test_the_content_is_resized_to_the_stylised_picture():
    stylised, content = Image.new("RGB", (40, 30), "navy"), Image.fromarray(FLAT)
    assert preserve_color(stylised, content).size == (40, 30)
    np.testing.assert_array_equal(blend(content, stylised, 0), content.resize((40, 30), Image.Resampling.LANCZOS))


def spread(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the colours, in levels 0–255."""
    colours = levels(picture).reshape(-1, 3).astype(float)
    return colours.mean(0), np.cov(colours, rowvar=False, bias=True)


def soft(seed: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    """Colours that depend on one another, near the middle, so that no map of this module clips them."""
    rng = np.random.default_rng(seed)
    # Deviations well above the two levels that count as noise, along directions of the seed's own.
    directions, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    mixture = np.diag(rng.permutation([18, 11, 6]) * rng.uniform(0.8, 1.2, 3)) @ directions
    colours = rng.normal(size=(size[1], size[0], 3)).clip(-2.5, 2.5) @ mixture + rng.uniform(110, 146, 3)
    return Image.fromarray(np.rint(colours.clip(0, 255)).astype(np.uint8))


@pytest.mark.parametrize("size", [(32, 24), (50, 40)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_matched_colours_have_the_references_mean_and_covariance(seed, size):
    picture, reference = soft(seed), soft(seed + 10, size)
    matched = match_color(picture, reference)
    assert matched.size == picture.size
    assert levels(matched).min() > 0 and levels(matched).max() < 255, "nothing was clipped"
    (mean, covariance), (wanted_mean, wanted) = spread(matched), spread(reference)
    assert np.abs(spread(picture)[0] - wanted_mean).max() > 5 and np.abs(spread(picture)[1] - wanted).max() > 30
    np.testing.assert_allclose(mean, wanted_mean, atol=0.1)
    # Rounding to levels adds a twelfth to each variance.
    np.testing.assert_allclose(covariance, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("picture", "reference", "clipped"),
    [(soft(4), soft(14), False), (Image.fromarray(FINE), Image.fromarray(pictures.noise(1) // 128 * 255), True)],
    ids=["soft", "clipped"],
)
def test_colours_are_matched_by_the_symmetric_roots_and_no_others(picture, reference, clipped):
    """Many maps give the same covariance. Against SciPy's root of a matrix, which has no eigenvectors in it."""
    (mean, covariance), (wanted_mean, wanted) = spread(picture), spread(reference)
    transport = scipy.linalg.sqrtm(wanted) @ np.linalg.inv(scipy.linalg.sqrtm(covariance))
    expected = (levels(picture) - mean) @ transport.T + wanted_mean
    assert clipped == (expected.min() < -1 and expected.max() > 256)
    np.testing.assert_allclose(levels(match_color(picture, reference)), expected.clip(0, 255), atol=0.51)


def test_a_picture_that_matches_already_stays_as_it_is():
    for picture in (soft(5), Image.fromarray(FINE), soft(5).convert("L").convert("RGB")):
        np.testing.assert_array_equal(match_color(picture, picture), picture)
    # The order of the pixels has no say in their statistics.
    turned = soft(5).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(match_color(soft(5), turned), soft(5))


def test_a_grey_picture_takes_the_mean_and_stays_on_one_line_of_colours():
    grey, reference = soft(6).convert("L"), soft(16)
    matched = match_color(grey, reference)  # of one channel: decoded pictures never are, those of other tools may be
    # Half a level: a channel that hardly moves along the line rounds to the same side everywhere.
    np.testing.assert_allclose(spread(matched)[0], spread(reference)[0], atol=0.5)
    values = np.linalg.eigvalsh(spread(matched)[1])
    assert values[2] > 10 and values[1] < 0.2, "rounding alone leaves the line"
    np.testing.assert_array_equal(matched, match_color(grey.convert("RGB"), reference))


def test_a_grey_reference_gives_a_grey_picture():
    reference = soft(7).convert("L").convert("RGB")
    matched = levels(match_color(soft(17), reference))
    np.testing.assert_array_equal(matched[..., 0], matched[..., 2])
    np.testing.assert_array_equal(matched[..., 0], matched[..., 1])
    assert matched.std() > 1


def test_a_picture_of_one_colour_becomes_the_references_mean():
    reference = soft(8)
    expected = np.broadcast_to(np.rint(spread(reference)[0]), (10, 20, 3))
    np.testing.assert_array_equal(match_color(Image.new("RGB", (20, 10), "teal"), reference), expected)
    # And of one colour everything becomes that.
    flat = match_color(soft(8), Image.new("RGB", (5, 5), (12, 200, 90)))
    np.testing.assert_array_equal(flat, np.broadcast_to([12, 200, 90], (24, 32, 3)))


def test_strength_mixes_linearly():
    content, stylised = Image.fromarray(FINE), Image.fromarray(pictures.noise(1))
    np.testing.assert_array_equal(blend(content, stylised, 0), content)
    np.testing.assert_array_equal(blend(content, stylised, 1), stylised)
    expected = 0.75 * levels(content) + 0.25 * levels(stylised)
    np.testing.assert_allclose(levels(blend(content, stylised, 0.25)), expected, atol=0.51)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(InvalidInput, match="it must lie in 0–1") as refusal:
        blend(Image.fromarray(FINE), Image.fromarray(FLAT), strength)
    assert refusal.value.field == "strength"
