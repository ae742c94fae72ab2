"""``lienzo-train embed``: trains the joint embedding of texts and pictures, or compares several ways to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from shared.console import bar, console, explain_errors, notices, stages
from shared.errors import InvalidInput
from shared.files import write_atomically

if TYPE_CHECKING:
    from training.embed import EmbedSettings
    from training.embed_run import EmbedReport, Workbench
    from training.retrieval_metrics import Figure

DEFAULT_PRESET = "best"


@explain_errors
def embed(
    gallery: Annotated[str, typer.Option(help="A folder in SemArt's layout, or any gallery with descriptions.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the embedding, its curves and its report.")],
    preset: Annotated[
        str, typer.Option(help="thesis (28 dimensions), semart (128; Garcia and Vogiatzis 2018) or best (ours).")
    ] = DEFAULT_PRESET,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Train this preset, and the others named so, and compare them on the test pairs; repeatable. "
            "Settings can follow: semart:epochs=100,batch=64."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each preset that is compared.", min=1)] = 3,
    image_encoder: Annotated[
        str,
        typer.Option(help="resnet50, resnet152, PATH.onnx, PATH.onnx:OUTPUT, style, or open_clip:MODEL/PRETRAINED."),
    ] = "resnet50",
    sentence_encoder: Annotated[
        str | None,
        typer.Option(help="Folder of a sentence transformer, or open_clip:MODEL/PRETRAINED; for the preset best."),
    ] = None,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train the image encoder too; minutes an epoch even for small galleries.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs; the preset's where not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order and the crops.", min=0)] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting, as NAME=VALUE; repeatable.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder that features are kept in; in the user's cache where not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything here too.")] = None,
) -> None:
    """Teach one space to texts and pictures, so that words find the picture that they fit.

    Example: `lienzo-train embed --gallery SemArt/ --preset thesis -o embedding` reproduces the thesis's table;
    `lienzo-train embed --gallery SemArt/ --compare semart --compare best -o comparison` compares with ours.

    What the image encoder makes of the pictures is computed once and kept, so that epochs take seconds. The same
    command run again goes on where it was interrupted. The best epoch on the validation pairs is kept.
    """
    # Here, so that --help does not wait for PyTorch and matplotlib.
    from shared.galleries import open_gallery
    from shared.weights import cache_dir
    from training.embed_run import Workbench, fit_texts, run_embedding
    from training.text_pairs import LEAST_PAIRS

    given = [*(settings or ()), *([] if epochs is None else [f"epochs={epochs}"]), *["finetune=true"] * finetune]
    runs = [(spec, *parse_preset(spec, given)) for spec in compare or [preset]]
    if twice := [spec for i, spec in enumerate(compare or ()) if spec in compare[:i]]:
        raise InvalidInput(f"'{twice[0]}' is compared twice.", hint="Name each once.", field="compare")
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"'{output}' is a file.", hint="Name a folder to write to.", field="output")

    with stages() as progress:
        bench = Workbench(
            open_gallery(gallery),
            image_encoder,
            sentence_encoder,
            cache=features or cache_dir() / "features",
            device=device,
            progress=progress,
        )
        if compare and len(bench.split.test) < LEAST_PAIRS:
            raise InvalidInput("the gallery has no test pairs to compare on.", field="gallery")
        for _, _, chosen in runs:
            fit_texts(bench.split.train, chosen, bench.sentences)  # fails at once, where it must fail
        for _, _, chosen in runs:
            bench.readable(chosen)
    for note in bench.split.notes:
        notices.print(note, style="yellow", soft_wrap=True)
    if any(chosen.sentences for _, _, chosen in runs) and bench.sentences is None:
        notices.print("No --sentence-encoder is given, so the words of a text are counted and no more.", style="yellow")

    if compare is None:
        ((_, name, chosen),) = runs
        with _training(name) as (on_step, on_epoch):
            report = run_embedding(bench, name, replace(chosen, seed=seed), output, on_step=on_step, on_epoch=on_epoch)
        _print_epochs(report)
        _print_figures(report)
        console.print(escape(f"{output}: kept epoch {report.best_epoch}; recall.png and report.json say more"))
        _write_json(json_path, report.as_dict())
        return

    reports = {
        spec: _train_seeds(bench, spec, name, chosen, output, range(seed, seed + seeds)) for spec, name, chosen in runs
    }
    rows = comparison(reports)
    console.print(_comparison_table(rows, bench, seeds))
    output.mkdir(parents=True, exist_ok=True)
    plain = {
        "gallery": bench.gallery.name,
        "rows": rows,
        "reports": {spec: [report.as_dict() for report in found] for spec, found in reports.items()},
    }
    write_atomically(output / "comparison.json", json.dumps(plain, indent=1).encode())
    write_atomically(output / "comparison.md", comparison_markdown(rows).encode())
    console.print(escape(f"{output}: comparison.md and comparison.json say more"))
    _write_json(json_path, plain)


def parse_preset(spec: str, settings: Sequence[str] = ()) -> tuple[str, EmbedSettings]:
    """Name and settings of ``PRESET`` or ``PRESET:NAME=VALUE,NAME=VALUE``.

    Args:
        settings: more of ``NAME=VALUE``, which those in ``spec`` take precedence over.

    Raises:
        InvalidInput: there is no such preset or setting, or a value is out of range.
    """
    from training.embed import PRESETS

    name, _, own = spec.partition(":")
    if name not in PRESETS:
        raise InvalidInput(f"there is no preset '{name}'.", hint=f"Presets are {', '.join(PRESETS)}.", field="preset")
    preset, changes = PRESETS[name], {}
    kinds = {field.name: type(getattr(preset, field.name)) for field in fields(preset) if field.name != "seed"}
    for text in (*settings, *filter(None, own.split(","))):
        key, _, value = (part.strip() for part in text.partition("="))
        if key not in kinds:
            raise InvalidInput(
                f"there is no setting '{key}'.", hint=f"Settings are {', '.join(kinds)}; write NAME=VALUE.", field="set"
            )
        try:
            changes[key] = {"true": True, "false": False}[value.lower()] if kinds[key] is bool else kinds[key](value)
        except (KeyError, ValueError) as error:
            expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[kinds[key]]
            raise InvalidInput(f"{key} is '{value}', expected {expected}.", field="set") from error
    return name, replace(preset, **changes)


COLUMNS = ("R@1", "R@5", "R@10", "MR")


def comparison(reports: Mapping[str, Sequence[EmbedReport]]) -> list[dict[str, Any]]:
    """For each preset and direction the mean and the standard deviation of its test figures over the seeds."""
    from training.retrieval_metrics import mean_over_runs

    rows = []
    for direction in ("text_to_image", "image_to_text"):
        for spec, found in reports.items():
            rows.append({"preset": spec, "direction": direction} | mean_over_runs([r.test[direction] for r in found]))
    return rows


def comparison_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :func:`comparison` as a table in Markdown."""
    lines = [f"| direction | preset | {' | '.join(COLUMNS)} |", f"|{'---|' * (2 + len(COLUMNS))}"]
    return "\n".join(lines + [f"| {' | '.join(_comparison_row(row))} |" for row in rows]) + "\n"


def _train_seeds(
    bench: Workbench, spec: str, name: str, settings: EmbedSettings, output: Path, seeds: Sequence[int]
) -> list[EmbedReport]:
    from training.embed_run import run_embedding

    reports = []
    for seed in seeds:
        folder = output / f"{re.sub(r'[^a-z0-9.]+', '-', spec.lower())}-seed{seed}"
        with _training(f"{escape(spec)}, seed {seed}") as (on_step, on_epoch):
            reports.append(
                run_embedding(bench, name, replace(settings, seed=seed), folder, on_step=on_step, on_epoch=on_epoch)
            )
    return reports


@contextmanager
def _training(title: str) -> Iterator[tuple[Callable[..., None], Callable[..., None]]]:
    """A progress bar, and what keeps it going by step and by epoch."""
    with bar(f"training {title}") as update:
        note = ""

        def on_step(done: int, total: int) -> None:
            update(done, total, note)

        def on_epoch(epoch: Any) -> None:
            nonlocal note
            note = f"epoch {epoch.epoch}: R@10 {epoch.figures['text_to_image']['R@10'].value:.3f}"

        yield on_step, on_epoch


def _print_epochs(report: EmbedReport) -> None:
    """The thesis's table 2: figures by epoch on the validation pairs, words looking for pictures."""
    table = Table(
        "epoch", "MR", "R@1", "R@5", "R@10", "loss", title=f"{report.preset}: text → picture, validation pairs"
    )
    for row in report.history:
        figures = row["text_to_image"]
        cells = [f"{figures['MR']['value']:g}", *(f"{figures[name]['value']:.3f}" for name in COLUMNS[:3])]
        kept = row["epoch"] == report.best_epoch
        table.add_row(str(row["epoch"]), *cells, f"{row['loss']:.4f}", style="bold" if kept else None)
    console.print(table)


def _print_figures(report: EmbedReport) -> None:
    from training.embed_record import DIRECTIONS
    from training.retrieval_metrics import Figure

    kept = report.history[report.best_epoch - 1]
    validation = {side: {name: Figure(**each) for name, each in kept[side].items()} for side in DIRECTIONS}
    columns = [Column("pairs", overflow="fold"), *(Column(name, no_wrap=True) for name in COLUMNS)]
    table = Table(*columns, title=f"epoch {report.best_epoch}, with 95 % intervals", show_lines=True)
    parts = (
        (f"{report.pairs['validation']:,} validation", validation),
        (f"{report.pairs['test']:,} test", report.test),
        (f"{report.pairs['test']:,} test, extra text", report.test_with_extra),
    )
    for label, figures in parts:
        for direction, name in DIRECTIONS.items() if figures else ():
            table.add_row(f"{label}\n{name}", *(_interval(figures[direction][column]) for column in COLUMNS))
    console.print(table)
    words = ", ".join(f"{count:,} of {name}" for name, count in report.vocabulary.items())
    console.print(f"{report.pairs['train']:,} training pairs; words: {words}; {report.seconds:.0f} s")


def _interval(figure: Figure) -> str:
    return f"{figure.value:.3g}\n{figure.low:.2g}–{figure.high:.2g}"


def _comparison_row(row: Mapping[str, Any]) -> list[str]:
    from training.embed_record import DIRECTIONS

    cells = [f"{row[name][0]:.3f} ± {row[name][1]:.3f}" for name in COLUMNS[:3]]
    cells.append("{:.1f} ± {:.1f}".format(*row["MR"]))
    return [DIRECTIONS[row["direction"]], row["preset"], *cells]


def _comparison_table(rows: Sequence[Mapping[str, Any]], bench: Workbench, seeds: int) -> Table:
    title = f"{len(bench.split.test):,} test pairs of {bench.gallery.name}: mean ± deviation over {seeds} seeds"
    # Where the terminal is narrow, names are folded rather than figures.
    columns = (Column(name, overflow="fold") for name in ("direction", "preset"))
    table = Table(*columns, *(Column(name, no_wrap=True) for name in COLUMNS), title=escape(title))
    for row in rows:
        table.add_row(*map(escape, _comparison_row(row)))
    return table


def _write_json(path: Path | None, data: Mapping[str, Any]) -> None:
    if path is not None:
        write_atomically(path, json.dumps(data, indent=1).encode())
