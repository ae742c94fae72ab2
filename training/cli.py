"""``lienzo-train``: trains, exports and indexes what Lienzo serves."""

from __future__ import annotations

import dataclasses
import logging
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from shared.console import bar, console, explain_errors, notices
from shared.errors import InvalidInput
from shared.perceptual_loss import LossSettings
from training import bench_command, clusters_command, embed_command, evaluate_command, load_command, search_command
from training.style_trainer import TrainingSettings

if TYPE_CHECKING:
    from training.train_command import StyleJob, StyleSource

app = typer.Typer(
    help="Train the networks and indexes that Lienzo serves.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

bench_command.app.command("http")(load_command.http)
bench_command.app.command("steady")(load_command.steady)
app.add_typer(bench_command.app, name="bench")
app.command("clusters")(clusters_command.clusters)
app.command("embed")(embed_command.embed)
app.command("evaluate")(evaluate_command.evaluate)
app.command("tune-search")(search_command.tune_search)

_ISSUES_SHOWN = 5

_LOSS, _TRAINING = LossSettings(), TrainingSettings()


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


# What both kinds of training take.
Content = Annotated[Path, typer.Option(help="Folder of content pictures (any layout; a few hundred will do).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder that the models' folders go into.")]
Init = Annotated[
    str, typer.Option(help="Start from this style: a slug trained here or shipped, or a run's or model's folder.")
]
TimeBudget = Annotated[
    str,
    typer.Option(help="Train each network at most this long, like 15m, 90s or 2h; export and comparison come on top."),
]
Steps = Annotated[int, typer.Option(help="Train at most this many steps.")]
Width = Annotated[str, typer.Option(help="full, half or quarter; half is 2.4 times faster than full.")]
Batch = Annotated[int, typer.Option(help="Pictures looked at together.")]
Crop = Annotated[int, typer.Option(help="Side of the training crops in pixels.")]
Accumulate = Annotated[int, typer.Option(help="Batches a step, where memory is short.")]
OptimizerName = Annotated[str, typer.Option("--optimizer", help="muon or adam.")]
Rate = Annotated[float, typer.Option(help="Learning rate; held, then lowered along a cosine over the last half.")]
Average = Annotated[float, typer.Option("--ema", help="Share of the weights' mean that is kept at each step; 0: none.")]
Target = Annotated[
    str, typer.Option(help="Several style pictures: the mean of their Gram matrices, or one at random a step.")
]
OnlyScales = Annotated[
    bool, typer.Option(help="Train the scales of the normalisations alone: minutes, from a shared body's --init.")
]
Patience = Annotated[
    int, typer.Option(help="Stop after so many validations (one in 100 steps) without a lower loss; 0: never.")
]
StyleSize = Annotated[int, typer.Option(help="Longer side of the style pictures; larger: finer strokes.")]
ContentWeight = Annotated[float, typer.Option(help="Weight of the content loss.")]
StyleWeight = Annotated[float, typer.Option(help="Weight of the style loss.")]
VariationWeight = Annotated[float, typer.Option("--tv-weight", help="Weight of the total variation.")]
Seed = Annotated[int, typer.Option(help="Of the initial weights and the crops.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ReferencePairs = Annotated[
    int, typer.Option(help="Held-out pictures to compare with the reference optimiser; 0: none.")
]
ContentCredit = Annotated[str, typer.Option(help="What the content pictures are, for the card.")]
Source = Annotated[str, typer.Option(help="Where the style pictures come from, for the card.")]
Licence = Annotated[str, typer.Option(help="Licence of the network, for the card.")]


@app.command()
@explain_errors
def style(
    style: Annotated[Path, typer.Option(help="A style picture, or a folder of pictures of one style.")],
    content: Content,
    name: Annotated[str, typer.Option(help="Slug of the new style: lower-case letters, digits, hyphens.")],
    output: Output,
    title: Annotated[str, typer.Option(help="Human name; the style picture's title where not given.")] = "",
    init: Init = "",
    time_budget: TimeBudget = "",
    steps: Steps = _TRAINING.steps,
    width: Width = _TRAINING.width,
    batch: Batch = _TRAINING.batch,
    crop: Crop = _TRAINING.crop,
    accumulate: Accumulate = _TRAINING.accumulate,
    optimizer: OptimizerName = _TRAINING.optimizer,
    learning_rate: Rate = _TRAINING.learning_rate,
    ema: Average = _TRAINING.ema,
    target: Target = _TRAINING.target,
    only_scales: OnlyScales = _TRAINING.only_scales,
    patience: Patience = _TRAINING.patience,
    style_size: StyleSize = _TRAINING.style_size,
    content_weight: ContentWeight = _LOSS.content_weight,
    style_weight: StyleWeight = _LOSS.style_weight,
    tv_weight: VariationWeight = _LOSS.tv_weight,
    seed: Seed = _TRAINING.seed,
    precision: Precision = _TRAINING.precision,
    device: Device = "auto",
    reference_pairs: ReferencePairs = 2,
    content_credit: ContentCredit = "",
    source: Source = "",
    licence: Licence = "",
) -> None:
    """Train a fast network for one style and export it as a model folder.

    Example: `lienzo-train style --style wave.jpg --content paintings/ --name wave -o models --time-budget 15m`,
    then `lienzo serve --models models`.

    Checkpoints, TensorBoard curves and sample sheets are kept in `OUTPUT/.training/NAME`. The same command run again
    goes on where it was interrupted. Several GPUs: `torchrun --nproc-per-node 4 -m training style …`.
    """
    # Here, so that --help does not wait for ONNX and matplotlib.
    from training.train_command import run_style_job, style_sources

    job = _job(locals(), styles=style_sources(style, source), slug=name, title=title)
    card = run_style_job(job)
    if card is None:
        return  # another worker of torchrun tells
    table = Table("", "", title=f"{card.name} ({card.slug})", show_header=False)
    table.add_row("model", str(output / name))
    table.add_row("parameters", f"{card.parameters:,} ({card.width} width)")
    early = ", then the loss fell no more" if card.training["stopped_early"] else ""
    table.add_row("trained", f"{card.training['steps']} steps in {card.training['seconds']:.0f} s{early}")
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
def styles(
    clusters: Annotated[Path, typer.Option(help="The clusters.json that `lienzo-train clusters` wrote.")],
    content: Content,
    output: Output,
    only: Annotated[
        list[str] | None, typer.Option(help="Id of a cluster to train; repeatable; all if left out.")
    ] = None,
    members: Annotated[
        int, typer.Option(help="Pictures nearest to the cluster's centre to learn from; 1: its medoid alone.")
    ] = 1,
    engine: Annotated[
        str, typer.Option(help="local: one after the other; ray: a cluster on each worker of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Networks at a time under Ray; as many as fit if left out.")
    ] = None,
    init: Init = "",
    time_budget: TimeBudget = "",
    steps: Steps = _TRAINING.steps,
    width: Width = _TRAINING.width,
    batch: Batch = _TRAINING.batch,
    crop: Crop = _TRAINING.crop,
    accumulate: Accumulate = _TRAINING.accumulate,
    optimizer: OptimizerName = _TRAINING.optimizer,
    learning_rate: Rate = _TRAINING.learning_rate,
    ema: Average = _TRAINING.ema,
    target: Target = _TRAINING.target,
    only_scales: OnlyScales = _TRAINING.only_scales,
    patience: Patience = _TRAINING.patience,
    style_size: StyleSize = _TRAINING.style_size,
    content_weight: ContentWeight = _LOSS.content_weight,
    style_weight: StyleWeight = _LOSS.style_weight,
    tv_weight: VariationWeight = _LOSS.tv_weight,
    seed: Seed = _TRAINING.seed,
    precision: Precision = _TRAINING.precision,
    device: Device = "auto",
    reference_pairs: ReferencePairs = 2,
    content_credit: ContentCredit = "",
    source: Source = "",
    licence: Licence = "",
) -> None:
    """Train a fast network for every cluster of style that has none yet.

    Example: `lienzo-train styles --clusters clusters/clusters.json --content paintings/ -o models --time-budget 30m`.

    Each network serves the part of style space that its cluster takes up. A cluster that fails does not stop the
    others; the same command run again goes on with those that are left.
    """
    from training.styles_command import cluster_jobs, run_jobs

    pattern = _job(locals(), styles=(), slug="pattern", title="")
    jobs = cluster_jobs(clusters, pattern, members=members, only=only or (), source=source)
    if not jobs:
        console.print(f"every cluster has its network in {output}")
        return
    for card in run_jobs(jobs, engine=engine, workers=workers):
        reached = f", as good as {card.reference.equals_steps} reference steps" if card.reference else ""
        console.print(f"{card.slug}: {card.training['steps']} steps in {card.training['seconds']:.0f} s{reached}")
    console.print(f"next: lienzo serve --models {output}")


@app.command()
@explain_errors
def body(
    content: Content,
    output: Output,
    style: Annotated[
        list[Path] | None, typer.Option(help="A style picture, or a folder of pictures; each is a style; repeatable.")
    ] = None,
    clusters: Annotated[
        Path | None, typer.Option(help="The clusters.json of `lienzo-train clusters`; each medoid is a style.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run, for --init.")] = "body",
    init: Init = "",
    time_budget: TimeBudget = "",
    steps: Steps = _TRAINING.steps,
    width: Width = _TRAINING.width,
    batch: Batch = _TRAINING.batch,
    crop: Crop = _TRAINING.crop,
    accumulate: Accumulate = _TRAINING.accumulate,
    optimizer: OptimizerName = _TRAINING.optimizer,
    learning_rate: Rate = _TRAINING.learning_rate,
    ema: Average = _TRAINING.ema,
    patience: Patience = _TRAINING.patience,
    style_size: StyleSize = _TRAINING.style_size,
    content_weight: ContentWeight = _LOSS.content_weight,
    style_weight: StyleWeight = _LOSS.style_weight,
    tv_weight: VariationWeight = _LOSS.tv_weight,
    seed: Seed = _TRAINING.seed,
    precision: Precision = _TRAINING.precision,
    device: Device = "auto",
    reference_pairs: ReferencePairs = 0,
    content_credit: ContentCredit = "",
    source: Source = "",
    licence: Licence = "",
) -> None:
    """Train one body for many styles, and export a model for each.

    Only the scales and shifts of the normalisations differ from style to style (Dumoulin et al. 2017). All styles
    together take about as long as a few networks of their own, and each of them is a start for such a network:
    `lienzo-train style … --init body`, or with `--only-scales` a new style in minutes.

    Example: `lienzo-train body --clusters clusters/clusters.json --content paintings/ -o models --time-budget 2h`.
    """
    from training.styles_command import cluster_jobs, picture_jobs
    from training.train_command import run_body_job

    options = locals() | {"target": "each", "only_scales": False}
    job = _job(options, styles=(), slug=name, title="")
    styles = picture_jobs(style or (), job, source=source)
    if clusters is not None:
        styles += cluster_jobs(clusters, job, members=1, source=source, skip_done=False)
    if len(styles) < 2:
        raise InvalidInput(
            f"there are {len(styles)} styles, expected at least 2.",
            hint="Name pictures or folders with --style, or clusters with --clusters.",
            field="style",
        )
    cards = run_body_job(job, styles)
    for card in cards:
        console.print(f"{card.slug}: {card.name}")
    console.print(f"next: lienzo serve --models {output}")


def _job(options: Mapping[str, Any], *, styles: tuple[StyleSource, ...], slug: str, title: str) -> StyleJob:
    """The job that a command's options ask for."""
    from training.train_command import StyleJob

    weights = {name: options[name] for name in ("content_weight", "style_weight", "tv_weight")}
    names = {field.name for field in dataclasses.fields(TrainingSettings)} & options.keys()
    return StyleJob(
        styles=styles,
        slug=slug,
        title=title,
        time_budget=parse_duration(options["time_budget"]) if options["time_budget"] else None,
        settings={name: options[name] for name in names} | {"loss": LossSettings(**weights)},
        **{
            name: options[name]
            for name in ("content", "output", "init", "device", "reference_pairs", "content_credit", "licence")
        },
        commit=_commit(),
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


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
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the index.")],
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="What to embed pictures by: style, resnet152, resnet50, FILE.onnx[:OUTPUT], or joint:FOLDER[@ENCODER] "
            "for an embedding of lienzo-train embed; repeatable. 'style' if left out."
        ),
    ] = None,
    index_uri: Annotated[
        str | None,
        typer.Option(help="Put the vectors into Milvus: a file that ends in .db, or http(s)://HOST:PORT."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: embed in this process; ray: on every worker of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Tasks at a time under Ray; as many as it has room for if left out.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Embed a gallery's pictures once, so that a service need not, or bring their index up to date.

    Only pictures that are new or whose file changed are embedded; a run that was interrupted is taken up.

    Example: `lienzo-train index --gallery paintings/ -o paintings-index`, then
    `LIENZO_GALLERY_INDEX=paintings-index lienzo serve --gallery paintings/`.
    """
    from training.index_command import build_index

    opened, changes = build_index(
        gallery,
        output,
        encoders=encoder or ["style"],
        uri=index_uri,
        engine=engine,
        workers=workers,
        device=device,
    )
    _list_issues("gallery", opened.issues)
    _list_issues("index", changes.issues)
    console.print(f"{output}: {changes.pictures} pictures; {changes}", soft_wrap=True)


def _list_issues(what: str, issues: Sequence[str]) -> None:
    """How many problems there are, and the first few."""
    for issue in issues[:_ISSUES_SHOWN]:
        notices.print(f"{what}: {issue}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(issues) > _ISSUES_SHOWN:
        notices.print(f"{what}: {len(issues)} problems in all; the others are like these", style="yellow")


@app.command()
@explain_errors
def sheet(
    picture: Annotated[list[str], typer.Option(help="Id of a gallery picture to paint; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the sheet, a .jpg or .png file.")],
    gallery: Annotated[str, typer.Option(help="'met' or a folder.")] = "met",
    models: Annotated[list[Path] | None, typer.Option(help="Folders of models; the shipped ones if left out.")] = None,
    size: Annotated[int, typer.Option(help="Longer side of each picture in pixels.", min=64, max=1024)] = 256,
    columns: Annotated[
        int | None, typer.Option(help="Pictures in a row; all paintings of a picture if left out.", min=1)
    ] = None,
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
        painted = paint_sheet(pictures, list(library.models.values()), size=size, columns=columns, on_painting=update)
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
