"""``lienzo-train evaluate``: fast models against the reference optimiser, as a report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from shared.console import console, explain_errors, stages
from shared.errors import InvalidInput
from training.bench_command import parse_marks


@explain_errors
def evaluate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report and of kept references.")],
    models: Annotated[list[Path] | None, typer.Option(help="Folders of models; the shipped ones if left out.")] = None,
    styles: Annotated[
        list[Path] | None,
        typer.Option(help="Folder in which the style pictures lie, found by the SHA-256 on each card; repeatable."),
    ] = None,
    content: Annotated[
        list[str] | None, typer.Option(help="'met' or a folder of pictures to paint; repeatable. met if left out.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Content pictures, taken in turns from the folders.", min=1)] = 20,
    size: Annotated[int, typer.Option(help="Side of the content pictures in pixels.")] = 256,
    marks: Annotated[
        str, typer.Option(help="Steps of the reference to compare with; 0: no comparison.")
    ] = "100,300,500",
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", help="Compare with the reference, which takes its time.")
    ] = True,
    lpips: Annotated[
        bool, typer.Option("--lpips/--no-lpips", help="Measure LPIPS; fetches VGG-16 (528 MB) once.")
    ] = True,
    cards: Annotated[
        bool, typer.Option("--cards", help="Write the comparison with the reference into the models' cards.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Measure only this style's model; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of contents and of the reference's noise.", min=0)] = 0,
) -> None:
    """Measure fast models on pictures that they were not trained on, and write a report with pictures and plots.

    Losses need the style pictures. The reference optimiser takes up to a second a step; its losses are kept in
    `OUTPUT/reference`, so that the same command goes on where it was interrupted.

    Example: `lienzo-train evaluate -o evaluation --styles paintings --content met --content photos --marks 100`.
    """
    # Here, so that --help does not wait for PyTorch and matplotlib.
    from shared.devices import keep_freed_memory, pick_device
    from shared.fast_models import SHIPPED, ModelLibrary
    from shared.galleries import open_gallery
    from training.evaluation import EvaluationSettings, find_pictures, note_reference, pick_contents
    from training.evaluation import evaluate as measure
    from training.report import columns, conditions, notes, write_report

    keep_freed_memory()
    pick_device(device)
    wanted = tuple(parse_marks(marks)) if reference and marks.strip() != "0" else ()
    settings = EvaluationSettings(size=size, marks=wanted, seed=seed, device=device, lpips=lpips)
    folders = models or [SHIPPED]
    library = ModelLibrary(folders, device=device)
    chosen = [library[slug] for slug in dict.fromkeys(only)] if only else list(library.models.values())
    if not chosen:
        raise InvalidInput(
            f"there is no fast model in {', '.join(map(str, folders))}.",
            hint="Name a folder whose sub-folders hold model.onnx and card.json.",
            field="models",
        )
    hashes = {style.sha256 for model in chosen for style in model.card.styles}
    galleries = [open_gallery(spec) for spec in content or ["met"]]
    with stages() as progress:
        files = find_pictures(hashes, styles or [], progress)
        contents = pick_contents(galleries, pairs, size, seed=seed, leave_out=hashes)
        output.mkdir(parents=True, exist_ok=True)
        evaluation = measure(chosen, contents, files, settings, output / "reference", progress)
    written = write_report(output, evaluation, created=datetime.now(UTC).strftime("%Y-%m-%d"))
    if cards:
        for model, result in zip(chosen, evaluation.models, strict=True):
            note_reference(model, result, size)
    shown = [column for column in columns(evaluation) if column.brief]
    table = Table(caption=conditions(evaluation))
    for i, column in enumerate(shown):
        table.add_column(column.heading, no_wrap=i == 0)
    for model in evaluation.models:
        table.add_row(*(column.cell(model) for column in shown))
    console.print(table)
    for note in notes(evaluation):
        console.print(note, markup=False, highlight=False)
    console.print(f"{written}: {len(chosen)} models, {len(contents)} content pictures", markup=False)
