"""Odd pictures that must decode and hostile bytes that must be refused, all made here, for every test that takes bytes.

Each picture of :func:`corpus` is 32×24 pixels once it is upright, and shows (as far as its mode can) either
:func:`noise` or :func:`patches`.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as Tag

WIDTH, HEIGHT = 32, 24
PATCHES = ((200, 40, 30), (30, 160, 60), (40, 60, 190), (230, 220, 120))


def noise(seed: int = 0) -> np.ndarray:
    """Random colours, ``uint8 [24, 32, 3]``: what lossless kinds must return exactly."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def patches() -> np.ndarray:
    """Four flat patches in two rows, ``uint8 [24, 32, 3]``: what lossy kinds and palettes can keep."""
    quarters = np.array(PATCHES, dtype=np.uint8).reshape(2, 2, 3)
    return quarters.repeat((16, 8), axis=0).repeat(16, axis=1)  # edges between JPEG's blocks of 8, so hardly any loss


_FINE_JPEG = {"quality": 95, "subsampling": 0}


def save(picture: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    """A picture (or its levels) as Pillow writes it."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The rows that a camera stores with an EXIF orientation: which visual side row 0 and column 0 are (EXIF 2.3)."""
    return {
        1: upright,  # row 0 is the top, column 0 the left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: np.rot90(upright, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: np.rot90(upright, -1),  # left, bottom
    }[orientation].copy()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[Tag.Orientation] = orientation
    return exif


# Formats by hand, where Pillow cannot write the kind


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], depth: int, colour: int, rows: Iterable[bytes], *before: bytes) -> bytes:
    """A PNG of any depth and colour type; ``before`` are whole chunks to stand before the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def after_header(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks put behind its IHDR."""
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(entries: dict[int, tuple[int, int, int]], pixels: bytes, order: str = "<") -> bytes:
    """A TIFF of one directory: tag to (type, count, value or offset); the pixels lie at offset 8."""
    fields = (
        # A short value lies in the first two of its four bytes, whatever the order.
        struct.pack(f"{order}HHIHH", tag, kind, count, value, 0)
        if kind == 3 and count == 1
        else struct.pack(f"{order}HHII", tag, kind, count, value)
        for tag, (kind, count, value) in sorted(entries.items())
    )
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(fields) + b"\0\0\0\0"
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return magic + pixels + directory


def grey_tiff(levels: np.ndarray, *, photometric: int = 1, order: str = "<") -> bytes:
    """Greys of 16 bits, black as 0 (photometric 1) or white as 0 (photometric 0)."""
    pixels = levels.astype(f"{order}u2").tobytes()
    height, width = levels.shape
    short = {256: width, 257: height, 258: 16, 259: 1, 262: photometric, 277: 1, 278: height}
    entries = {tag: (3, 1, value) for tag, value in short.items()}
    return tiff(entries | {273: (4, 1, 8), 279: (4, 1, len(pixels))}, pixels, order)


def bmp(size: tuple[int, int], bits: int, compression: int, palette: bytes, pixels: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, compression, len(pixels), 2835, 2835, len(palette) // 4, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 54 + len(palette) + len(pixels), 0, 0, 54 + len(palette))
        + header
        + palette
        + pixels
    )


# ICC profiles by hand (ICC.1:2010), since they must differ from sRGB in a way that can be foretold

_D50_COLOURS = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))  # sRGB's primaries


def _s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _icc(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s12x4s28x12s", at + len(body), b"\0\0\0\0", 0x02400000, kind, space, connection, b"acsp",
        _s15(0.9642, 1.0, 0.8249),
    ).ljust(128, b"\0")  # fmt: skip
    return header + struct.pack(">I", len(tags)) + table + body


_LINEAR = b"curv\0\0\0\0" + struct.pack(">I", 0)
_SRGB_CURVE = b"curv\0\0\0\0" + struct.pack(
    ">I1024H",
    1024,
    *(round(65535 * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)) for v in np.linspace(0, 1, 1024)),
)


def rgb_profile(order: str = "rgb", *, linear: bool = False) -> bytes:
    """sRGB with its primaries in another order ("grb" swaps red and green), or with a linear tone curve."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _s15(0.9642, 1.0, 0.8249)}
    for channel, primary in zip("rgb", order, strict=True):
        tags[f"{channel}XYZ".encode()] = b"XYZ \0\0\0\0" + _s15(*_D50_COLOURS["rgb".index(primary)])
        tags[f"{channel}TRC".encode()] = _LINEAR if linear else _SRGB_CURVE
    return _icc(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile() -> bytes:
    """Grey with a linear tone curve."""
    return _icc(
        b"GRAY", b"XYZ ", b"mntr", {b"wtpt": b"XYZ \0\0\0\0" + _s15(0.9642, 1.0, 0.8249), b"kTRC": _LINEAR}
    )  # fmt: skip


def cmyk_profile() -> bytes:
    """Ink whose lightness falls with the cyan alone: no conversion that ignores the profile looks like it."""
    ramp = bytes(range(256))
    grid = b"".join(bytes((0 if corner >= 8 else 255, 128, 128)) for corner in range(16))  # Lab; cyan varies slowest
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + _s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + grid + ramp * 3
    return _icc(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + _s15(0.9642, 1.0, 0.8249)})


def to_srgb(linear: float) -> float:
    """sRGB's transfer function (IEC 61966-2-1), [0, 1] to [0, 1]."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * math.pow(linear, 1 / 2.4) - 0.055


def corpus() -> dict[str, bytes]:
    """Pictures of every odd kind that must decode, by name."""
    fine, flat = noise(), patches()
    fine_picture, flat_picture = Image.fromarray(fine), Image.fromarray(flat)
    grey, alpha = fine_picture.convert("L"), Image.fromarray(fine[..., 2])
    palette = flat_picture.quantize(4)
    deep = fine[..., 0].astype(np.uint16) * 257
    deep_rows = [row.astype(">u2").tobytes() for row in deep]
    clear = fine_picture.copy()
    clear.putalpha(alpha)
    jpeg = save(flat, "JPEG", **_FINE_JPEG)
    high = (fine.astype(np.uint16) << 8).astype(">u2")
    pictures = {
        "jpeg": jpeg,
        "jpeg-grey": save(flat_picture.convert("L"), "JPEG", **_FINE_JPEG),
        "jpeg-cmyk": save(flat_picture.convert("CMYK"), "JPEG", **_FINE_JPEG),
        "jpeg-cmyk-icc": save(flat_picture.convert("CMYK"), "JPEG", **_FINE_JPEG, icc_profile=cmyk_profile()),
        "jpeg-progressive": save(flat, "JPEG", **_FINE_JPEG, progressive=True),
        "jpeg-icc": save(flat, "JPEG", **_FINE_JPEG, icc_profile=rgb_profile("grb")),
        "jpeg-icc-broken": save(flat, "JPEG", **_FINE_JPEG, icc_profile=b"no profile at all"),
        "jpeg-icc-of-another-space": save(flat, "JPEG", **_FINE_JPEG, icc_profile=cmyk_profile()),
        "jpeg-exif-broken": save(flat, "JPEG", **_FINE_JPEG, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
        "jpeg-and-more": jpeg + jpeg + b"a film of the moment behind the picture" * 9,
        "png": save(fine, "PNG"),
        "png-1": save(fine_picture.convert("1"), "PNG"),
        "png-grey": save(grey, "PNG"),
        "png-grey-alpha": save(Image.merge("LA", (grey, alpha)), "PNG"),
        "png-grey-colour-key": save(grey, "PNG", transparency=int(np.asarray(grey)[0, 0])),
        "png-grey-2-bit-colour-key": png(
            (WIDTH, HEIGHT), 2, 0, [b"\x1b" * (WIDTH // 4)] * HEIGHT, chunk(b"tRNS", b"\0\2")
        ),
        "png-grey-16": png((WIDTH, HEIGHT), 16, 0, deep_rows),
        "png-grey-16-colour-key": png(
            (WIDTH, HEIGHT), 16, 0, deep_rows, chunk(b"tRNS", deep_rows[0][:2])
        ),
        "png-rgb-16": png((WIDTH, HEIGHT), 16, 2, [row.tobytes() for row in high]),
        "png-rgb-16-colour-key": png(
            (WIDTH, HEIGHT), 16, 2, [row.tobytes() for row in high],
            chunk(b"tRNS", high[0, 0].tobytes()),
        ),
        "png-palette": save(palette, "PNG"),
        "png-palette-alpha": save(palette, "PNG", transparency=bytes((0, 85, 170, 255))),
        "png-rgba": save(clear, "PNG"),
        "png-rgb-colour-key": save(fine, "PNG", transparency=tuple(int(level) for level in fine[0, 0])),
        "png-icc": save(fine, "PNG", icc_profile=rgb_profile("grb")),
        "png-grey-icc": save(grey, "PNG", icc_profile=grey_profile()),
        "png-grey-alpha-icc": save(Image.merge("LA", (grey, alpha)), "PNG", icc_profile=grey_profile()),
        "png-chunks-unknown": after_header(save(fine, "PNG"), chunk(b"teSt", b"?"), chunk(b"tEXt", b"a\0b")),
        "png-animated": save(fine, "PNG", save_all=True, append_images=[Image.fromarray(noise(1))]),
        "webp": save(flat, "WEBP", quality=95),
        "webp-lossless": save(fine, "WEBP", lossless=True),
        "webp-alpha": save(clear, "WEBP", lossless=True, exact=True),
        "webp-animated": save(fine, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(noise(1))]),
        "webp-icc": save(fine, "WEBP", lossless=True, icc_profile=rgb_profile("grb")),
        "gif": save(palette, "GIF"),
        "gif-grey": save(grey, "GIF"),
        "gif-transparent": save(palette, "GIF", transparency=0),
        "gif-animated": save(palette, "GIF", save_all=True, append_images=[palette.transpose(3)], duration=40),
        "bmp": save(fine, "BMP"),
        "bmp-1": save(fine_picture.convert("1"), "BMP"),
        "bmp-palette": save(palette, "BMP"),
        "bmp-run-length": bmp(
            (WIDTH, HEIGHT), 8, 1, bytes((0, 0, 255, 0, 255, 0, 0, 0)), b"\x10\0\x10\1\0\0" * HEIGHT + b"\0\1"
        ),
        "tiff": save(fine, "TIFF"),
        "tiff-1": save(fine_picture.convert("1"), "TIFF", compression="group4"),
        "tiff-lzw": save(fine, "TIFF", compression="tiff_lzw"),
        "tiff-deflate-alpha": save(clear, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": save(flat, "TIFF", compression="jpeg", quality=95),
        "tiff-cmyk": save(fine_picture.convert("CMYK"), "TIFF"),
        "tiff-cmyk-icc": save(fine_picture.convert("CMYK"), "TIFF", icc_profile=cmyk_profile()),
        "tiff-lab": save(flat_picture.convert("LAB"), "TIFF"),
        "tiff-grey-16": grey_tiff(deep),
        "tiff-grey-16-big-endian": grey_tiff(deep, order=">"),
        "tiff-grey-16-white-is-zero": grey_tiff(65535 - deep, photometric=0),
        "tiff-pages": save(fine, "TIFF", save_all=True, append_images=[Image.fromarray(noise(1))]),
        "tiff-palette": save(palette, "TIFF"),
    }  # fmt: skip
    for orientation in range(1, 9):
        exif = oriented(orientation)
        pictures[f"jpeg-exif-{orientation}"] = save(as_stored(flat, orientation), "JPEG", **_FINE_JPEG, exif=exif)
        pictures[f"png-exif-{orientation}"] = save(as_stored(fine, orientation), "PNG", exif=exif)
        pictures[f"webp-exif-{orientation}"] = save(as_stored(fine, orientation), "WEBP", lossless=True, exif=exif)
        for compression in ("raw", "tiff_lzw"):
            pictures[f"tiff-{compression}-exif-{orientation}"] = save(
                as_stored(fine, orientation), "TIFF", compression=compression, tiffinfo={274: orientation}
            )
    return pictures


def hostile() -> dict[str, bytes]:
    """Bytes that must be refused, by name: foreign, cut short, too small or large, or made to keep a decoder busy."""
    fine, flat = noise(), patches()
    jpeg, progressive = save(flat, "JPEG"), save(np.zeros((2000, 2000), np.uint8), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    small_png = save(fine, "PNG")
    bomb = zlib.compress(b"x" * 50_000_000, 9)
    tile = zlib.compress(b"\0" * 1_000_000)
    grey = {256: (3, 1, WIDTH), 257: (3, 1, HEIGHT), 258: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    return {
        "empty": b"",
        "text": b"This is no picture, whatever its name ends with.\n" * 20,
        "web-page": b"<!doctype html><title>404</title><p>Not found",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="9" height="9"/></svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n",
        "photoshop": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + b"\0" * 64,
        "windows-icon": save(flat, "ICO"),
        "portable-pixmap": save(flat, "PPM"),
        "zip": b"PK\3\4" + b"\0" * 60,
        "zeros": b"\0" * 4096,
        "letters-bm": b"BM is how this letter begins, and it is not a bitmap.",
        "riff-sound": b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40,
        "png-signature-only": small_png[:8],
        "jpeg-signature-only": jpeg[:3],
        "png-half": save(fine, "PNG")[:1000],
        "jpeg-half": save(fine, "JPEG", **_FINE_JPEG)[:1000],
        "webp-half": save(fine, "WEBP", lossless=True)[:1000],
        "gif-half": save(Image.fromarray(fine).quantize(256), "GIF")[:1200],
        "bmp-half": save(fine, "BMP")[:1000],
        "tiff-half": save(fine, "TIFF")[:1000],
        "gif-without-frame": b"GIF89a" + struct.pack("<HH", 64, 64) + b"\0\0\0;",
        "png-checksum": small_png[:60] + bytes((small_png[60] ^ 1,)) + small_png[61:],
        "jpeg-12-bit": jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "tiff-directory-outside": b"II*\0\xff\xff\xff\x7f" + b"\0" * 64,
        "tiff-float": save(Image.new("F", (WIDTH, HEIGHT), 0.5), "TIFF"),
        "tiff-32-bit": save(Image.new("I", (WIDTH, HEIGHT), 70_000), "TIFF"),
        "png-1x1": save(fine[:1, :1], "PNG"),
        "jpeg-1x1": save(fine[:1, :1], "JPEG"),
        "gif-1x1": save(Image.new("P", (1, 1)), "GIF"),
        "png-thin": save(fine[:, :15], "PNG"),
        "png-30000x30000": png((30_000, 30_000), 8, 2, [b""]),
        "png-9000x9000": png((9_000, 9_000), 8, 2, [b""]),
        "png-side-2-billion": png((2**31 - 1, 16), 8, 0, [b""]),
        "jpeg-65000x65000": jpeg.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 65_000, 65_000), 1),
        "gif-65535x65535": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0," + b"\0" * 8 + b"\0\2\2\x4c\1\0;",
        "gif-frame-beyond-canvas": b"GIF89a" + struct.pack("<HH", 64, 64) + b"\0\0\0!\xf9\4\x08\0\0\0\0,"
        + struct.pack("<HHHH", 65_000, 65_000, 65_000, 65_000) + b"\0\2\2\x4c\1\0;",
        "webp-16000x11000": b"RIFF" + struct.pack("<I", 34) + b"WEBPVP8L"
        + struct.pack("<IBI", 22, 0x2F, 15_999 | 10_999 << 14) + b"\0" * 17,
        "bmp-60000x60000": bmp((60_000, 60_000), 24, 0, b"", b""),
        "tiff-60000x60000": tiff(
            {tag: (4, 1, value) for tag, value in
             {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 60_000, 279: 9}.items()}, b"\0" * 9
        ),
        "png-text-bomb": after_header(small_png, chunk(b"zTXt", b"Comment\0\0" + bomb)),
        "png-profile-bomb": after_header(small_png, chunk(b"iCCP", b"icc\0\0" + bomb)),
        "jpeg-scan-bomb": progressive[:-2] + last_scan * 150 + progressive[-2:],
        "jpeg-exif-bomb": jpeg[:2] + b"\xff\xe1\0\x12Exif\0\0" + b"MM\0*\0\0\0\x08\0\0"
        + b"\xff\xe1\0\x09Exif\0\0?" * 500 + jpeg[2:],
        "jpeg-segment-bomb": jpeg[:2] + b"\xff\xfe\0\2" * 50_000 + jpeg[2:],
        "tiff-strip-bomb": tiff(grey | {259: (3, 1, 1), 273: (1, 200_000, 8), 278: (3, 1, 1)}, b"\1" * 200_000),
        "tiff-tile-bomb": tiff(
            grey | {259: (3, 1, 8)}
            | {tag: (4, 1, value) for tag, value in {322: 16_384, 323: 16_384, 324: 8, 325: len(tile)}.items()}, tile
        ),
        "bmp-run-length-bomb": bmp((8_000, 8_000), 8, 1, bytes(1024), b"\1\0\0\0" * 8_000),
    }  # fmt: skip
