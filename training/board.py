"""TensorBoard curves in a run's folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter


class BoardRecord:
    """Writes the curves of one training into its run folder; use as a context manager.

    Nothing is written before the first number, so a training that is refused leaves nothing.
    """

    def __init__(self, run: Path):
        self.run = run

    @cached_property
    def _board(self) -> SummaryWriter:
        self.run.mkdir(parents=True, exist_ok=True)
        return SummaryWriter(self.run / "tensorboard")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "_board" in self.__dict__:
            self._board.close()
