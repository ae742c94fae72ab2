"""Measurements of the reference optimiser: speed, memory, and how far it gets.

Every speed is a ratio within one run: the variants take turns, each in a process of its own, so that what else the
machine does falls on all of them, and so that peak memory is theirs alone.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import weights
from shared.architectures import VGG19
from shared.devices import keep_freed_memory, pick_device
from shared.encoders import Encoder
from shared.fast_models import ModelLibrary
from shared.galleries import Gallery
from shared.images import decode, to_tensor
from shared.optimizer import DEFAULT_LOSS, Iteration, OptimizerSettings, optimize
from shared.perceptual_loss import LossSettings, PerceptualLoss
from shared.style_space import StyleSpace

MARKS = (100, 300, 500)


# --- speed and memory of a step -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way of computing a step.

    Attributes:
        straightforward: the computation as one writes it down: fp32, contiguous, PyTorch's own derivatives.
        tile: see :class:`shared.perceptual_loss.PerceptualLoss`; None: the picture whole.
    """

    name: str
    precision: str = "float32"
    straightforward: bool = False
    tile: int | None = None


VARIANTS = (
    Variant("straightforward float32", straightforward=True),
    Variant("lienzo float32"),
    Variant("lienzo bfloat16", "bfloat16"),
)


@dataclass(frozen=True)
class StepCost:
    """What a step costs.

    Attributes:
        seconds: median over the rounds.
        peak_bytes: memory at the highest: of the process on a CPU, of the allocator on a GPU.
    """

    seconds: float
    peak_bytes: int


def step_costs(
    size: int,
    *,
    device: str = "cpu",
    rounds: int = 3,
    steps: int = 3,
    variants: Sequence[Variant] = VARIANTS,
    on_round: Callable[[], None] | None = None,
) -> dict[str, StepCost]:
    """Seconds and memory of one step on a square picture, by variant; the variants take turns, round after round.

    Args:
        size: of the picture's sides in pixels.
        steps: timed in each round, after one that is not.
    """
    found: dict[str, list[tuple[float, int]]] = {variant.name: [] for variant in variants}
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for variant in variants:
            with context.Pool(1) as pool:
                found[variant.name].append(pool.apply(_time_steps, (variant, size, device, steps)))
            if on_round:
                on_round()
    return {
        name: StepCost(statistics.median(s for s, _ in pairs), max(peak for _, peak in pairs))
        for name, pairs in found.items()
    }


def _time_steps(variant: Variant, size: int, device: str, steps: int) -> tuple[float, int]:
    target = pick_device(device)
    tensors = weights.load("vgg19")
    generator = torch.Generator().manual_seed(0)
    content, style = (torch.rand(1, 3, size, size, generator=generator).to(target) for _ in range(2))
    pixels = content.clone().requires_grad_(True)
    if variant.straightforward:
        loss = _Straightforward(tensors, DEFAULT_LOSS, target)
        targets = loss.targets(content, style)
        optimizer = torch.optim.Adam([pixels], 0.03)
    else:
        keep_freed_memory()
        encoder = Encoder(tensors, dtype=getattr(torch, variant.precision), device=target)
        perceptual = PerceptualLoss(encoder, DEFAULT_LOSS, tile=variant.tile)
        targets = perceptual.content_target(content), perceptual.style_target(style)
        optimizer = torch.optim.Adam([pixels], 0.03, fused=True)

        def loss(picture: Tensor, *both: Any) -> Tensor:
            return perceptual(picture, *both).total

    times = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss(pixels, *targets).backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
        if target.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    if target.type == "cuda":
        return statistics.median(times[1:]), torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return statistics.median(times[1:]), peak


class _Straightforward(nn.Module):
    """The same loss as it stands in the papers: layers in a row, Gram matrices by a matrix product, mean squares."""

    def __init__(self, tensors: Mapping[str, Tensor], settings: LossSettings, device: torch.device):
        super().__init__()
        self.settings = settings
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.steps = VGG19.through(settings.layers)

    def features(self, picture: Tensor) -> dict[str, Tensor]:
        x, found = F.conv2d(picture, self.tensors["input.weight"], self.tensors["input.bias"]), {}
        for step in self.steps:
            if step.kind == "conv":
                x = F.conv2d(x, self.tensors[f"{step.name}.weight"], self.tensors[f"{step.name}.bias"], padding=1)
            else:
                x = F.relu(x) if step.kind == "relu" else F.max_pool2d(x, 2)
            if step.name in self.settings.layers:
                found[step.name] = x
        return found

    def targets(self, content: Tensor, style: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            kept = {k: v for k, v in self.features(content).items() if k in self.settings.content_layers}
            grams = {k: self.gram(v) for k, v in self.features(style).items() if k in self.settings.style_layers}
        return kept, grams

    @staticmethod
    def gram(features: Tensor) -> Tensor:
        flat = features.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[2]

    def forward(self, picture: Tensor, content: Mapping[str, Tensor], style: Mapping[str, Tensor]) -> Tensor:
        settings, found = self.settings, self.features(picture)
        kept = sum(w * F.mse_loss(found[k], content[k]) for k, w in settings.content_layers.items())
        painted = sum(w * F.mse_loss(self.gram(found[k]), style[k]) for k, w in settings.style_layers.items())
        down, across = picture.diff(dim=-2).square().mean(), picture.diff(dim=-1).square().mean()
        return settings.content_weight * kept + settings.style_weight * painted + settings.tv_weight * (down + across)


# --- descent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A content and a style that no fast network knows.

    Attributes:
        nearest: the fast style nearest to it, and at what cosine distance.
    """

    content: Path
    style: Path
    nearest: str
    distance: float

    @property
    def name(self) -> str:
        return f"{self.content.stem} × {self.style.stem}"


def unseen_pairs(gallery: Gallery, library: ModelLibrary, encoder: Encoder, count: int) -> list[Pair]:
    """``count`` pairs spread over the gallery, each with a style outside every cluster."""
    space, pictures, pairs = StyleSpace.load(), list(gallery.pictures), []
    step = max(1, len(pictures) // (2 * count))
    # Every step-th, then those between them: few styles may be outside.
    for i in (i for first in range(step) for i in range(first, len(pictures), step)):
        style, content = pictures[i], pictures[(i + len(pictures) // 2) % len(pictures)]
        serving = library.nearest(space.embed(encoder, decode(style.path)), space.fingerprint)
        if serving is not None and not serving.inside:
            pairs.append(Pair(content.path, style.path, serving.model.card.slug, serving.distance))
        if len(pairs) == count:
            break
    return pairs


@dataclass(frozen=True)
class Descent:
    """One optimisation, judged in fp32 whatever it was computed in.

    Attributes:
        totals: total loss by step.
    """

    pair: str
    size: int
    precision: str
    start: str
    seconds: float
    totals: Mapping[int, float] = field(default_factory=dict)

    def reaches(self, total: float) -> int | None:
        """The first judged step with a total loss no higher than ``total``."""
        return next((step for step, found in sorted(self.totals.items()) if found <= total), None)


class Bench:
    """Descends pairs of pictures.

    Args:
        settings: of the optimiser; ``start`` and ``steps`` are set by each descent.
    """

    def __init__(self, settings: OptimizerSettings, *, device: str = "cpu"):
        self.settings = settings
        self.device = pick_device(device)
        self._tensors = weights.load("vgg19")
        self._judge = Encoder(self._tensors, device=self.device)

    def encoder(self, precision: str) -> Encoder:
        """VGG-19 whose convolutions compute in ``precision``."""
        return Encoder(self._tensors, dtype=getattr(torch, precision), device=self.device)

    def descend(
        self,
        pair: Pair,
        size: int,
        precision: str,
        start: str,
        marks: Iterable[int],
        *,
        picture: Tensor | None = None,
        steps: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> Descent:
        """Optimise ``pair`` and judge the picture at each of ``marks``.

        Args:
            start: a name of :data:`shared.optimizer.STARTS`, or what to call the start from ``picture``.
            picture: ``[1, 3, H, W]`` to start from.
            steps: to plan for; the last of the marks where not given.
            changes: of the bench's settings, for this descent.
        """
        content, style = (
            to_tensor(decode(path, longer_side=size)).to(self.device) for path in (pair.content, pair.style)
        )
        marks = sorted(marks)
        steps = steps or marks[-1]
        loss = PerceptualLoss(self._judge, self.settings.loss, tile=self.settings.tile)
        targets = loss.content_target(content), loss.style_target(style)
        totals: dict[int, float] = {}

        def judge(iteration: Iteration) -> bool:
            if iteration.step in marks:
                current = iteration.picture()
                if current.shape != content.shape:  # a smaller scale
                    current = F.interpolate(current, content.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
                with torch.no_grad():
                    totals[iteration.step] = loss(current, *targets).values()["total"]
            if on_step:
                on_step(iteration.step, steps)
            return iteration.step < marks[-1]

        settings = replace(self.settings, steps=steps, **({} if picture is not None else {"start": start}), **changes)
        began = time.perf_counter()
        optimize(content, style, self.encoder(precision), settings, start=picture, on_iteration=judge)
        return Descent(pair.name, size, precision, start, time.perf_counter() - began, totals)


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    flags = info.read_text() if names else ""
    extra = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags]
    return f"{names[0] if names else platform.processor()} × {os.cpu_count()} {' '.join(extra)}".strip()
