"""``lienzo optimize``: the reference optimiser with everything it can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import weights
from shared.console import bar, notices, stages
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

    from shared.adain import AdaINDecoder
    from shared.encoders import Encoder
    from shared.optimized_painting import OptimizedPainting
    from shared.optimizer import OptimizerSettings
    from shared.presets import Preset

CONTENT, STYLE, ADAIN = "content", "style", "adain"


@dataclass(frozen=True)
class Choices:
    """What the command line asks for; None leaves it to the preset.

    Attributes:
        settings: fields of :class:`shared.optimizer.OptimizerSettings`.
        loss: fields of :class:`shared.perceptual_loss.LossSettings`.
        start: a start's name, a picture's file, or the slug of a fast style.
        only: ``content`` or ``style``: reconstruct from the one alone.
    """

    preset: str = "lienzo"
    encoder: str | None = None
    pooling: str | None = None
    precision: str = "auto"
    size: int | None = None
    start: str | None = None
    only: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The choices and the preset brought together, checked before anything slow begins."""

    preset: Preset
    encoder: str
    pooling: str
    precision: str
    size: int
    settings: OptimizerSettings
    warm_start: str | None
    """``adain``, ``nearest``, a picture's file or a fast style's slug to start from."""


def plan(choices: Choices) -> Plan:
    """Settle every number, the command line's over the preset's.

    Raises:
        InvalidInput: a name or number that cannot be, or a layer that the encoder does not have.
    """
    from shared.devices import PRECISIONS
    from shared.encoders import POOLINGS
    from shared.optimizer import DEFAULT_LOSS, STARTS
    from shared.presets import preset, relative_loss

    base = preset(choices.preset)
    encoder, pooling = choices.encoder or base.encoder, choices.pooling or base.pooling
    # A network without layers is no encoder.
    encoders = tuple(name for name in weights.SOURCES if weights.architecture(name).layers)
    for name, value, allowed in (
        ("encoder", encoder, encoders),
        ("pooling", pooling, POOLINGS),
        ("precision", choices.precision, PRECISIONS),
        ("only", choices.only or CONTENT, (CONTENT, STYLE)),
    ):
        if value not in allowed:
            raise InvalidInput(f"{name} is '{value}', expected one of {', '.join(allowed)}.", field=name)
    architecture = weights.architecture(encoder)
    # Weights chosen on normalised activations mean nothing on others: relative ones do.
    loss = base.settings.loss
    if encoder != "vgg19" and loss == DEFAULT_LOSS:
        loss = relative_loss(architecture.name)
    settings = {name: value for name, value in choices.settings.items() if value is not None}
    start = choices.start
    if choices.only:
        other = STYLE if choices.only == CONTENT else CONTENT
        if choices.loss.get(f"{other}_layers"):
            raise InvalidInput(f"only is '{choices.only}', but {other} layers were named.", field="only")
        # The figures of the paper have the one term alone, from noise.
        loss = dataclasses.replace(loss, **{f"{other}_layers": {}, "tv_weight": 0.0})
        start = start or "uniform"
    loss = dataclasses.replace(loss, **{name: value for name, value in choices.loss.items() if value is not None})
    architecture.check(loss.layers)
    if start is None and base.warm and encoder == "vgg19":
        start = ADAIN
    if start == ADAIN and encoder != "vgg19":
        raise InvalidInput(
            f"a start by AdaIN needs the encoder vgg19, not {encoder}.", hint="Choose another start.", field="start"
        )
    if start in STARTS:
        settings["start"] = start
    settled = dataclasses.replace(base.settings, **settings, loss=loss)
    if "learning_rate" in settings and settled.optimizer != "adam":
        raise InvalidInput(
            "a learning rate is Adam's, and this preset paints with L-BFGS.",
            hint="Add --optimizer adam, or leave the rate out.",
            field="learning_rate",
        )
    return Plan(
        base,
        encoder,
        pooling,
        choices.precision,
        choices.size or base.size,
        settled,
        None if start is None or start in STARTS else start,
    )


def load_encoder(device: str, name: str = "vgg19", pooling: str = "max", precision: str = "auto") -> Encoder:
    """The pretrained network ``name`` on ``device``, fetched with a progress bar where it is not here."""
    from shared import encoders
    from shared.devices import keep_freed_memory

    keep_freed_memory()
    with stages() as progress:
        return encoders.load_encoder(name, device=device, pooling=pooling, precision=precision, progress=progress)


def load_decoder(encoder: Encoder) -> AdaINDecoder:
    """AdaIN's decoder beside ``encoder``, fetched where it is not here."""
    from shared.adain import AdaINDecoder

    with stages() as progress:
        tensors = weights.load("adain-decoder", progress=progress)
    return AdaINDecoder(tensors, dtype=encoder.dtype, device=encoder.device)


def paint(
    plan: Plan,
    content: bytes,
    styles: Sequence[bytes],
    *,
    style_weights: Sequence[float] | None = None,
    style_masks: Sequence[bytes] | None = None,
    start: bytes | None = None,
    device: str = "auto",
    record: Path | None = None,
    resume: bool = False,
    every: int = 100,
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> OptimizedPainting:
    """Paint by ``plan`` with a progress bar.

    Args:
        style_weights: one for each style.
        style_masks: one for each style.
        start: an encoded painting to start from.
        record: a folder to keep the record and checkpoints of the run in.
        resume: go on from the checkpoint in that folder.
        facts: what else to note in the record.
        options: of :func:`shared.optimized_painting.paint_optimized`.

    Raises:
        InvalidInput: numbers of weights, masks and styles that do not agree; nothing to resume.
    """
    from shared.optimized_painting import StyleFile, paint_optimized
    from shared.optimizer import Iteration
    from shared.run_record import RunRecord, fingerprint, load_checkpoint, plot_available

    for name, given in (("style_weights", style_weights), ("style_masks", style_masks)):
        if given is not None and len(given) != len(styles):
            raise InvalidInput(
                f"{len(given)} {name.replace('_', ' ')} were given for {len(styles)} style pictures.",
                hint="Give one for each style picture, or none.",
                field=name,
            )
    if (resume or every != 100) and record is None:
        raise InvalidInput("there is no record to use.", hint="Name its folder with --record.", field="record")
    files = [
        StyleFile(
            data,
            style_weights[i] if style_weights else 1.0,
            style_masks[i] if style_masks else None,
        )
        for i, data in enumerate(styles)
    ]
    run = fingerprint(
        plan.settings,
        content,
        start,
        options.get("mask"),
        *styles,
        *(style_masks or [None] * len(styles)),
        encoder=plan.encoder,
        pooling=plan.pooling,
        precision=plan.precision,
        adain=plan.warm_start == ADAIN,
        size=plan.size,
        square=options.get("square", plan.preset.square),
        weights=list(style_weights or ()),
        **{name: options.get(name) for name in ("style_scale", "match_color")},
    )
    checkpoint = load_checkpoint(record / "checkpoint.safetensors", run) if resume else None
    keeper = None
    if record is not None:
        if not plot_available():
            notices.print(
                "no plot will be drawn: matplotlib is not installed (pip install 'lienzo[train]')", style="yellow"
            )

        def keeper(content_picture: Image.Image, style_pictures: Sequence[Image.Image]) -> RunRecord:
            return RunRecord(
                record,
                facts={**(facts or {}), "run": run, "settings": plan.settings.as_dict()},
                every=every,
                content=content_picture,
                styles=style_pictures,
                resume=checkpoint,
            )

    encoder = load_encoder(device, plan.encoder, plan.pooling, plan.precision)
    decoder = load_decoder(encoder) if plan.warm_start == ADAIN else None
    with bar("optimising", plan.settings.steps) as update:

        def show(iteration: Iteration) -> None:
            # Reading the losses waits for the device; now and then is enough for the eye.
            if iteration.step % 5 == 0 or iteration.step == iteration.steps:
                losses = iteration.losses
                update(
                    iteration.step,
                    note=f"{iteration.width}×{iteration.height}  content {losses['content']:.4g}  "
                    f"style {losses['style']:.4g}",
                )

        return paint_optimized(
            encoder,
            content,
            files,
            plan.settings,
            start=start,
            decoder=decoder,
            size=plan.size,
            resume=checkpoint,
            record=keeper,
            on_iteration=show,
            **{"square": plan.preset.square, **options},
        )


def parse_layers(text: str) -> dict[str, float]:
    """``relu4_2:1,relu3_1:0.5`` as weights by layer; a layer without a number weighs an equal share of 1.

    Raises:
        InvalidInput: a weight is no number.
    """
    parts = [part.strip().partition(":") for part in text.split(",") if part.strip()]
    try:
        return {name: float(weight) if weight else 1 / len(parts) for name, _, weight in parts}
    except ValueError as error:
        raise InvalidInput(
            f"'{text}' is no list of layers.", hint="Write it like relu4_2:1,relu3_1:0.5.", field="layers"
        ) from error


def parse_numbers(text: str) -> list[float]:
    """``2,1`` as numbers.

    Raises:
        InvalidInput: one is none.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInput(
            f"'{text}' is no list of numbers.", hint="Write it like 2,1.", field="style_weights"
        ) from error
