"""What a training leaves to look at: TensorBoard curves, a plot of the losses, a sheet of validation pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from shared.files import write_atomically
from shared.images import encode, to_picture
from training.board import BoardRecord
from training.style_trainer import TrainingStep

_TERMS = ("content", "style", "tv", "total", "grid")


class TrainingRecord(BoardRecord):
    """Writes the record of one training of a network."""

    def add(self, step: TrainingStep) -> None:
        """Note one step; the sheet is written anew at each validation."""
        for term in _TERMS:
            self._board.add_scalar(f"train/{term}", step.losses[term], step.step)
        self._board.add_scalar("train/learning_rate", step.learning_rate, step.step)
        if step.validation:
            for term in _TERMS:
                self._board.add_scalar(f"validation/{term}", step.validation[term], step.step)
        if step.samples is not None:
            sheet = contact_sheet(step.samples)
            write_atomically(self.run / "samples.jpg", encode(sheet, "jpeg"))
            self._board.add_image("validation", np.asarray(sheet), step.step, dataformats="HWC")

    def plot(self, history: list[dict[str, float]]) -> Path:
        """Validation losses over steps, as ``losses.png``."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for term in ("content", "style", "total"):
            axes.plot([row["step"] for row in history], [row[term] for row in history], label=term)
        axes.set(xlabel="step", ylabel="loss on held-out pictures", yscale="log")
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        path = self.run / "losses.png"
        self.run.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        return path


def contact_sheet(samples: torch.Tensor) -> Image.Image:
    """``[2 V, 3, H, W]`` as two rows: pictures above, their paintings below."""
    rows = samples.reshape(2, -1, *samples.shape[1:])
    return to_picture(torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)[None])
