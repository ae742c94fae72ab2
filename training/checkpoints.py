"""Checkpoints of a training: written atomically, the previous one kept, never a pickle that could run code."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import torch

from shared.errors import InvalidInput
from shared.files import write_atomically

log = logging.getLogger(__name__)

LATEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors and plain data) as the latest checkpoint; the one before it stays beside it.

    At every instant one of the two files is whole, whenever the process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)  # what a killed process was writing
    buffer = io.BytesIO()
    torch.save(state, buffer)
    latest = folder / LATEST
    if latest.exists():
        latest.replace(folder / PREVIOUS)
    write_atomically(latest, buffer.getvalue())
    return latest


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The latest whole checkpoint in ``folder``, or None where there is none.

    Raises:
        InvalidInput: there are checkpoints, and none of them can be read.
    """
    found = [path for path in (folder / LATEST, folder / PREVIOUS) if path.exists()]
    for path in found:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load answers damaged bytes with almost any exception
            log.warning("checkpoint %s cannot be read (%s)", path, error)
    if found:
        raise InvalidInput(
            f"no checkpoint in '{folder}' can be read.", hint="Delete the folder to start over.", field="output"
        )
    return None
