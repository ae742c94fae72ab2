"""The report of an evaluation: one page with tables, plots and pictures, and the same numbers as JSON and Markdown."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from shared.files import write_atomically
from shared.images import encode, thumbnail
from shared.sheets import Panel, draw_sheet
from training.evaluation import LATENCY_SIZES, Evaluation, ModelResult

PAGE, RECORD, TABLE = "report.html", "evaluation.json", "table.md"

_ROWS, _COLUMNS, _CELL = 6, 5, 192
"""Contents and models on a sheet, and the side of a picture there in pixels: a sheet is as wide as a phone can zoom."""

_NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        meaning: a sentence or two for the page.
        cell: the text for a model.
        brief: whether it is shown on a terminal too.
    """

    heading: str
    meaning: str
    cell: Callable[[ModelResult], str]
    brief: bool = False


def columns(evaluation: Evaluation) -> list[Column]:
    """The table that the page, the terminal and the Markdown file show; what was not measured is a dash."""

    def loss(term: str) -> Callable[[ModelResult], str]:
        return lambda model: f"{model.losses[term]:.3g}" if model.losses else _NOTHING

    def against(mark: int) -> Callable[[ModelResult], str]:
        def cell(model: ModelResult) -> str:
            if not model.reference:
                return _NOTHING
            found = model.reference[mark]
            return f"{found.losses['total']:.3g} ({found.share:.0%})"

        return cell

    def steps(model: ModelResult) -> str:
        if not model.reference:
            return _NOTHING
        if model.equals_steps is None:
            return f"> {max(model.reference)}"
        return f"{'≤ ' if model.equals_steps == min(model.reference) else ''}{model.equals_steps}"

    def to_style(model: ModelResult) -> str:
        if model.colour_to_style is None:
            return _NOTHING
        return f"{model.colour_to_style:.1f} ({model.mean_colour_to_style:.1f})"

    compared = [
        Column(
            f"reference {mark}",
            f"Median total loss of the reference optimiser (Adam, from noise) after {mark} steps on the same pairs, "
            "and the share of the pairs in which the network's is no higher.",
            against(mark),
            brief=True,
        )
        for mark in evaluation.marks
    ]
    if evaluation.marks:
        compared.append(
            Column(
                "as good as",
                "Steps of the reference after which its median total loss is as low as the network's, to the next of "
                "those at which it was judged.",
                steps,
                brief=True,
            )
        )
    distance = [
        Column(
            "LPIPS",
            "Learned perceptual distance of painting and content (Zhang et al. 2018, VGG-16): 0 for the content.",
            lambda model: f"{model.lpips:.3f}",
        )
    ]
    if any(model.lpips is None for model in evaluation.models):
        distance = []
    return [
        Column("model", "Slug of the style.", lambda model: model.slug, brief=True),
        Column("width", "Filters of the network: full, half or quarter.", lambda model: model.width),
        Column(
            "total loss",
            "Content, style and total variation of the painting, weighted as in training; evaluated in fp32.",
            loss("total"),
            brief=True,
        ),
        Column("content", "The content loss's part of it.", loss("content")),
        Column("style", "The style loss's part of it.", loss("style")),
        Column("tv", "The total variation's part of it.", loss("tv")),
        *compared,
        *distance,
        Column(
            "border",
            "How much further off the tones are along the border than in the middle, in the worst 4 pixels of a frame "
            "of 16; both in relation to a painting whose border lies 64 pixels further out. 1: no frame; goal: at most "
            "1.2.",
            lambda model: f"{model.border:.2f}",
            brief=True,
        ),
        Column(
            "raster",
            "Spectral energy at periods of 2 and 4 pixels over that of the neighbouring frequencies, and the same of "
            "the content pictures. 1: no raster.",
            lambda model: f"{model.raster:.2f} ({model.raster_of_content:.2f})",
            brief=True,
        ),
        Column(
            "colour to style",
            "Distance of the painting's colours from the style picture's: 2-Wasserstein, CIE Lab, in ΔE; in brackets "
            "that of the mean colours alone.",
            to_style,
            brief=True,
        ),
        Column(
            "colour between sizes",
            "The same distance between the paintings of one content at this size and at one half as large again.",
            lambda model: f"{model.colour_between_sizes:.1f}",
        ),
        *(
            Column(
                f"ms at {size}",
                f"Median milliseconds of one pass on a square picture of {size} pixels, the models taking turns.",
                lambda model, size=size: f"{1000 * model.seconds[size]:.0f}",
                brief=size == LATENCY_SIZES[-1],
            )
            for size in LATENCY_SIZES
        ),
        Column("parameters", "Of the network.", lambda model: f"{model.parameters:,}"),
        Column("MB", "Size of the network's file.", lambda model: f"{model.bytes / 1e6:.2f}"),
    ]


def conditions(evaluation: Evaluation) -> str:
    """Under what the numbers were measured, in a sentence or two."""
    facts, sources = evaluation.machine, dict.fromkeys(content["source"] for content in evaluation.contents)
    busy = f", load {facts['load']}" if "load" in facts else ""
    text = (
        f"Medians over {len(evaluation.contents)} held-out pictures of {evaluation.size} × {evaluation.size} pixels "
        f"({', '.join(sources)}; seed {evaluation.seed}). Speed on {facts.get('gpu') or facts['processor']}, "
        f"{facts['provider']} with {facts['provider_threads']} threads{busy}."
    )
    if evaluation.marks:
        text += f" The reference's convolutions ran in {facts['reference_precision']}; it was judged in fp32."
    return text


def notes(evaluation: Evaluation) -> list[str]:
    """What is missing and why."""
    return [*evaluation.notes, *(note for model in evaluation.models for note in model.notes)]


def write_report(folder: Path, evaluation: Evaluation, *, created: str) -> Path:
    """Write ``report.html``, ``evaluation.json``, ``table.md`` and the contact sheets into ``folder``, which exists.

    Everything is drawn before anything is written.

    Args:
        created: the date, for the page.

    Returns:
        The page.
    """
    sheets = {f"sheet-{i}.jpg": sheet for i, sheet in enumerate(contact_sheets(evaluation), start=1)}
    files = {name: encode(sheet, "jpeg", quality=88) for name, sheet in sheets.items()}
    files[TABLE] = markdown(evaluation).encode()
    files[RECORD] = json.dumps({"format": 1, "created": created, **evaluation.as_dict()}, indent=1).encode()
    files[PAGE] = page(evaluation, {name: sheet.size for name, sheet in sheets.items()}, created=created).encode()
    for name, data in files.items():
        write_atomically(folder / name, data)
    for leftover in folder.glob("sheet-*.jpg"):
        if leftover.name not in files:
            leftover.unlink()
    return folder / PAGE


def markdown(evaluation: Evaluation) -> str:
    """The table for a README."""
    shown = columns(evaluation)
    lines = [[column.heading for column in shown], ["---"] * len(shown)]
    lines += [[column.cell(model) for column in shown] for model in evaluation.models]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, conditions(evaluation), *notes(evaluation)]) + "\n"


def contact_sheets(evaluation: Evaluation) -> list[Image.Image]:
    """Contents down, models across, style pictures at the head where they were found; several for many models."""
    sheets, models = [], evaluation.models
    for first in range(0, len(models), _COLUMNS):
        slugs = [model.slug for model in models[first : first + _COLUMNS]]
        head = [Panel(None, width=_CELL)]
        for slug in slugs:
            style = evaluation.heads.get(slug)
            head.append(Panel(thumbnail(style, _CELL) if style else None, slug, _CELL))
        rows = [head]
        for i, content in enumerate(evaluation.pictures[:_ROWS]):
            pictures = [content, *(evaluation.paintings[slug][i] for slug in slugs)]
            rows.append([Panel(thumbnail(picture, _CELL), width=_CELL) for picture in pictures])
        sheets.append(draw_sheet(rows, captions="above", margin=6))
    return sheets


# --- plots --------------------------------------------------------------------------------------------------------

_TEXT_COLOUR = "#0a0b0c"
"""Stands for the page's own text colour."""
_INK = ("#2f7fd1", "#d9822b", "#2e9e6b", "#c2549d", "#8a6fd1", "#b0952a")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lienzo",
    "font.size": 10,
    "text.color": _TEXT_COLOUR,
    "axes.edgecolor": _TEXT_COLOUR,
    "axes.labelcolor": _TEXT_COLOUR,
    "xtick.color": _TEXT_COLOUR,
    "ytick.color": _TEXT_COLOUR,
}


def plot_losses(models: Sequence[ModelResult]) -> str:
    """Total loss of each model, and of the reference on the same pairs at the steps at which it was judged."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5, 1.3 + 0.32 * len(models)), layout="constrained")
        axes = figure.subplots()
        marks = sorted({mark for model in models for mark in model.reference or {}})
        for number, mark in enumerate(marks):
            rows = [i for i, model in enumerate(models) if mark in (model.reference or {})]
            totals = [models[i].reference[mark].losses["total"] for i in rows]
            faint = 0.35 + 0.65 * (number + 1) / len(marks)
            axes.plot(totals, rows, "|", color=_INK[1], alpha=faint, markersize=12, markeredgewidth=2)
            axes.annotate(str(mark), (totals[0], rows[0]), (0, 8), textcoords="offset points", ha="center", fontsize=7)
        axes.plot([model.losses["total"] for model in models], range(len(models)), "o", color=_INK[0], label="network")
        if marks:
            axes.plot([], [], "|", color=_INK[1], markersize=12, markeredgewidth=2, label="reference after … steps")
        axes.set(xlabel="median total loss", yticks=range(len(models)), ylim=(len(models) - 0.5, -0.7))
        axes.set_yticklabels([model.slug for model in models], parse_math=False)
        axes.set_xlim(0, 1.05 * axes.dataLim.xmax)
        axes.grid(axis="x", color="#8888", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure, "losses")


def plot_widths(models: Sequence[ModelResult]) -> str:
    """Loss and latency over the parameters; networks of one style are joined."""
    size = LATENCY_SIZES[-1]
    panels: list[tuple[str, bool, Callable[[ModelResult], float]]] = [
        (f"ms at {size} px", False, lambda model: 1000 * model.seconds[size])
    ]
    if any(model.losses for model in models):
        panels.insert(0, ("median total loss", True, lambda model: model.losses["total"]))
    families: dict[tuple[str, ...], list[ModelResult]] = defaultdict(list)
    for model in models:
        families[tuple(f"{style['artist']}: {style['title']}" for style in model.styles)].append(model)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5, 2.6 * len(panels) + 0.15 * len(families)), layout="constrained")
        for axes, (label, needs_loss, value) in zip(
            figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
        ):
            for number, family in enumerate(families.values()):
                measured = sorted(
                    (model for model in family if model.losses or not needs_loss), key=lambda model: model.parameters
                )
                places = [(model.parameters, value(model)) for model in measured]
                if places:
                    name = min((model.slug for model in family), key=len)
                    colour = _INK[number % len(_INK)]
                    axes.plot(*zip(*places, strict=True), "o-", color=colour, alpha=0.8, label=name)
            axes.set(xscale="log", ylabel=label, ylim=(0, 1.1 * axes.dataLim.ymax))
            axes.margins(x=0.3)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("parameters")
        # The last panel is the one that every model is in.
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return _svg(figure, "widths")


def _svg(figure: Figure, name: str) -> str:
    """The figure to stand in a page, its names set apart from other figures', its text in the page's colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return text.replace(_TEXT_COLOUR, "currentColor")


# --- the page -----------------------------------------------------------------------------------------------------


def page(evaluation: Evaluation, sheets: Mapping[str, tuple[int, int]], *, created: str) -> str:
    """The page; all texts of cards and galleries are escaped, and nothing is loaded from elsewhere.

    Args:
        sheets: width and height of each contact sheet by its file's name.
    """
    judged = [model for model in evaluation.models if model.losses]
    values: dict[str, Any] = {
        "evaluation": evaluation,
        "columns": columns(evaluation),
        "conditions": conditions(evaluation),
        "notes": notes(evaluation),
        "sheets": sheets,
        "shown": min(len(evaluation.contents), _ROWS),
        "losses": plot_losses(judged) if judged else "",
        "widths": plot_widths(evaluation.models),
        "created": created,
        "record": RECORD,
        "table": TABLE,
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(values)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Lienzo: evaluation of {{ evaluation.models | length }} fast models</title>
<style>
:root { --ground: #fdfcfa; --ink: #26262b; --faint: #6b6b75; --line: #dcd9d3; }
@media (prefers-color-scheme: dark) { :root { --ground: #17181c; --ink: #e6e4df; --faint: #9d9ca6; --line: #3a3b42; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.faint, dd, caption { color: var(--faint); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; }
tbody th, thead th:first-child { position: sticky; left: 0; text-align: left; background: var(--ground); }
tbody tr:last-child > * { border-bottom: 0; }
figure { margin: 1rem 0; } figure svg { width: 100%; max-width: 40rem; height: auto; }
img { max-width: 100%; height: auto; background: white; border-radius: .3rem; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; }
a { color: inherit; }
</style>
</head>
<body>
<h1>Evaluation of {{ evaluation.models | length }} fast model{{ "s" if evaluation.models | length != 1 }}</h1>
<p class="faint">{{ created }}. {{ conditions }}
The same as data: <a href="{{ record }}">{{ record }}</a>, <a href="{{ table }}">{{ table }}</a>.</p>
{% for note in notes %}
<p><strong>Note:</strong> {{ note }}</p>
{% endfor %}
<h2>Table</h2>
<div class="wide" role="region" aria-label="Table of all measurements" tabindex="0">
<table>
<thead><tr>{% for column in columns %}<th scope="col">{{ column.heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for model in evaluation.models %}
<tr>{% for column in columns %}
{% if loop.first %}<th scope="row">{{ column.cell(model) }}</th>{% else %}<td>{{ column.cell(model) }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
<details>
<summary>What the columns say</summary>
<dl>
{% for column in columns %}
<dt>{{ column.heading }}</dt><dd>{{ column.meaning }}</dd>
{% endfor %}
</dl>
</details>
{% if losses %}
<h2>Loss against the reference</h2>
<figure role="img" aria-label="Total loss of each network and of the reference optimiser">{{ losses | safe }}</figure>
{% endif %}
<h2>Size, loss and speed</h2>
<figure role="img" aria-label="Loss and latency over the parameters">{{ widths | safe }}</figure>
<h2>Paintings</h2>
{% for name, size in sheets.items() %}
<figure><a href="{{ name }}"><img src="{{ name }}" width="{{ size[0] }}" height="{{ size[1] }}" loading="lazy"
  alt="Contact sheet {{ loop.index }}: content pictures down, models across"></a></figure>
{% endfor %}
<h2>Models</h2>
<dl>
{% for model in evaluation.models %}
<dt>{{ model.name }} ({{ model.slug }})</dt>
{% for style in model.styles %}
<dd>{{ style.title }}{% if style.artist %}, {{ style.artist }}{% endif %}\
{% if not style.found %} (not found){% endif %}</dd>
{% endfor %}
{% endfor %}
</dl>
<h2>Content pictures</h2>
<p class="faint">The first {{ shown }} are on the sheets, in this order.</p>
<ol>
{% for content in evaluation.contents %}
<li>{{ content.title }} ({{ content.source }})</li>
{% endfor %}
</ol>
</body>
</html>
"""
