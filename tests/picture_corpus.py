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


def attacks() -> dict[str, bytes]:
    """Hundreds of uploads that somebody may try on a server, by name: :func:`hostile` and what can be made of pictures.

    Some of them decode, so each may be painted or refused, but nothing else.
    """
    carriers = _carriers()
    made = {f"hostile-{name}": data for name, data in hostile().items()}
    for name, data in carriers.items():
        made |= {f"{name}-cut-{part}": data[: len(data) * part // 100] for part in range(5, 100, 5)}
        random = np.random.default_rng(len(data))
        for number in range(10):
            # The first bytes are the headers, where a flip does the most.
            at = int(random.integers(0, 64 if number < 5 else len(data)))
            made[f"{name}-flip-{number}"] = data[:at] + bytes((data[at] ^ 1 << random.integers(0, 8),)) + data[at + 1 :]
        made[f"{name}-twice"] = data + data
        made[f"{name}-noise-behind"] = data + random.bytes(10_000)
        made[f"{name}-zeros-within"] = data[: len(data) // 3] + bytes(500) + data[len(data) // 3 + 500 :]
    return made | _declared() | _polyglots(carriers) | _within_limits() | _long_chains(carriers) | _foreign()


def _carriers() -> dict[str, bytes]:
    """One picture of each kind that is read, large enough that every part of the file has some bytes."""
    levels = np.tile(noise(), (4, 4, 1)) // 4 + np.linspace(0, 180, 128, dtype=np.uint8)[None, :, None]
    picture, deep = Image.fromarray(levels), levels[..., 0].astype(np.uint16) << 8
    palette, frames = picture.quantize(64), [Image.fromarray(255 - levels)] * 2
    return {
        "jpeg": save(picture, "JPEG", quality=90, icc_profile=rgb_profile("grb"), exif=oriented(6)),
        "jpeg-progressive": save(picture, "JPEG", progressive=True),
        "jpeg-cmyk": save(picture.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "png": save(picture, "PNG", icc_profile=rgb_profile(linear=True)),
        "png-16": png((128, 96), 16, 0, (row.astype(">u2").tobytes() for row in deep)),
        "png-animated": save(picture, "PNG", save_all=True, append_images=frames),
        "webp": save(picture, "WEBP"),
        "webp-animated": save(picture, "WEBP", lossless=True, save_all=True, append_images=frames),
        "gif-animated": save(palette, "GIF", save_all=True, append_images=[palette.transpose(3)] * 3),
        "bmp": save(picture, "BMP"),
        "tiff-lzw": save(picture, "TIFF", compression="tiff_lzw"),
        "tiff-16": grey_tiff(deep),
    }


def _declared() -> dict[str, bytes]:
    """Headers that promise more than there is: by format and size."""
    flat, made = patches(), {}
    jpeg, gif = save(flat, "JPEG"), save(Image.fromarray(flat).quantize(4), "GIF")
    for width, height in ((64, 7_000_000), (19_999, 3_000), (7_900, 7_900), (65_535, 16), (16, 65_535), (0, 64)):
        name, fits = f"{width}x{height}", max(width, height) < 65_536
        made[f"png-declares-{name}"] = png((width, height), 8, 2, [b""])
        made[f"bmp-declares-{name}"] = bmp((width, height), 24, 0, b"", b"")
        made[f"bmp-declares-minus-{name}"] = bmp((width, -height), 32, 0, b"", b"")
        short = {tag: (4, 1, value) for tag, value in ((256, width), (257, height), (278, height))}
        rest = {tag: (3, 1, value) for tag, value in ((258, 8), (259, 5), (262, 1), (277, 1))}
        made[f"tiff-declares-{name}"] = tiff(short | rest | {273: (4, 1, 8), 279: (4, 1, 4)}, b"\x80\0\1\1")
        if fits:
            made[f"jpeg-declares-{name}"] = jpeg.replace(
                struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", height, width), 1
            )
            made[f"gif-declares-{name}"] = gif[:6] + struct.pack("<HH", width, height) + gif[10:]
    return made


def _polyglots(carriers: dict[str, bytes]) -> dict[str, bytes]:
    """Files that are a picture for one reader and something else for another."""
    script, page = b"<?php system($_GET['c']); ?>", b"<script>alert(1)</script>"
    jpeg, gif = carriers["jpeg"], carriers["gif-animated"]
    return {
        "polyglot-jpeg-zip": jpeg + b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18),
        "polyglot-jpeg-script": jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(script)) + script + jpeg[2:],
        "polyglot-jpeg-pdf": b"%PDF-1.7\n" + jpeg,
        "polyglot-png-page": after_header(carriers["png"], chunk(b"tEXt", b"Comment\0" + page)),
        "polyglot-png-program": carriers["png"] + b"\x7fELF\2\1\1" + bytes(57),
        "polyglot-gif-script": b"GIF89a=1;/*" + gif[11:] + b"*/;alert(1)",
        "polyglot-bmp-page": b"BM" + page + carriers["bmp"][2:],
        "polyglot-webp-sound": carriers["webp"].replace(b"WEBP", b"WAVE", 1),
        "polyglot-tiff-jpeg": carriers["tiff-lzw"][:4] + jpeg,
        "polyglot-jpeg-png": jpeg[: len(jpeg) // 2] + carriers["png"],
    }


def _within_limits() -> dict[str, bytes]:
    """Small files that unpack to as much as a server takes, or nearly."""
    side = 7_900
    row = bytes(side)
    flat = Image.new("L", (side, side), 90)
    return {
        "bomb-png-grey": png((side, side), 8, 0, [row] * side),
        "bomb-png-rgb-4000": png((4_000, 4_000), 8, 2, [bytes(12_000)] * 4_000),
        "bomb-png-1-bit": png((side, side), 1, 0, [bytes(side // 8 + 1)] * side),
        "bomb-jpeg": save(flat, "JPEG", quality=10),
        "bomb-gif-5000": save(Image.new("P", (5_000, 5_000)), "GIF"),
        "bomb-webp-4000": save(Image.new("RGB", (4_000, 4_000)), "WEBP", lossless=True, method=0),
        "bomb-tiff": save(flat, "TIFF", compression="tiff_adobe_deflate"),
        "bomb-tiff-group4": save(Image.new("1", (side, side)), "TIFF", compression="group4"),
        "bomb-profile-in-jpeg": save(patches(), "JPEG", icc_profile=rgb_profile() + bytes(5_000_000)),
    }


def _long_chains(carriers: dict[str, bytes]) -> dict[str, bytes]:
    """Very many small parts, and parts that lead back to themselves."""
    gif, webp = carriers["gif-animated"], carriers["webp"]
    riff = webp[12:] + b"XXXX\0\0\0\0" * 100_000
    palette_end = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    loop = tiff({256: (3, 1, WIDTH), 257: (3, 1, HEIGHT), 34665: (4, 1, 8), 330: (4, 1, 8)}, b"")
    return {
        "chain-png": after_header(carriers["png"], chunk(b"teSt") * 100_000),
        "chain-png-text": after_header(carriers["png"], chunk(b"tEXt", b"a\0b") * 20_000),
        "chain-png-data": png((64, 64), 8, 0, [], *[chunk(b"IDAT")] * 50_000),
        "chain-gif": gif[:palette_end] + b"!\xfe\1a\0" * 100_000 + gif[palette_end:],
        "chain-gif-frames": gif[:-1] + gif[palette_end:-1] * 100 + b";",
        "chain-webp": b"RIFF" + struct.pack("<I", 4 + len(riff)) + b"WEBP" + riff,
        "chain-jpeg": carriers["jpeg"][:2] + b"\xff\xe1\0\x08Exif\0\0" * 5_000 + carriers["jpeg"][2:],
        "chain-jpeg-markers": carriers["jpeg"][:2] + b"\xff" * 500_000 + carriers["jpeg"][2:],
        "chain-tiff-loop": loop,
        "chain-tiff-directories": loop[:-4] + struct.pack("<I", 8),
    }


def _foreign() -> dict[str, bytes]:
    """What is no picture at all."""
    return {
        "foreign-pickle": b"cos\nsystem\n(S'true'\ntR.",
        "foreign-elf": b"\x7fELF\2\1\1" + bytes(500),
        "foreign-pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
        "foreign-xml-bomb": b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]><svg>&c;</svg>',
        "foreign-database": b"SQLite format 3\0" + bytes(500),
        "foreign-film": b"\0\0\0\x18ftypmp42" + bytes(500),
        "foreign-heic": b"\0\0\0\x18ftypheic" + bytes(500),
        "foreign-avif": b"\0\0\0\x1cftypavif" + bytes(500),
        "foreign-jpeg-2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(500),
        "foreign-gzip": b"\x1f\x8b\x08" + bytes(500),
        "foreign-letters": ("Ñandú, ¿qué?\n" * 500).encode("utf-16"),
        "foreign-noise": np.random.default_rng(1).bytes(100_000),
    }
