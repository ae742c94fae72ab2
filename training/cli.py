"""``lienzo-train``: trains, exports and indexes what Lienzo serves."""

from __future__ import annotations

import logging
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from shared.console import bar, console, explain_errors
from shared.errors import InvalidInput
from shared.perceptual_loss import LossSettings
from training import bench_command

app = typer.Typer(
    help="Train the networks and indexes that Lienzo serves.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.add_typer(bench_command.app, name="bench")

_LOSS = LossSettings()


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


@app.command()
@explain_errors
def style(
    style: Annotated[Path, typer.Option(help="A style picture, or a folder of pictures of one style.")],
    content: Annotated[Path, typer.Option(help="Folder of content pictures (any layout; a few hundred will do).")],
    name: Annotated[str, typer.Option(help="Slug of the new style: lower-case letters, digits, hyphens.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that the model's folder goes into.")],
    title: Annotated[str, typer.Option(help="Human name; the style picture's title where not given.")] = "",
    init: Annotated[
        str, typer.Option(help="Start from this style: a slug trained here or shipped, or a run's or model's folder.")
    ] = "",
    time_budget: Annotated[
        str, typer.Option(help="Train at most this long, like 15m, 90s or 2h; export and comparison come on top.")
    ] = "",
    steps: Annotated[int, typer.Option(help="Train at most this many steps.")] = 2000,
    width: Annotated[str, typer.Option(help="full, half or quarter; half is 2.4 times faster than full.")] = "half",
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 2,
    crop: Annotated[int, typer.Option(help="Side of the training crops in pixels.")] = 256,
    style_size: Annotated[int, typer.Option(help="Longer side of the style picture; larger: finer strokes.")] = 384,
    content_weight: Annotated[float, typer.Option(help="Weight of the content loss.")] = _LOSS.content_weight,
    style_weight: Annotated[float, typer.Option(help="Weight of the style loss.")] = _LOSS.style_weight,
    tv_weight: Annotated[float, typer.Option(help="Weight of the total variation.")] = _LOSS.tv_weight,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the crops.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    reference_pairs: Annotated[
        int, typer.Option(help="Held-out pictures to compare with the reference optimiser; 0: none.")
    ] = 2,
    content_credit: Annotated[str, typer.Option(help="What the content pictures are, for the card.")] = "",
    source: Annotated[str, typer.Option(help="Where the style picture comes from, for the card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the network, for the card.")] = "",
) -> None:
    """Train a fast network for one style and export it as a model folder.

    Example: `lienzo-train style --style wave.jpg --content paintings/ --name wave -o models --time-budget 15m`,
    then `lienzo serve --models models`.

    Checkpoints, TensorBoard curves and sample sheets are kept in `OUTPUT/.training/NAME`. The same command run again
    goes on where it was interrupted.
    """
    # Here, so that --help does not wait for ONNX and matplotlib.
    from training.train_command import StyleJob, run_style_job

    job = StyleJob(
        style=style,
        content=content,
        slug=name,
        output=output,
        title=title,
        init=init,
        time_budget=parse_duration(time_budget) if time_budget else None,
        settings={
            "steps": steps,
            "width": width,
            "batch": batch,
            "crop": crop,
            "style_size": style_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "precision": precision,
            "loss": LossSettings(content_weight=content_weight, style_weight=style_weight, tv_weight=tv_weight),
        },
        device=device,
        reference_pairs=reference_pairs,
        content_credit=content_credit,
        source=source,
        licence=licence,
        commit=_commit(),
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    card = run_style_job(job)
    table = Table("", "", title=f"{card.name} ({card.slug})", show_header=False)
    table.add_row("model", str(output / name))
    table.add_row("parameters", f"{card.parameters:,} ({card.width} width)")
    table.add_row("trained", f"{card.training['steps']} steps in {card.training['seconds']:.0f} s")
    table.add_row("parity with PyTorch", f"{card.parity.max_difference:.1e}")
    if card.reference:
        reached = card.reference.equals_steps
        table.add_row("total loss on held-out pictures", f"{card.reference.network_total:.2f}")
        for mark, total in card.reference.optimizer_total.items():
            table.add_row(f"  reference after {mark} steps", f"{total:.2f}")
        table.add_row("as good as", f"{reached} steps of the reference" if reached else "more steps than were tried")
    table.add_row("next", f"lienzo serve --models {output}")
    console.print(table)


@app.command()
@explain_errors
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a training (OUTPUT/.training/NAME).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the network, a .onnx file.")],
) -> None:
    """Export the network of a training's last checkpoint, compared with PyTorch at several sizes first."""
    from training.train_command import export_checkpoint

    parity = export_checkpoint(run, output)
    console.print(f"{output}: parity with PyTorch {parity.max_difference:.1e} over {len(parity.shapes)} shapes")


@app.command()
@explain_errors
def space(
    gallery: Annotated[list[str], typer.Option(help="'met' or a folder; repeat for several.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    dimensions: Annotated[int, typer.Option(help="Dimensions of the space.")] = 64,
    whitening: Annotated[float, typer.Option(help="0: distances as they are; 1: every direction counts alike.")] = 0.5,
) -> None:
    """Fit the style space: the directions in which the paintings of some galleries differ."""
    from training.index_command import fit_space

    fitted = fit_space(gallery, output, dimensions=dimensions, whitening=whitening)
    console.print(f"{output}: {fitted.basis.shape[0]} dimensions, fitted on {fitted.fitted_on}")


@app.command()
@explain_errors
def index(
    gallery: Annotated[str, typer.Option(help="'met' or a folder (SemArt's layout, WikiArt's, or any pictures).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
) -> None:
    """Compute the style embeddings of a gallery once, so that a service need not."""
    from training.index_command import build_index

    built = build_index(gallery, output)
    console.print(f"{output}: {len(built.ids)} pictures")


@app.command()
@explain_errors
def sheet(
    picture: Annotated[list[str], typer.Option(help="Id of a gallery picture to paint; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the sheet, a .jpg or .png file.")],
    gallery: Annotated[str, typer.Option(help="'met' or a folder.")] = "met",
    models: Annotated[list[Path] | None, typer.Option(help="Folders of models; the shipped ones if left out.")] = None,
    size: Annotated[int, typer.Option(help="Longer side of each picture in pixels.", min=64, max=1024)] = 256,
) -> None:
    """Paint some gallery pictures in every fast style, on one contact sheet."""
    from shared.fast_models import SHIPPED, ModelLibrary
    from shared.files import write_atomically
    from shared.galleries import open_gallery
    from shared.images import encode
    from training.contact_sheet import paint_sheet

    format = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}.get(output.suffix.lower())
    if format is None:
        raise InvalidInput(f"'{output}' ends in no picture format.", hint="End it in .jpg or .png.", field="output")
    opened, library = open_gallery(gallery), ModelLibrary(models or (SHIPPED,))
    pictures = [opened.by_id(id) for id in picture]
    with bar("painting", len(pictures) * len(library)) as update:
        painted = paint_sheet(pictures, list(library.models.values()), size=size, on_painting=update)
    write_atomically(output, encode(painted, format, quality=88))
    console.print(f"{output}: {len(pictures)} pictures in {len(library)} styles")


def parse_duration(text: str) -> float:
    """Seconds of a text like ``90s``, ``15m``, ``2h`` or ``1h30m``; a bare number is seconds.

    Raises:
        InvalidInput: the text is no duration, or zero.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise InvalidInput(
            f"'{text}' is no duration.", hint="Write it like 90s, 15m, 2h or 1h30m.", field="time_budget"
        )
    return total


def _commit() -> str:
    """The commit of the code that trains, where it is known, with a + if the code was changed since."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def main() -> None:
    """Entry point of ``lienzo-train``."""
    app()
