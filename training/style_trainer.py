"""Trains a transform network for one style, with the reference optimiser's own losses (Johnson et al. 2016)."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.devices import PRECISIONS, pick_device, pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput, LienzoError
from shared.losses import grid_energy
from shared.perceptual_loss import LossSettings, PerceptualLoss, StyleTarget
from shared.transform_network import MIN_SIDE, WIDTHS, TransformNetwork
from training.checkpoints import load_checkpoint, save_checkpoint
from training.content_pictures import ContentPictures

log = logging.getLogger(__name__)


class TrainingFailed(LienzoError):
    """The training cannot go on; what was reached before is in the last checkpoint."""

    code = "training_failed"


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained.

    Attributes:
        width: of the transform network.
        steps: optimiser steps; with a time budget, the most that are made.
        batch, crop: pictures a step, and their side in pixels.
        learning_rate: of Adam; held, then lowered to zero along a cosine over the last half.
        style_size: longer side of the style pictures in pixels; sets the size of the strokes.
        seed: of the initial weights and the crops.
        grid_weight: of :func:`shared.losses.grid_energy`, which keeps the network from imitating fine strokes by a
            fixed raster; without it a well-trained network's grid is five to nine times that of a painting.
        precision: of the convolutions, see :func:`shared.devices.pick_dtype`.
        loss: layers and weights.
    """

    width: str = "half"
    steps: int = 2000
    batch: int = 4
    crop: int = 256
    learning_rate: float = 1e-3
    style_size: int = 384
    seed: int = 0
    grid_weight: float = 2000.0
    precision: str = "auto"
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        for name, allowed in (("width", WIDTHS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}.", field=name
                )
        for name, least in (("steps", 1), ("batch", 1), ("crop", MIN_SIDE), ("style_size", MIN_SIDE)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}, expected at least {least}.", field=name)
        if not 0 <= self.grid_weight < math.inf:
            raise InvalidInput(f"grid_weight is {self.grid_weight}, expected a number ≥ 0.", field="grid_weight")
        if not 0 < self.learning_rate < 1:
            raise InvalidInput(f"learning_rate is {self.learning_rate}, expected 0 to 1.", field="learning_rate")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for cards and checkpoints."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {"loss": self.loss.as_dict()}


@dataclass(frozen=True)
class TrainingStep:
    """One step, as the progress bar, the curves and the record see it."""

    step: int
    steps: int
    losses: Mapping[str, float]
    """The terms of :class:`shared.perceptual_loss.LossTerms`, and ``grid``, unweighted."""
    learning_rate: float
    progress: float
    """Share of the training that is done, 0 to 1, whether steps or time bound it."""
    validation: Mapping[str, float] | None = None
    samples: Tensor | None = None
    """``[2 V, 3, H, W]``: validation pictures, then the same painted; only where there was a validation."""


@dataclass(frozen=True)
class TrainingResult:
    network: TransformNetwork
    steps: int
    seconds: float
    history: list[dict[str, float]]
    """Validation losses by step; ``grid`` unweighted."""


def train_style(
    styles: list[Tensor],
    content: ContentPictures,
    validation: ContentPictures,
    weights: Mapping[str, Tensor],
    settings: TrainingSettings,
    run: Path,
    *,
    init: Mapping[str, Tensor] | None = None,
    time_budget: float | None = None,
    device: str = "auto",
    checkpoint_every: int = 100,
    validate_every: int = 100,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> TrainingResult:
    """Train until ``settings.steps`` or the time budget are used up, resuming from ``run`` where it holds a checkpoint.

    Args:
        styles: style pictures, each ``[1, 3, H, W]``; their Gram matrices are averaged.
        content, validation: crops to train and to validate on.
        weights: VGG-19, see :func:`shared.weights.load`.
        run: folder of the checkpoints.
        init: state dict of a network of the same width to start from.
        time_budget: seconds of training, those before an interruption included.
        on_step: called after every step.

    Raises:
        InvalidInput: the checkpoint belongs to other settings or style pictures, or ``init`` to another architecture.
        TrainingFailed: the loss is no longer a number.
    """
    target_device = pick_device(device)
    dtype = pick_dtype(settings.precision, target_device)
    encoder = Encoder(weights, dtype=dtype, device=target_device)
    loss = PerceptualLoss(encoder, settings.loss)
    style = loss.style_target([picture.to(target_device) for picture in styles])

    torch.manual_seed(settings.seed)
    network = TransformNetwork(settings.width).to(target_device, memory_format=torch.channels_last)
    if init is not None:
        _load_matching(network, init, "the network given by --init")
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, fused=True)

    step, spent, history = 0, 0.0, []
    learned = [hashlib.sha256(picture.numpy(force=True).tobytes()).hexdigest() for picture in styles]
    checkpoint = load_checkpoint(run)
    if checkpoint is not None:
        if checkpoint["settings"] != settings.as_dict():
            raise InvalidInput(
                f"the checkpoint in '{run}' was made with other settings ({_difference(checkpoint, settings)}).",
                hint="Use the same settings to resume, another --name, or delete the folder to start over.",
                field="output",
            )
        if checkpoint.get("styles", learned) != learned:
            raise InvalidInput(
                f"the checkpoint in '{run}' was made with other style pictures.",
                hint="Use the same pictures to resume, another --name, or delete the folder to start over.",
                field="style",
            )
        _load_matching(network, checkpoint["network"], "the checkpoint")
        optimizer.load_state_dict(checkpoint["optimizer"])
        step, spent, history = checkpoint["step"], checkpoint["seconds"], checkpoint["history"]
        log.info("resuming at step %d", step)

    def save() -> None:
        state = {
            "settings": settings.as_dict(),
            "styles": learned,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": spent + time.monotonic() - started,
            "history": history,
        }
        save_checkpoint(run, state)

    held_out = validation.centre_crops()
    started = time.monotonic()
    batches = content.batches(step)
    progress = 0.0
    try:
        while step < settings.steps:
            elapsed = spent + time.monotonic() - started
            progress = max(step / settings.steps, elapsed / time_budget if time_budget else 0.0)
            if progress >= 1:
                break
            rate = learning_rate_at(progress, step) * settings.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate
            pictures = next(batches).to(target_device, memory_format=torch.channels_last)
            content_target = loss.content_target(pictures)
            with torch.autocast(target_device.type, dtype, enabled=dtype != torch.float32):
                painted = network(pictures)
            painted = painted.float()
            terms = loss(painted, content_target, style)
            grid = grid_energy(painted)
            optimizer.zero_grad(set_to_none=True)
            (terms.total + settings.grid_weight * grid).backward()
            optimizer.step()
            step += 1

            losses = terms.values() | {"grid": grid.item()}
            if not math.isfinite(losses["total"]):
                raise TrainingFailed(
                    f"the loss is not a number at step {step} ({losses}).",
                    hint="Lower --learning-rate or the style weight, or use --precision float32.",
                )
            measured, samples = None, None
            if step % validate_every == 0:
                measured, samples = _validate(network, loss, style, held_out.to(target_device), dtype)
                history.append({"step": step, **measured})
            if step % checkpoint_every == 0:
                save()
            if on_step is not None:
                on_step(TrainingStep(step, settings.steps, losses, rate, progress, measured, samples))
        measured, samples = _validate(network, loss, style, held_out.to(target_device), dtype)
        if not history or history[-1]["step"] != step:
            history.append({"step": step, **measured})
        if on_step is not None:
            on_step(TrainingStep(step, settings.steps, measured, 0.0, 1.0, measured, samples))
    except KeyboardInterrupt:
        # Nothing lost: the next run takes up at this step.
        save()
        raise
    finally:
        batches.close()
    save()
    return TrainingResult(network.eval(), step, spent + time.monotonic() - started, history)


def learning_rate_at(progress: float, step: int, warm_up: int = 20) -> float:
    """Factor on the learning rate: up over the first steps, held, then down along a cosine over the last half."""
    decay = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * progress - 1)))
    return min(1.0, (step + 1) / warm_up) * decay


@torch.no_grad()
def _validate(
    network: TransformNetwork, loss: PerceptualLoss, style: StyleTarget, pictures: Tensor, dtype: torch.dtype
) -> tuple[dict[str, float], Tensor]:
    rows, painted = [], []
    for picture in pictures.split(1):
        with torch.autocast(pictures.device.type, dtype, enabled=dtype != torch.float32):
            output = network(picture).float()
        terms = loss(output, loss.content_target(picture), style).values()
        rows.append(terms | {"grid": grid_energy(output).item()})
        painted.append(output)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means, torch.cat([pictures, *painted]).cpu()


def _load_matching(network: TransformNetwork, state: Mapping[str, Tensor], origin: str) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != theirs:
        raise InvalidInput(
            f"{origin} has another architecture than a '{network.width}' transform network.",
            hint="Use the --width that it was trained with.",
            field="width",
        )
    network.load_state_dict(state)


def _difference(checkpoint: Mapping[str, Any], settings: TrainingSettings) -> str:
    old, new = checkpoint["settings"], settings.as_dict()
    return ", ".join(f"{key}: {old.get(key)} then, {new[key]} now" for key in new if old.get(key) != new[key])
