"""What a training of the joint embedding leaves to look at: TensorBoard curves and a plot of the figures by epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Sheet

from shared.files import write_atomically
from training.board import BoardRecord
from training.embed import Epoch

DIRECTIONS = {"text_to_image": "text → picture", "image_to_text": "picture → text"}
"""Directions as people read them."""


class EmbedRecord(BoardRecord):
    """Writes the curves of one training of the joint embedding."""

    def add(self, epoch: Epoch) -> None:
        """Note one epoch."""
        self._board.add_scalar("train/loss", epoch.loss, epoch.epoch)
        for direction, figures in epoch.figures.items():
            for name, figure in figures.items():
                self._board.add_scalar(f"validation/{direction}/{name}", figure.value, epoch.epoch)

    def plot(self, history: Sequence[Mapping[str, Any]], path: Path) -> None:
        """R@k and the median rank on the validation pairs by epoch, with 95 % intervals, as a PNG."""
        sheet = Sheet(figsize=(9, 6), layout="constrained")
        panels = sheet.subplots(2, 2, sharex=True)
        epochs = [row["epoch"] for row in history]
        for column, (direction, title) in enumerate(DIRECTIONS.items()):
            for name in history[0][direction]:
                axes = panels[int(name == "MR"), column]
                figures = [row[direction][name] for row in history]
                axes.plot(epochs, [figure["value"] for figure in figures], marker="o", markersize=3, label=name)
                axes.fill_between(epochs, [f["low"] for f in figures], [f["high"] for f in figures], alpha=0.15)
            panels[0, column].set(title=title, ylabel="share found", ylim=(0, 1))
            panels[0, column].legend()
            panels[1, column].set(xlabel="epoch", ylabel="median rank", ylim=(0, None))
        buffer = io.BytesIO()
        sheet.savefig(buffer, format="png", dpi=120)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
