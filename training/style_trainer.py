"""Trains a transform network for one style, with the reference optimiser's own losses (Johnson et al. 2016)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shared.devices import PRECISIONS, pick_device, pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput, LienzoError
from shared.losses import grid_energy
from shared.perceptual_loss import LossSettings, PerceptualLoss, StyleTarget
from shared.transform_network import MIN_SIDE, WIDTHS, SharedNetwork, TransformNetwork
from training.checkpoints import load_checkpoint, save_checkpoint
from training.content_pictures import ContentPictures
from training.muon import Muon
from training.workers import Workers

log = logging.getLogger(__name__)


MUON_RATE = 3.0
"""Learning rate of the convolutions under Muon, in multiples of Adam's for the rest."""

OPTIMIZERS = ("muon", "adam")
TARGETS = ("mean", "random", "each")


class TrainingFailed(LienzoError):
    """The training cannot go on; what was reached before is in the last checkpoint."""

    code = "training_failed"


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained.

    Attributes:
        width: of the transform network.
        steps: optimiser steps; with a time budget, the most that are made.
        batch, crop: pictures looked at together (by each worker), and their side in pixels.
        accumulate: batches whose gradients are averaged for one step.
        optimizer: ``muon`` (:class:`training.muon.Muon` for the convolutions, Adam for the rest) or ``adam``.
        learning_rate: held, then lowered to zero along a cosine over the last half.
        ema: share that an exponential mean of the weights keeps at each step; the mean is what is validated and
            exported. 0: the weights themselves.
        target: what several style pictures ask for: the ``mean`` of their Gram matrices, or those of one of them, drawn
            at ``random`` at each step; or ``each`` of them, painted by one body with scales for every style
            (:class:`shared.transform_network.SharedNetwork`).
        only_scales: train the scales and shifts of the normalisations alone, and leave the body as it is.
        patience: validations without a new lowest total loss (by a thousandth) after which the training ends; 0: never.
        style_size: longer side of the style pictures in pixels; sets the size of the strokes.
        seed: of the initial weights and the crops.
        grid_weight: of :func:`shared.losses.grid_energy`, which keeps the network from imitating fine strokes by a
            fixed raster; without it a well-trained network's grid is five to nine times that of a painting.
        precision: of the convolutions, see :func:`shared.devices.pick_dtype`.
        loss: layers and weights.
    """

    width: str = "half"
    steps: int = 2000
    batch: int = 2
    crop: int = 192
    accumulate: int = 1
    optimizer: str = "muon"
    learning_rate: float = 1e-3
    ema: float = 0.98
    target: str = "mean"
    only_scales: bool = False
    patience: int = 0
    style_size: int = 384
    seed: int = 0
    grid_weight: float = 2000.0
    precision: str = "auto"
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("width", WIDTHS),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
            ("target", TARGETS),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}.", field=name
                )
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("accumulate", 1),
            ("patience", 0),
            ("seed", 0),
            ("crop", MIN_SIDE),
            ("style_size", MIN_SIDE),
        ):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}, expected at least {least}.", field=name)
        if not 0 <= self.grid_weight < math.inf:
            raise InvalidInput(f"grid_weight is {self.grid_weight}, expected a number ≥ 0.", field="grid_weight")
        if not 0 <= self.ema < 1:
            raise InvalidInput(f"ema is {self.ema}, expected 0 to below 1.", field="ema")
        if self.target == "each" and (self.loss.relative or self.loss.style_form != "gram"):
            raise InvalidInput("one body for each style is trained with plain Gram losses only.", field="target")
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
    network: TransformNetwork | SharedNetwork
    steps: int
    seconds: float
    history: list[dict[str, float]]
    """Validation losses by step; ``grid`` unweighted."""
    stopped_early: bool = False
    """Whether the validation loss ended the training before steps or time did."""


def train_style(
    styles: list[Tensor],
    content: ContentPictures,
    validation: ContentPictures,
    weights: Mapping[str, Tensor],
    settings: TrainingSettings,
    run: Path,
    *,
    init: Mapping[str, Tensor] | None = None,
    names: Sequence[str] = (),
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
        init: state dict of a transform network of the same width to start from.
        names: of the styles, where a shared body is trained; kept in its checkpoints.
        time_budget: seconds of training, those before an interruption included.
        on_step: called after every step.

    Raises:
        InvalidInput: the checkpoint belongs to other settings or style pictures, or ``init`` to another architecture.
        TrainingFailed: the loss is no longer a number.
    """
    workers = Workers.current()
    target_device = workers.device(pick_device(device))
    dtype = pick_dtype(settings.precision, target_device)
    encoder = Encoder(weights, dtype=dtype, device=target_device)
    loss = PerceptualLoss(encoder, settings.loss)
    if settings.target == "mean":
        targets = [loss.style_target([picture.to(target_device) for picture in styles])]
    else:
        targets = [loss.style_target(picture.to(target_device)) for picture in styles]

    torch.manual_seed(settings.seed)
    network: TransformNetwork | SharedNetwork = TransformNetwork(settings.width)
    if init is not None:
        _load_matching(network, init, settings.width, "the network given by --init")
    if settings.target == "each":
        network = SharedNetwork(network, len(styles))
    network = network.to(target_device, memory_format=torch.channels_last)
    average = AveragedModel(network, avg_fn=_EMA(settings.ema))
    optimizers = _optimizers(network, settings)

    step, spent, history = 0, 0.0, []
    learned = [hashlib.sha256(picture.numpy(force=True).tobytes()).hexdigest() for picture in styles]
    checkpoint = load_checkpoint(run)
    if checkpoint is not None:
        _check_same(checkpoint, settings, learned, run)
        _load_matching(network, checkpoint["network"], settings.width, "the checkpoint")
        _load_matching(average, checkpoint["average"], settings.width, "the checkpoint")
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, spent, history = checkpoint["step"], checkpoint["seconds"], checkpoint["history"]
        log.info("resuming at step %d", step)

    def save() -> None:
        if not workers.first:
            return
        state = {
            "settings": settings.as_dict(),
            "styles": learned,
            "names": list(names),
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "seconds": spent + time.monotonic() - started,
            "history": history,
        }
        save_checkpoint(run, state)

    def validate() -> tuple[dict[str, float], Tensor]:
        measured, samples = _validate(average.module, loss, targets, held_out.to(target_device), dtype)
        # What ends the training early must be the same for all.
        return {name: workers.mean(value, target_device) for name, value in measured.items()}, samples

    def losses_of(pictures: Tensor, drawn: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        content_target = loss.content_target(pictures)
        painted = _paint(network, pictures, drawn, dtype)
        terms, grid = loss(painted, content_target, _target_of(targets, drawn)), grid_energy(painted)
        return terms.total + settings.grid_weight * grid, terms.values() | {"grid": grid.item()}

    held_out = validation.centre_crops()
    started = time.monotonic()
    batches = content.batches(step * settings.accumulate, stride=workers.count, offset=workers.rank)
    stopped_early = False
    with contextlib.closing(batches):
        try:
            while step < settings.steps:
                elapsed = spent + time.monotonic() - started
                # One clock for all, or they would part at the end.
                progress = workers.mean(
                    max(step / settings.steps, elapsed / time_budget if time_budget else 0.0), target_device
                )
                if progress >= 1 or (stopped_early := _has_settled(history, settings.patience)):
                    break
                rate = learning_rate_at(progress, step) * settings.learning_rate
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["factor"]
                    optimizer.zero_grad(set_to_none=True)
                parts = []
                for part in range(settings.accumulate):
                    pictures = next(batches).to(target_device, memory_format=torch.channels_last)
                    drawn = _draw(settings, len(targets), step, part * workers.count + workers.rank)
                    total, values = losses_of(pictures, drawn)
                    (total / settings.accumulate).backward()
                    parts.append(values)
                workers.average_gradients(network.parameters())
                losses = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
                if not math.isfinite(workers.mean(losses["total"], target_device)):
                    raise TrainingFailed(
                        f"the loss is not a number at step {step + 1} ({losses}).",
                        hint="Lower --learning-rate or the style weight, or use --precision float32.",
                    )
                measured, samples = None, None
                # Or an interruption would save a step that is half made.
                with _interrupts_held():
                    for optimizer in optimizers:
                        optimizer.step()
                    average.update_parameters(network)
                    step += 1
                    if step % validate_every == 0:
                        measured, samples = validate()
                        history.append({"step": step, **measured})
                if step % checkpoint_every == 0:
                    save()
                if on_step is not None and workers.first:
                    on_step(TrainingStep(step, settings.steps, losses, rate, progress, measured, samples))
            measured, samples = validate()
            if not history or history[-1]["step"] != step:
                history.append({"step": step, **measured})
            if on_step is not None and workers.first:
                on_step(TrainingStep(step, settings.steps, measured, 0.0, 1.0, measured, samples))
        except KeyboardInterrupt:
            # Nothing lost: the next run takes up at this step.
            save()
            raise
    save()
    return TrainingResult(average.module.eval(), step, spent + time.monotonic() - started, history, stopped_early)


def trained_weights(checkpoint: Mapping[str, Any], name: str = "") -> dict[str, Tensor]:
    """State dict of the transform network that a checkpoint stands for: the mean over the steps before it.

    Args:
        name: of the style, where the checkpoint is a shared body's; without it, or for a style that the body does not
            know, the scales are the mean of all its styles.

    Raises:
        InvalidInput: the checkpoint is of an older version.
    """
    if "average" not in checkpoint:
        raise InvalidInput("the checkpoint was made by an older version of Lienzo.", hint="Train again.", field="init")
    prefix = "module."
    state = {key.removeprefix(prefix): t for key, t in checkpoint["average"].items() if key.startswith(prefix)}
    if "styles" not in state:
        return state
    return network_of_body(state, checkpoint["settings"]["width"], checkpoint["names"], name).state_dict()


def network_of_body(state: Mapping[str, Tensor], width: str, names: Sequence[str], name: str) -> TransformNetwork:
    """The network that a shared body is for the style ``name``; for another style, that of the mean of its styles.

    Args:
        state: state dict of a :class:`shared.transform_network.SharedNetwork`.
        names: of its styles, in order.
    """
    body = SharedNetwork(TransformNetwork(width), len(names))
    body.load_state_dict(state)
    mixture = torch.full((len(names),), 1 / len(names))
    if name in names:
        mixture = torch.eye(len(names))[names.index(name)]
    return body.network_of(mixture)


def learning_rate_at(progress: float, step: int, warm_up: int = 20) -> float:
    """Factor on the learning rate: up over the first steps, held, then down along a cosine over the last half."""
    decay = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * progress - 1)))
    return min(1.0, (step + 1) / warm_up) * decay


def _optimizers(network: TransformNetwork | SharedNetwork, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Each group's ``factor`` is what the schedule's rate is multiplied by."""
    if settings.only_scales:
        shared = isinstance(network, SharedNetwork)
        scales = [network.styles] if shared else [p for norm in network.norms() for p in norm.parameters()]
        network.requires_grad_(False)
        for parameter in scales:
            parameter.requires_grad_(True)
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    # Convolutions alone. The last layer's outputs are colours: Jordan advises Adam there.
    last = id(_body(network).leave.weight)
    matrices = [p for p in named.values() if p.dim() == 4 and id(p) != last]
    if settings.optimizer == "adam":
        matrices = []
    chosen = {id(parameter) for parameter in matrices}
    vectors = [parameter for parameter in named.values() if id(parameter) not in chosen]
    adam = torch.optim.Adam([{"params": vectors, "factor": 1.0}], settings.learning_rate, fused=True)
    if not matrices:
        return [adam]
    return [adam, Muon([{"params": matrices, "factor": MUON_RATE}], settings.learning_rate)]


def _body(network: TransformNetwork | SharedNetwork) -> TransformNetwork:
    return network.network if isinstance(network, SharedNetwork) else network


def _draw(settings: TrainingSettings, styles: int, step: int, part: int) -> list[int]:
    """Which target each picture of a batch is held against; a function of the seed and the step alone."""
    rng = np.random.default_rng((settings.seed, step))
    if settings.target == "each":
        # All styles equally often: the batch is the next stretch of one permutation after the other.
        first = part * settings.batch
        order = np.concatenate([rng.permutation(styles) for _ in range((first + settings.batch - 1) // styles + 1)])
        return order[first : first + settings.batch].tolist()
    return [int(rng.integers(styles))] * settings.batch


def _paint(
    network: TransformNetwork | SharedNetwork, pictures: Tensor, drawn: Sequence[int], dtype: torch.dtype
) -> Tensor:
    arguments = [pictures]
    if isinstance(network, SharedNetwork):
        rows = torch.tensor(drawn, device=pictures.device)
        arguments.append(F.one_hot(rows, len(network.styles)).to(network.styles.dtype))
    with torch.autocast(pictures.device.type, dtype, enabled=dtype != torch.float32):
        painted = network(*arguments)
    return painted.float()


def _target_of(targets: Sequence[StyleTarget], drawn: Sequence[int]) -> StyleTarget:
    """The drawn target, or where pictures have different ones, a target with a row for each picture."""
    first = targets[drawn[0]]
    if len(set(drawn)) == 1:
        return first
    grams = {layer: torch.cat([targets[i].grams[layer] for i in drawn]) for layer in first.grams}
    return dataclasses.replace(first, grams=grams)


class _EMA:
    """Exponential mean of weights whose memory grows with the steps, so that the first weights are soon forgotten."""

    def __init__(self, decay: float):
        self.decay = decay

    def __call__(self, mean: Tensor, weights: Tensor, steps: Tensor) -> Tensor:
        decay = min(self.decay, (1 + float(steps)) / (10 + float(steps))) if self.decay else 0.0
        return torch.lerp(weights, mean, decay)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block. Other threads than the main one are never interrupted by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def _has_settled(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether the last ``patience`` validations brought no total loss lower than before by a thousandth."""
    totals = [row["total"] for row in history]
    if not patience or len(totals) <= patience:
        return False
    return min(totals[-patience:]) > 0.999 * min(totals[:-patience])


def _check_same(checkpoint: Mapping[str, Any], settings: TrainingSettings, learned: list[str], run: Path) -> None:
    if checkpoint["settings"] != settings.as_dict():
        raise InvalidInput(
            f"the checkpoint in '{run}' was made with other settings ({_difference(checkpoint, settings)}).",
            hint="Use the same settings to resume, another --name, or delete the folder to start over.",
            field="output",
        )
    if checkpoint["styles"] != learned:
        raise InvalidInput(
            f"the checkpoint in '{run}' was made with other style pictures.",
            hint="Use the same pictures to resume, another --name, or delete the folder to start over.",
            field="style",
        )


@torch.no_grad()
def _validate(
    network: TransformNetwork | SharedNetwork,
    loss: PerceptualLoss,
    targets: Sequence[StyleTarget],
    pictures: Tensor,
    dtype: torch.dtype,
) -> tuple[dict[str, float], Tensor]:
    """Mean losses over the held-out pictures, each against one of the targets in turn."""
    rows, painted = [], []
    # With more styles than pictures, some are painted several times: each style counts.
    for i in range(max(len(pictures), len(targets))):
        picture, drawn = pictures[i % len(pictures)][None], [i % len(targets)]
        output = _paint(network, picture, drawn, dtype)
        terms = loss(output, loss.content_target(picture), targets[drawn[0]]).values()
        rows.append(terms | {"grid": grid_energy(output).item()})
        painted.append(output)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means, torch.cat([pictures, *painted[: len(pictures)]]).cpu()


def _load_matching(network: nn.Module, state: Mapping[str, Tensor], width: str, origin: str) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != theirs:
        raise InvalidInput(
            f"{origin} has another architecture than a '{width}' transform network.",
            hint="Use the --width that it was trained with.",
            field="width",
        )
    network.load_state_dict(state)


def _difference(checkpoint: Mapping[str, Any], settings: TrainingSettings) -> str:
    old, new = checkpoint["settings"], settings.as_dict()
    return ", ".join(f"{key}: {old.get(key)} then, {new[key]} now" for key in new if old.get(key) != new[key])
