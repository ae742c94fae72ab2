"""Pictures in and out: the one place where bytes become pixels and pixels become bytes.

Everything here works without torch; only :func:`to_tensor` and :func:`to_picture` import it, when called.
"""

from __future__ import annotations

import io
import json
import logging
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ExifTags import Base as Tag

from shared.errors import InvalidInput, NotFound, PictureError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: What :func:`encode` writes: name of the format to its media type.
FORMATS: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

#: The same formats by a file's ending.
FORMATS_BY_SUFFIX: dict[str, str] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class DecodeLimits:
    """What :func:`decode` accepts, checked against the header before any pixel is decoded.

    Args:
        max_pixels: width times height, of the picture sent and of the picture asked for.
        max_bytes: size of the encoded picture.
        min_side: shorter side in pixels; below it there is no content to paint.
        max_side: longer side in pixels.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 32 * 2**20
    min_side: int = 16
    max_side: int = 20_000


DEFAULT_LIMITS = DecodeLimits()


def decode(data: bytes | Path, *, limits: DecodeLimits = DEFAULT_LIMITS, longer_side: int | None = None) -> Image.Image:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF picture into an upright 8-bit sRGB one.

    The EXIF orientation is applied; an embedded ICC profile is converted to sRGB (a broken one is ignored and
    logged); transparency lies over white; grey, palette, CMYK, Lab and 16-bit pictures become RGB; of an
    animation the first frame counts. The kind is read from the bytes, never from a name.

    Args:
        data: the encoded picture, or the path of a file that holds it.
        limits: what to refuse.
        longer_side: resize so that the longer side has exactly this many pixels, up or down, keeping the aspect.
            A large JPEG is then decoded at a fraction of its size, which is several times faster.

    Raises:
        PictureError: with code ``empty_picture``, ``not_a_picture``, ``truncated_picture`` (cut short or
            damaged), ``picture_too_large`` or ``picture_too_small``.
        InvalidInput: ``longer_side`` is out of range.
        NotFound: ``data`` is a path that cannot be read.
    """
    if longer_side is not None:
        _check_longer_side(longer_side, limits.max_side)
    if isinstance(data, Path):
        data = _read(data, limits)
    _check_bytes(len(data), limits)
    reader = _reader(data)
    # Pillow answers hostile bytes with almost any exception, so this block catches broadly, and does nothing else.
    try:
        if reader in _TRAPS:
            _TRAPS[reader](data)
        # The reader itself rather than Image.open, whose size check is a process-wide setting and only warns.
        with reader(io.BytesIO(data)) as picture:
            _check_header(picture, limits)
            box = None
            if longer_side is not None:
                size = _fit(picture.size, longer_side)
                _check_target(size, limits)
                # Twice the wanted size leaves LANCZOS enough to work on; only JPEG can do this.
                _, box = picture.draft(None, (2 * size[0], 2 * size[1])) or (None, None)
            picture.load()
            rgb = _to_srgb(picture, _bits(picture, data))
            if longer_side is not None:
                rgb = rgb.resize(size, Image.Resampling.LANCZOS, box=box)
            turn = _UPRIGHT.get(_orientation(picture))
    except InvalidInput:
        raise
    except Image.DecompressionBombError as error:  # the readers of GIF, TIFF and WebP also hold to Pillow's own limit
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise _too_large(
            f"The picture has more than {most:,} pixels", f"{min(most, limits.max_pixels):,} pixels"
        ) from error
    except MemoryError as error:
        raise _too_large("The picture needs more memory than there is", f"{limits.max_pixels:,} pixels") from error
    except Exception as error:
        raise PictureError(
            f"The {reader.format} picture is cut short, damaged, or of a rare kind that is not read.",
            hint="Send the whole file, or save it again as PNG or JPEG.",
            code="truncated_picture",
        ) from error
    return rgb if turn is None else rgb.transpose(turn)


def encode(
    picture: Image.Image, format: str = "png", *, quality: int = 92, metadata: dict[str, str] | None = None
) -> bytes:
    """Encode a picture as PNG, JPEG or WebP.

    Args:
        picture: an RGB picture.
        format: a key of :data:`FORMATS`.
        quality: 1–100, for JPEG and WebP.
        metadata: what to tell about the picture: text chunks in a PNG, one JSON object in the EXIF tag
            ImageDescription of a JPEG or WebP.

    Raises:
        InvalidInput: an unknown format, a quality out of range, or a picture or text that the format cannot hold.
    """
    if format not in FORMATS:
        raise InvalidInput(
            f"The format {format!r} is unknown; it must be one of {', '.join(FORMATS)}.",
            hint="Ask for one of these.",
            code="unknown_format",
            field="format",
        )
    if not 1 <= quality <= 100:
        raise InvalidInput(f"The quality is {quality}; it must lie in 1–100.", field="quality")
    options: dict[str, object] = {} if format == "png" else {"quality": quality}
    if metadata and format == "png":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            info.add_text(key, value)
    elif metadata:
        options["exif"] = exif = Image.Exif()
        exif[Tag.ImageDescription] = json.dumps(metadata)  # escapes to ASCII, all that this tag may hold
    out = io.BytesIO()
    try:
        picture.convert("RGB").save(out, format.upper(), **options)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"A picture of {picture.width}×{picture.height} with this metadata does not fit into {format}: {error}.",
            hint="Ask for a smaller picture or for png.",
            field="format",
        ) from error
    return out.getvalue()


def read_metadata(path: Path) -> dict[str, str]:
    """What :func:`encode` wrote about a picture, from its header; empty where that is nothing, or not to be read."""
    try:
        # What it says is only compared, and no pixel is decoded.
        with Image.open(path, formats=tuple(FORMATS)) as picture:
            if picture.format == "PNG":
                return {key: value for key, value in picture.info.items() if isinstance(value, str)}
            told = json.loads(picture.getexif().get(Tag.ImageDescription, "{}"))
    except Exception as error:  # Pillow raises anything on a damaged file
        logger.info("no metadata of %s: %s", path, error)
        return {}
    return told if isinstance(told, dict) else {}


def resize(picture: Image.Image, longer_side: int) -> Image.Image:
    """The picture with a longer side of exactly ``longer_side`` pixels (LANCZOS), up or down; no side below 1.

    Raises:
        InvalidInput: ``longer_side`` is below 1.
    """
    _check_longer_side(longer_side)
    return picture.resize(_fit(picture.size, longer_side), Image.Resampling.LANCZOS)


def thumbnail(picture: Image.Image, longer_side: int) -> Image.Image:
    """A preview whose longer side has at most ``longer_side`` pixels; smaller pictures keep their size."""
    _check_longer_side(longer_side)
    size = _fit(picture.size, min(longer_side, max(picture.size)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def to_array(picture: Image.Image) -> np.ndarray:
    """The picture as ``float32 [1, 3, H, W]``, RGB, in [0, 1]."""
    levels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(levels.transpose(2, 0, 1))[None] / np.float32(255)


def from_array(array: np.ndarray) -> Image.Image:
    """The picture in ``float [1, 3, H, W]`` or ``[3, H, W]``: clamped to [0, 1], rounded to the nearest of 256 levels.

    Inverse of :func:`to_array`.

    Raises:
        InvalidInput: any other shape.
    """
    shape = tuple(array.shape)
    if shape[-3:-2] != (3,) or shape[:-3] not in ((), (1,)):
        raise InvalidInput(f"The array has the shape {list(shape)}; one picture is [1, 3, H, W] or [3, H, W].")
    return _from_levels(array.reshape(shape[-3:]).transpose(1, 2, 0))


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """The picture as a ``float32`` tensor ``[1, 3, H, W]``, RGB, in [0, 1], on the CPU."""
    import torch  # a server that runs ONNX models never pays for this

    return torch.from_numpy(to_array(picture))


def to_picture(tensor: torch.Tensor) -> Image.Image:
    """The picture in a tensor ``[1, 3, H, W]`` or ``[3, H, W]`` of any device: clamped and rounded.

    Inverse of :func:`to_tensor`.

    Raises:
        InvalidInput: any other shape.
    """
    return from_array(tensor.detach().cpu().float().numpy())


def preserve_color(stylised: Image.Image, content: Image.Image) -> Image.Image:
    r"""The stylised picture's luminance with the content's colours.

    Luminance-only transfer of Gatys et al., "Preserving Color in Neural Artistic Style Transfer" (2016), section 3,
    applied to a finished picture. In YIQ, a pixel is its luma plus its chroma, :math:`c = Y\,(1,1,1) + d`, so the
    paper's exchange of the luma channel is :math:`Y_s\,(1,1,1) + (c - Y_c\,(1,1,1))`. Note that the paper does not
    say what happens to colours that leave the RGB cube; here their chroma shrinks until they fit, which keeps
    luminance and hue, where clipping would change both.

    Args:
        stylised: gives the luminance, and the size of the result.
        content: gives the colours; resized to the stylised picture where the sizes differ.
    """
    painted = _luma(_to_levels(stylised))
    colours = _to_levels(_matched(content, stylised))
    chroma = colours - _luma(colours)
    room = np.where(chroma > 0, 1 - painted, painted)  # how far each channel may move from the luma
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(chroma == 0, 1, room / np.abs(chroma)).min(axis=-1, keepdims=True)
    return _from_levels(painted + chroma * np.minimum(share, 1))


def match_color(picture: Image.Image, reference: Image.Image) -> Image.Image:
    r"""The picture with the reference's colours: a linear map of pixels that gives both one mean and covariance.

    Colour histogram matching of Gatys et al., "Preserving Color in Neural Artistic Style Transfer" (2016), section 3,
    in the symmetric form: :math:`p' = \Sigma_r^{1/2} \Sigma_p^{-1/2} (p - \mu_p) + \mu_r`. Applied to the style
    before the painting, so that the strokes come in the content's colours. A picture of a single colour becomes one of
    the reference's mean colour.
    """
    levels, target = (_to_levels(each).reshape(-1, 3).astype(np.float64) for each in (picture, reference))
    mean, target_mean = levels.mean(0), target.mean(0)

    def power(colours: np.ndarray, exponent: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(np.cov(colours, rowvar=False, bias=True))
        # A direction whose deviation is within two levels holds the noise of a JPEG, not colours (a grey picture has
        # two such): to stretch it would make speckles.
        least = (2 / 255) ** 2
        raised = np.where(values > least, np.maximum(values, least) ** exponent, 0.0)
        return vectors * raised @ vectors.T

    mapped = (levels - mean) @ (power(levels, -0.5) @ power(target, 0.5)) + target_mean
    return _from_levels(mapped.reshape(picture.height, picture.width, 3))


def blend(content: Image.Image, stylised: Image.Image, strength: float) -> Image.Image:
    """``(1 - strength) · content + strength · stylised``, in sRGB levels; 0 is the content, 1 the stylised picture.

    The content is resized to the stylised picture where the sizes differ.

    Raises:
        InvalidInput: ``strength`` lies outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise InvalidInput(f"The strength is {strength}; it must lie in 0–1.", field="strength")
    ours, theirs = _to_levels(_matched(content, stylised)), _to_levels(stylised)
    return _from_levels(ours + np.float32(strength) * (theirs - ours))


# Limits


def _read(path: Path, limits: DecodeLimits) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)  # bounded, whatever kind of file this is
            size = max(len(data), path.stat().st_size)
    except OSError as error:
        raise NotFound(
            f"The picture {path} cannot be read: {error.strerror or error}.", hint="Check the path."
        ) from error
    _check_bytes(size, limits)
    return data


def _check_bytes(size: int, limits: DecodeLimits) -> None:
    if size == 0:
        raise PictureError("The picture is empty (0 bytes).", hint="Send the file's bytes.", code="empty_picture")
    if size > limits.max_bytes:
        raise _too_large(f"The picture has {size:,} bytes", f"{limits.max_bytes:,} bytes")


def _check_header(picture: ImageFile.ImageFile, limits: DecodeLimits) -> None:
    width, height = picture.size
    name = f"The picture is {width}×{height}"
    if max(width, height) > limits.max_side:
        raise _too_large(f"{name} pixels", f"{limits.max_side:,} pixels a side")
    if width * height > limits.max_pixels:
        raise _too_large(f"{name} = {width * height:,} pixels", f"{limits.max_pixels:,} pixels")
    if min(width, height) < limits.min_side:
        raise PictureError(
            f"{name} pixels; each side must have at least {limits.min_side}.",
            hint="Send a larger picture.",
            code="picture_too_small",
        )
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        # A small TIFF may consist of one enormous tile, which libtiff would allocate.
        tile = picture.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0) * picture.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)
        if tile > limits.max_pixels:
            raise _too_large(f"The picture has a tile of {tile:,} pixels", f"{limits.max_pixels:,} pixels")
    run_lengths = picture.format == "BMP" and picture.info["compression"] in (1, 2)
    if run_lengths and width * height > _MAX_RUN_LENGTH_PIXELS:
        # Pillow expands run-length coding in Python: a few kilobytes of it can cost many seconds.
        raise _too_large(
            f"{name} = {width * height:,} pixels, run-length coded", f"{_MAX_RUN_LENGTH_PIXELS:,} pixels of this kind"
        )


def _check_longer_side(longer_side: int, most: int | None = None) -> None:
    if longer_side < 1 or (most is not None and longer_side > most):
        bounds = "at least 1" if most is None else f"1–{most:,}"
        raise InvalidInput(f"The longer side asked for is {longer_side:,} pixels; it must be {bounds}.", field="size")


def _check_target(size: tuple[int, int], limits: DecodeLimits) -> None:
    if size[0] * size[1] > limits.max_pixels:
        raise InvalidInput(
            f"The picture asked for is {size[0]}×{size[1]} = {size[0] * size[1]:,} pixels; "
            f"at most {limits.max_pixels:,} are accepted.",
            hint="Ask for a smaller size.",
            field="size",
        )


def _too_large(what: str, limit: str) -> PictureError:
    return PictureError(
        f"{what}; at most {limit} are accepted.", hint="Send a smaller picture.", code="picture_too_large"
    )


def _fit(size: tuple[float, float], longer_side: int) -> tuple[int, int]:
    scale = longer_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


# Kinds, and bytes that would keep a reader busy

_READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"GIF87a": GifImagePlugin.GifImageFile,
    b"GIF89a": GifImagePlugin.GifImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
}
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)

# Far beyond any honest file. 100 scans is also where libtiff stops reading a JPEG.
_MAX_JPEG_SCANS = 100
_MAX_JPEG_EXIFS = 16
_MAX_JPEG_SEGMENTS = 2_000
_MAX_TIFF_STRIPS = 100_000
_MAX_RUN_LENGTH_PIXELS = 4_000_000

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")


def _reader(data: bytes) -> type[ImageFile.ImageFile]:
    for signature, reader in _READERS.items():
        if data.startswith(signature):
            return reader
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    # Two letters prove nothing, so a BMP must also show the size of its header.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return BmpImagePlugin.BmpImageFile
    raise PictureError(
        "These bytes are no JPEG, PNG, WebP, GIF, BMP or TIFF picture.",
        hint="Send a picture in one of these formats.",
        code="not_a_picture",
    )


def _check_jpeg(data: bytes) -> None:
    """Refuse a JPEG of very many parts.

    Each scan passes over the whole picture, so 100 bytes of file can cost a second; and Pillow joins the parts of
    EXIF in quadratic time.
    """
    at = segments = scans = exifs = 0
    while (marker := _JPEG_MARKER.search(data, at)) and marker[1] != b"\xd9":
        at = marker.end()
        segments += 1
        scans += marker[1] == b"\xda"
        exifs += marker[1] == b"\xe1" and data[at + 2 : at + 8] == b"Exif\0\0"
        for count, most, what in (
            (segments, _MAX_JPEG_SEGMENTS, "segments"),
            (scans, _MAX_JPEG_SCANS, "scans"),
            (exifs, _MAX_JPEG_EXIFS, "EXIF blocks"),
        ):
            if count > most:
                raise _too_large(f"The JPEG picture has at least {count:,} {what}", f"{most:,}")
        at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _check_tiff(data: bytes) -> None:
    """Refuse a TIFF of very many strips: Pillow makes an object of each, hundreds of bytes for one in the file."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, directory)
    for entry in range(entries):
        tag, _, count = struct.unpack_from(f"{order}HHI", data, directory + 2 + 12 * entry)
        if tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS) and count > _MAX_TIFF_STRIPS:
            raise _too_large(f"The TIFF picture has {count:,} strips or tiles", f"{_MAX_TIFF_STRIPS:,}")


_TRAPS: dict[type[ImageFile.ImageFile], Callable[[bytes], None]] = {
    JpegImagePlugin.JpegImageFile: _check_jpeg,
    TiffImagePlugin.TiffImageFile: _check_tiff,
}


# Orientation and colour

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(picture: Image.Image) -> object:
    try:
        return picture.getexif().get(Tag.Orientation)
    except Exception as error:  # damaged EXIF raises anything; the pixels are still good
        logger.info("EXIF ignored, it cannot be read: %s", error)
        return None


def _to_srgb(picture: ImageFile.ImageFile, bits: int) -> Image.Image:
    """The loaded picture as sRGB over white, not yet upright."""
    colour, alpha = _colour_and_alpha(picture, bits)
    rgb = _apply_profile(colour, picture.info.get("icc_profile"))
    if alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _colour_and_alpha(picture: ImageFile.ImageFile, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """Split into opaque colour (L, RGB, CMYK or LAB, as an ICC profile expects it) and alpha (L)."""
    mode, key = picture.mode, picture.info.get("transparency")
    if mode in ("I", "F"):
        raise PictureError(
            "The picture has 32 bits a pixel in one channel: measurements, whose black and white are not known.",
            hint="Save it with 8 or 16 bits a channel.",
            code="not_a_picture",
        )
    if mode.startswith("I;16"):
        levels, top = np.asarray(picture).astype(np.uint32), (1 << bits) - 1
        opaque = None if key is None else Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
        if getattr(picture, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
            levels = top - np.minimum(levels, top)
        return Image.fromarray(((levels * 255 + top // 2) // top).astype(np.uint8)), opaque
    if mode in ("1", "L"):
        grey = picture.convert("L")
        if key is None:
            return grey, None
        level = _to_8_bits(key, bits)
        return grey, grey.point([0 if value == level else 255 for value in range(256)])
    if mode == "RGB" and key is not None:
        picture.info["transparency"] = tuple(_to_8_bits(value, bits) for value in key)
    if not picture.has_transparency_data:
        return picture.convert(mode if mode in ("RGB", "CMYK", "LAB") else "RGB"), None
    *bands, alpha = picture.convert("LA" if mode in ("LA", "La") else "RGBA").split()
    return Image.merge("L" if len(bands) == 1 else "RGB", bands), alpha


def _bits(picture: ImageFile.ImageFile, data: bytes) -> int:
    """Bits a channel in the file, which Pillow's mode does not tell."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    return data[24] if isinstance(picture, PngImagePlugin.PngImageFile) else 8  # in the PNG header, IHDR


def _to_8_bits(value: int, bits: int) -> int:
    return value >> 8 if bits == 16 else min(255, value * 255 // ((1 << bits) - 1))


def _apply_profile(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB; the profile applies to the channels as they were stored, so before any conversion."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if colour.mode == "L" and space == "RGB":
                colour = colour.convert("RGB")
            if {"GRAY": "L", "Lab": "LAB"}.get(space, space) != colour.mode:
                raise ValueError(f"it is for {space}, the picture is {colour.mode}")
            converted = ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except Exception as error:  # LittleCMS and Pillow raise anything on a damaged profile
            logger.info("ICC profile ignored, taking the picture for sRGB: %s", error)
    return colour.convert("RGB")


# Levels: float32 [H, W, 3] in [0, 1]


def _to_levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255)


def _from_levels(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8))


def _luma(levels: np.ndarray) -> np.ndarray:
    """Y of YIQ, ITU-R BT.601: ``[H, W, 1]``."""
    return levels @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)


def _matched(picture: Image.Image, like: Image.Image) -> Image.Image:
    return picture if picture.size == like.size else picture.resize(like.size, Image.Resampling.LANCZOS)
