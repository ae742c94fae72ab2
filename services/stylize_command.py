"""``lienzo stylize`` for more than one picture: folders and films."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.optimize_command import load_decoder, load_encoder
from shared.console import bar
from shared.errors import InvalidInput
from shared.files import sha256
from shared.images import DecodeLimits

if TYPE_CHECKING:
    from PIL import Image

    from shared.fast_models import FastModel
    from shared.picture_folders import PaintedFolder

OWN_LIMITS = DecodeLimits(max_pixels=400_000_000, max_bytes=2**31)
"""The pictures are the caller's own, and so is the machine."""


@dataclass(frozen=True)
class Painter:
    """What paints one picture after the other.

    Attributes:
        paint: from a picture to its painting.
        provider: what runs it; asked for when something was painted.
        recipe: every setting that changes the painting.
    """

    paint: Callable[[Image.Image], Image.Image]
    provider: Callable[[], str]
    recipe: dict[str, str]


def find_fast_model(style: str, models: list[Path] | None, device: str, engine: str) -> FastModel:
    """The fast model of a folder or a slug.

    Raises:
        InvalidInput: it is neither.
    """
    from shared.fast_models import SHIPPED, SLUG, FastModel, ModelLibrary, read_card

    path = Path(style)
    if path.is_dir():
        return FastModel(path, read_card(path), device, engine)
    if not SLUG.fullmatch(style):
        raise InvalidInput(
            f"'{style}' is no file, no folder, and no slug of a style.",
            hint="Name a picture, a model's folder, or a style that `lienzo models` lists.",
            field="style",
        )
    return ModelLibrary((SHIPPED, *(models or ())), device=device, engine=engine)[style]


def painter(
    style: str,
    *,
    engine: str,
    size: int | None,
    strength: float,
    preserve_color: bool,
    models: list[Path] | None,
    device: str,
    engine_provider: str,
) -> Painter:
    """What paints many pictures in a style: a fast network, or AdaIN in that of a picture.

    Raises:
        InvalidInput: there is no such style, or the engine does not paint it.
    """
    settings = {"Strength": f"{strength:g}", "Preserve-Color": str(preserve_color), "Size": str(size or "own")}
    if Path(style).is_file():
        _check_engine(engine, "instant", "a style picture")
        return _instant_painter(Path(style), strength, preserve_color, device, settings)
    model = find_fast_model(style, models, device, engine_provider)
    _check_engine(engine, "fast", "a fast style")
    from shared.fast_painting import paint_picture

    return Painter(
        lambda picture: paint_picture(model, picture, strength=strength, preserve_color=preserve_color),
        lambda: model.provider,
        {"Software": "Lienzo", "Style": model.card.slug, "Engine": "fast", "Model": model.card.sha256} | settings,
    )


def stylize_folder(folder: Path, output: Path, painter: Painter, *, size: int | None, again: bool) -> PaintedFolder:
    """Paint a folder, with a progress bar."""
    from shared.picture_folders import paint_folder

    with bar("pictures") as update:
        return paint_folder(
            folder,
            output,
            painter.paint,
            recipe=painter.recipe,
            size=size,
            again=again,
            limits=OWN_LIMITS,
            on_picture=lambda done, total, name: update(done, total, name),
        )


def stylize_video(source: Path, output: Path, painter: Painter, *, size: int | None, steady: float) -> dict[str, Any]:
    """Paint a film, with a progress bar; returns what is told about it."""
    from shared.video import paint_video

    with bar("frames") as update:
        made = paint_video(
            source,
            output,
            painter.paint,
            size=size,
            steady=steady,
            recipe=painter.recipe | {"Steady": f"{steady:g}"},
            on_frame=update,
        )
    return {
        "frames": made.frames,
        "size": "{}×{}".format(*made.size),
        "codec": made.codec,
        "audio": ", ".join(made.audio),
        "steady": steady,
    }


def _instant_painter(style: Path, strength: float, preserve_color: bool, device: str, settings: dict) -> Painter:
    from functools import lru_cache

    from shared.instant_painting import decode_style, paint_picture

    data = style.read_bytes()
    decode_style(data, (1, 1), OWN_LIMITS)  # a picture that cannot be read is told before anything slow
    encoder = load_encoder(device)
    decoder = load_decoder(encoder)

    @lru_cache(maxsize=4)
    def styled(size: tuple[int, int]) -> Image.Image:
        return decode_style(data, size, OWN_LIMITS)

    def paint(picture: Image.Image) -> Image.Image:
        styles = [(styled(picture.size), 1.0)]
        return paint_picture(encoder, decoder, picture, styles, strength=strength, preserve_color=preserve_color)

    recipe = {"Software": "Lienzo", "Engine": "instant", "Style": style.name, "Style-SHA256": sha256(style)}
    return Painter(paint, lambda: str(encoder.device), recipe | settings)


def _check_engine(engine: str, only: str, what: str) -> None:
    if engine not in ("auto", only):
        raise InvalidInput(
            f"engine is '{engine}', but folders and videos in {what} are painted by auto, {only}.",
            hint="Only a single picture is painted otherwise.",
            field="engine",
        )
