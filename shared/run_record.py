"""What one optimisation leaves: its history, snapshots and figures to look at, and a checkpoint to resume it from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shared.errors import InvalidInput, NotFound
from shared.files import write_atomically
from shared.images import DecodeLimits, decode, encode, resize, to_picture
from shared.optimizer import Checkpoint, Iteration, OptimizerSettings
from shared.sheets import Panel, draw_sheet

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.json"
LOSSES = "losses.png"
SHEET = "sheet.jpg"
SNAPSHOTS = "snapshots"
"""Names of what a run leaves in its folder."""

_TERMS = ("content", "style", "tv", "total")

_FORMAT = "lienzo-run-1"
_BATCH = 25
"""Losses read from the device at once: each reading waits until the device has caught up."""
_DIGITS = 7
"""Of numbers in the history: all that fp32 holds."""

_CELL = 256
_GAP = 20
_MARGIN = 40
_FONT_SIZE = 20
_MOST_ON_SHEET = 60
_OWN_PICTURES = DecodeLimits(max_pixels=2**30, max_bytes=2**30, min_side=1, max_side=65_535)
_SNAPSHOT = re.compile(r"step-(\d{5})\.jpg")


class RunRecord:
    """Keeps the record of one optimisation in a folder; its methods are the callbacks of the optimiser.

    Args:
        folder: made where it does not exist. What an earlier run left there is written over, but for its checkpoint.
        facts: plain data about the run (settings, preset, names of the pictures), kept in the history. ``run`` among
            them is the run's :func:`fingerprint`.
        every: evaluations between two snapshots.
        content, styles: for the sheet.
        resume: the checkpoint that the run goes on from. The history and the snapshots of its first part are kept up
            to there; what lies behind will be made again.

    Raises:
        InvalidInput: ``every`` is below 1, or the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        content: Image.Image,
        styles: Sequence[Image.Image],
        every: int = 100,
        resume: Checkpoint | None = None,
    ):
        if every < 1:
            raise InvalidInput(f"every is {every}, expected at least 1 step between two snapshots.", field="every")
        self.folder = Path(folder)
        self._run, self._every = facts["run"], every
        # Written out now, so that data which is not plain is found before the work and not after it.
        self._facts = json.loads(json.dumps(dict(facts), allow_nan=False))
        self._references = _references(content, styles)
        try:
            (self.folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"the folder '{folder}' cannot be made: {error.strerror or error}.",
                hint="Name another folder.",
                field="output",
            ) from error
        self._rows = [] if resume is None else _history_until(resume.done, self.folder / HISTORY, self._run)
        self._earlier_seconds = self._rows[-1]["seconds"] if self._rows else 0.0
        self._pending: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._drop_snapshots(after=resume.done if resume is not None and self._rows else 0)

    def on_iteration(self, iteration: Iteration) -> None:
        """Note one evaluation; at every ``every``-th also save a snapshot and the history.

        Losses stay on the device at first and are read in batches, so that a GPU need not wait at each step. A snapshot
        shows the pixels as they are: with L-BFGS those that its line search tries, and never a moving average.
        """
        row = {
            "step": iteration.step,
            "height": iteration.height,
            "width": iteration.width,
            "seconds": _rounded(self._earlier_seconds + iteration.seconds),
        }
        # Not the iteration itself, which holds the pixels.
        terms = iteration.terms
        self._pending.append((row, [terms.content.detach(), terms.style.detach(), terms.tv.detach()]))
        if iteration.step % self._every == 0:
            data = encode(to_picture(iteration.picture()), "jpeg")
            write_atomically(self._snapshot(iteration.step), data)
            self.save_history()
        elif len(self._pending) >= _BATCH:
            self._read_losses()

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint; the one before it stays until this one is whole."""
        # The history goes first: then it is never behind the checkpoint, whenever the process dies.
        self.save_history()
        save_checkpoint(self.folder / CHECKPOINT, checkpoint, self._run)

    def save_history(self) -> Path:
        """Write all evaluations so far: ``{"facts": {…}, "steps": [{"step": 1, …}, …]}``.

        Each step has ``step`` (from 1), ``height`` and ``width`` (of the scale, in pixels), ``seconds`` since the
        beginning, and the weighted losses ``content``, ``style``, ``tv`` and ``total`` of the picture before the
        step (null where they are no numbers).
        """
        self._read_losses()
        path = self.folder / HISTORY
        steps = ",\n    ".join(json.dumps(row, allow_nan=False) for row in self._rows)
        write_atomically(
            path, f'{{\n  "facts": {json.dumps(self._facts)},\n  "steps": [\n    {steps}\n  ]\n}}\n'.encode()
        )
        return path

    def finish(self, picture: Image.Image) -> dict[str, Path]:
        """Write the history, the plot of the losses and the sheet of pictures.

        Args:
            picture: the result.

        Returns:
            The files by kind: ``history``, ``sheet``, and ``losses`` where matplotlib is installed.
        """
        files = {"history": self.save_history()}
        if plot_available():
            files["losses"] = self.folder / LOSSES
            write_atomically(files["losses"], _plot(self._rows))
        else:
            # Of an earlier run it would be a plot of other losses.
            (self.folder / LOSSES).unlink(missing_ok=True)
            log.info("no %s: matplotlib is not installed", LOSSES)
        files["sheet"] = self.folder / SHEET
        write_atomically(files["sheet"], encode(self._sheet(picture), "jpeg"))
        return files

    def _read_losses(self) -> None:
        if not self._pending:
            return
        values = torch.stack([term for _, terms in self._pending for term in terms]).tolist()
        for i, (row, _) in enumerate(self._pending):
            losses = values[3 * i : 3 * i + 3]
            named = zip(_TERMS, (*losses, sum(losses)), strict=True)
            self._rows.append(row | {name: _rounded(value) for name, value in named})
        self._pending.clear()

    def _snapshot(self, step: int) -> Path:
        return self.folder / SNAPSHOTS / f"step-{step:05}.jpg"

    def _drop_snapshots(self, after: int) -> None:
        for path in (self.folder / SNAPSHOTS).iterdir():
            match = _SNAPSHOT.fullmatch(path.name)
            if match and int(match[1]) > after:
                path.unlink()

    def _sheet(self, picture: Image.Image) -> Image.Image:
        """What the run was given, the way it took, and the result across two columns."""
        last = self._rows[-1]["step"] if self._rows else 0
        size = resize(picture, _CELL).size
        panels = []
        for step in _spread(range(self._every, last + 1, self._every), _MOST_ON_SHEET):
            try:
                # Small scales have the same shape but for rounding.
                snapshot = decode(self._snapshot(step), limits=_OWN_PICTURES).resize(size, Image.Resampling.LANCZOS)
            except InvalidInput as error:
                log.info("step %d is left out of the sheet: %s", step, error)
                continue
            panels.append(Panel(snapshot, f"step {step}"))
        rows = _table(self._references)
        steps = _table(panels)
        if steps:
            # The last row begins at the left, under the others.
            steps[-1] += [Panel(None, width=size[0])] * (len(steps[0]) - len(steps[-1]))
        result = [Panel(resize(picture, 2 * _CELL + _GAP), "result")]
        return draw_sheet([*rows, *steps, result], gap=_GAP, margin=_MARGIN, font_size=_FONT_SIZE)


# Checkpoints


def fingerprint(settings: OptimizerSettings, *pictures: bytes | None, **more: Any) -> str:
    """Names a run by all that its result depends on: SHA-256 as 64 hexadecimal digits.

    Args:
        pictures: encoded, in a fixed order; None stands for one that is not there, such as a mask.
        more: plain data: the network, the size, the weights of the styles.
    """
    text = json.dumps({"settings": settings.as_dict(), "more": more}, sort_keys=True)
    # 20 and 20.0 are one setting, however it was written.
    text = json.dumps(json.loads(text, parse_float=_shortest), sort_keys=True)
    parts = [text.encode(), *pictures]
    # Digests have one length, so that no two lists of parts look alike.
    digests = (bytes(32) if part is None else hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint, run: str) -> None:
    """Write a checkpoint as safetensors, whole or not at all; what is no tensor goes into its metadata as JSON.

    Args:
        run: the run's :func:`fingerprint`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = {
        "done": checkpoint.done,
        "scale": checkpoint.scale,
        "done_in_scale": checkpoint.done_in_scale,
        "numbers": dict(checkpoint.numbers),
        "tensors": sorted(tensors),
    }
    # Python's JSON knows infinity, and writes floats so that they are read back bit for bit.
    write_atomically(path, save(tensors, {"format": _FORMAT, "run": run, "state": json.dumps(state)}))


def load_checkpoint(path: Path, run: str) -> Checkpoint:
    """Read a checkpoint that :func:`save_checkpoint` wrote; tensors are on the CPU.

    Args:
        run: the fingerprint of the run that is to be resumed.

    Raises:
        NotFound: there is no such file.
        InvalidInput: the file is damaged or incomplete, or the checkpoint is of another run.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"there is no checkpoint '{path}'.", hint="Start the run without resuming it.", field="resume")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')}, expected {_FORMAT}")
            state = json.loads(metadata["state"])
            missing = sorted({"pixels", *state["tensors"]} - set(file.keys()))
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            # Copies, since the file is mapped into memory and the next checkpoint will take its place.
            tensors = (
                {name: file.get_tensor(name).clone() for name in state["tensors"]} if metadata["run"] == run else {}
            )
        checkpoint = Checkpoint(
            int(state["done"]), int(state["scale"]), int(state["done_in_scale"]), tensors, dict(state["numbers"])
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInput(
            f"the checkpoint '{path}' cannot be read: {' '.join(reason.split())}.",
            hint="Delete it and start the run anew.",
            field="resume",
        ) from error
    if metadata["run"] != run:
        raise InvalidInput(
            f"the checkpoint '{path}' is of another run: its pictures or settings differ.",
            hint="Resume with those that the run was started with, or use another folder.",
            field="resume",
        )
    return checkpoint


# History


def _history_until(done: int, path: Path, run: str) -> list[dict[str, Any]]:
    """The rows of an interrupted run up to the evaluation ``done``; none where the file is not of that run."""
    try:
        found = json.loads(path.read_bytes())
        if found["facts"]["run"] != run:
            raise ValueError("it is of another run")
        rows = [row for row in found["steps"] if row["step"] <= done]
        if any(row.keys() != {"step", "height", "width", "seconds", *_TERMS} for row in rows):
            raise ValueError("its steps are incomplete")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("the history begins anew, %s cannot be continued: %s", path, error)
        return []
    return rows


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _shortest(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


# Figures


def plot_available() -> bool:
    """Whether :meth:`RunRecord.finish` can plot the losses: matplotlib comes with the extra ``train``."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def _plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses over steps as PNG; scales that begin are marked."""
    # Imported here: servers import this module's room, and have no use for it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    for term in _TERMS:
        # A logarithm has no place for 0, which a term of no weight is.
        values = [row[term] if row[term] else math.nan for row in rows]
        if not all(map(math.isnan, values)):
            # The total lies below and is wider: mostly it is nearly the style's loss, which would be hidden.
            style = {"color": "0.8", "linewidth": 5, "zorder": 1.5} if term == "total" else {"linewidth": 1.3}
            axes.plot(steps, values, label=term, **style)
    starts = [
        after["step"] - 0.5
        for before, after in pairwise(rows)
        if (after["width"], after["height"]) != (before["width"], before["height"])
    ]
    for i, start in enumerate(starts):
        axes.axvline(start, color="0.6", linewidth=0.8, zorder=0, label="" if i else "next scale")
    axes.set(xlabel="step", ylabel="weighted loss", yscale="log")
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _references(content: Image.Image, styles: Sequence[Image.Image]) -> list[Panel]:
    shown = resize(content, _CELL)
    # As high as the content where they can be; beside a panorama, not as low.
    box = _CELL, max(shown.height, _CELL // 2)
    panels = [Panel(shown, "content")]
    for number, style in enumerate(styles, start=1):
        scale = min(limit / side for limit, side in zip(box, style.size, strict=True))
        caption = "style" if len(styles) == 1 else f"style {number}"
        panels.append(Panel(resize(style, max(1, round(scale * max(style.size)))), caption))
    return panels


def _table(items: Sequence[Panel]) -> list[list[Panel]]:
    """Rows of at most five, or as many as make a square, and as equally long as can be."""
    if not items:
        return []
    count = math.ceil(len(items) / max(5, math.ceil(math.sqrt(len(items)))))
    columns = math.ceil(len(items) / count)
    return [list(items[i : i + columns]) for i in range(0, len(items), columns)]


def _spread(items: Sequence[int], most: int) -> list[int]:
    """All, or ``most`` of them at even distances with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
