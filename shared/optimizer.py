"""The reference optimiser: paints one picture by descending the perceptual loss over its pixels (Gatys et al. 2016)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.encoders import Encoder
from shared.errors import InvalidInput, LienzoError
from shared.perceptual_loss import LossSettings, LossTerms, PerceptualLoss

OPTIMIZERS = ("adam", "lbfgs")
STARTS = ("content", "style", "noise", "grey")
MAX_STEPS = 5000
SMALLEST_SIDE = 32
"""Shorter sides than this leave nothing at relu5_1 to compare."""

DEFAULT_LOSS = LossSettings(style_weight=20.0, tv_weight=60.0)
"""Chosen by eye. Started from the content and given tens of steps, a picture needs more pull towards the style than a
network needs in training, and enough total variation to keep single pixels from turning into coloured noise."""


class OptimizationFailed(LienzoError):
    """The loss stopped being a number."""

    code = "optimization_failed"


@dataclass(frozen=True)
class OptimizerSettings:
    """How the pixels are moved.

    Attributes:
        steps: evaluations of the loss, over all scales.
        optimizer: ``adam``, or ``lbfgs`` as in the paper.
        learning_rate: Adam's, in units of the picture's range [0, 1].
        start: the picture to start from where none is given.
        scales: how many sizes to paint at, each √2 times the one before; the last is the size asked for.
            The small ones settle the large strokes for a fraction of the cost (Gatys et al. 2017, section 5).
        seed: of the noise.
        loss: layers and weights.
    """

    steps: int = 200
    optimizer: str = "adam"
    learning_rate: float = 0.03
    start: str = "content"
    scales: int = 3
    seed: int = 0
    loss: LossSettings = field(default_factory=lambda: DEFAULT_LOSS)

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", OPTIMIZERS), ("start", STARTS)):
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}.", field=name
                )
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidInput(f"steps is {self.steps}, expected 1 to {MAX_STEPS}.", field="steps")
        if not 1 <= self.scales <= 6:
            raise InvalidInput(f"scales is {self.scales}, expected 1 to 6.", field="scales")
        if not 0 < self.learning_rate < 10:
            raise InvalidInput(f"learning_rate is {self.learning_rate}, expected 0 to 10.", field="learning_rate")


@dataclass(frozen=True)
class Iteration:
    """One evaluation of the loss, for progress bars, events and records alike.

    The losses are read from the device only when :attr:`losses` is looked at.
    """

    step: int
    steps: int
    height: int
    width: int
    seconds: float
    terms: LossTerms
    pixels: Tensor

    @cached_property
    def losses(self) -> dict[str, float]:
        return self.terms.values()

    def picture(self) -> Tensor:
        """The picture at this point, ``[1, 3, H, W]`` in [0, 1], a copy."""
        return self.pixels.detach().clamp(0, 1).clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Painting:
    """The result of a run."""

    picture: Tensor
    """``[1, 3, H, W]``, RGB in [0, 1]."""
    losses: dict[str, float]
    """Of the last evaluation."""
    steps: int
    seconds: float
    stopped: bool
    """Whether the callback ended the run early."""


def optimize(
    content: Tensor,
    style: Tensor,
    encoder: Encoder,
    settings: OptimizerSettings | None = None,
    *,
    start: Tensor | None = None,
    on_iteration: Callable[[Iteration], bool | None] | None = None,
) -> Painting:
    """Paint ``content`` in the manner of ``style``.

    Args:
        content: ``[1, 3, H, W]``, RGB in [0, 1]; gives the size of the result.
        style: ``[1, 3, H', W']``; its size against the content's sets the size of the strokes.
        encoder: VGG-19; losses are computed in fp32 whatever its dtype.
        start: a picture of the content's shape to start from instead of ``settings.start`` (a fast network's output,
            for a warm start).
        on_iteration: called after every evaluation; returning False ends the run with the picture as it is.

    Raises:
        InvalidInput: a shape that cannot be painted.
        OptimizationFailed: the loss is not a number.
    """
    settings = settings or OptimizerSettings()
    for name, picture in (("content", content), ("style", style)):
        _check_picture(name, picture)
    if start is not None:
        if start.shape != content.shape:
            raise InvalidInput(
                f"start is {tuple(start.shape)}, expected the content's shape {tuple(content.shape)}.", field="start"
            )
        _check_picture("start", start)
    content, style = content.to(encoder.device), style.to(encoder.device)
    loss = PerceptualLoss(encoder, settings.loss)
    picture = _starting_picture(settings, content, style) if start is None else start.to(encoder.device)

    began = time.monotonic()
    done, last, stopped = 0, None, False
    for size, share in _schedule(settings, content.shape[-2:]):
        scaled_content = _resize(content, size)
        ratio = size[0] / content.shape[-2]
        style_size = tuple(max(SMALLEST_SIDE, round(side * ratio)) for side in style.shape[-2:])
        content_target = loss.content_target(scaled_content)
        style_target = loss.style_target(_resize(style, style_size))
        pixels = _resize(picture, size).clamp(0, 1).contiguous().requires_grad_(True)
        for terms in _descend(pixels, lambda x, c=content_target, s=style_target: loss(x, c, s), settings, share):
            done += 1
            last = Iteration(done, settings.steps, *size, time.monotonic() - began, terms, pixels)
            # Reading the loss waits for the device, so it is checked now and then only.
            if done % 25 == 0:
                _check_loss(last)
            if on_iteration is not None and on_iteration(last) is False:
                stopped = True
                break
        picture = pixels.detach().clamp(0, 1)
        if stopped:
            break
    _check_loss(last)
    if picture.shape != content.shape:
        picture = _resize(picture, content.shape[-2:]).clamp(0, 1)
    return Painting(picture, last.losses, done, time.monotonic() - began, stopped)


def _check_picture(name: str, picture: Tensor) -> None:
    if picture.dim() != 4 or picture.shape[:2] != (1, 3):
        raise InvalidInput(f"{name} has shape {tuple(picture.shape)}, expected (1, 3, height, width).", field=name)
    height, width = picture.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        raise InvalidInput(
            f"{name} is {width}×{height} pixels, expected at least {SMALLEST_SIDE}×{SMALLEST_SIDE}.",
            hint="Use a larger size, or a picture that is less elongated.",
            field=name,
        )
    if not torch.isfinite(picture).all():
        raise InvalidInput(f"{name} has values that are not numbers.", field=name)


def _check_loss(iteration: Iteration) -> None:
    if not math.isfinite(iteration.losses["total"]):
        raise OptimizationFailed(
            f"the loss is not a number after {iteration.step} steps ({iteration.losses}).",
            hint="Lower the learning rate or the style weight, or use precision float32.",
        )


def _starting_picture(settings: OptimizerSettings, content: Tensor, style: Tensor) -> Tensor:
    if settings.start == "content":
        return content
    if settings.start == "style":
        return _resize(style, content.shape[-2:])
    if settings.start == "grey":
        return torch.full_like(content, 0.5)
    # Drawn on the CPU: a seed gives one picture on every device.
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.rand(content.shape, generator=generator).to(content.device)


def _schedule(settings: OptimizerSettings, size: tuple[int, int]) -> list[tuple[tuple[int, int], int]]:
    """(height, width) and steps of each scale, the smallest first; scales that would be too small are left out."""
    height, width = size
    ratios = [2 ** (-(settings.scales - 1 - i) / 2) for i in range(settings.scales)]
    sizes = [(round(height * r), round(width * r)) for r in ratios]
    sizes = [s for s in sizes if min(s) >= SMALLEST_SIDE * 2] or [(height, width)]
    sizes = sizes[-settings.steps :]
    each, rest = divmod(settings.steps, len(sizes))
    # What does not divide goes to the cheapest scale.
    return [(s, each + (rest if i == 0 else 0)) for i, s in enumerate(sizes)]


def _descend(
    pixels: Tensor, loss: Callable[[Tensor], LossTerms], settings: OptimizerSettings, steps: int
) -> Iterator[LossTerms]:
    """Move ``pixels`` in place, ``steps`` evaluations long; yields each evaluation."""
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam([pixels], settings.learning_rate, betas=(0.9, 0.99), fused=True)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            terms = loss(pixels)
            terms.total.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
            yield terms
        return
    # One outer step of PyTorch's L-BFGS makes several evaluations when it searches along the line. Giving it one
    # evaluation at a time would lose its memory's use, so evaluations are collected and handed on after each step.
    optimizer = torch.optim.LBFGS([pixels], lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe")
    left = steps
    while left > 0:
        optimizer.param_groups[0]["max_eval"] = min(25, left)
        evaluations: list[LossTerms] = []

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            terms = loss(pixels)
            terms.total.backward()
            evaluations.append(  # noqa: B023
                LossTerms(terms.content.detach(), terms.style.detach(), terms.tv.detach())
            )
            return terms.total

        optimizer.step(closure)
        yield from evaluations[:left]
        left -= len(evaluations)


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture, size=tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
