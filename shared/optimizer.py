"""The reference optimiser: paints one picture by descending the perceptual loss over its pixels (Gatys et al. 2016)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.encoders import Encoder
from shared.errors import InvalidInput, LienzoError
from shared.perceptual_loss import ContentTarget, LossSettings, LossTerms, PerceptualLoss, StyleTarget

OPTIMIZERS = ("adam", "lbfgs")
STARTS = ("content", "style", "grey", "uniform", "normal", "white")
MAX_STEPS = 5000
SMALLEST_SIDE = 32
"""Shorter sides than this leave nothing at relu5_1 to compare."""

DEFAULT_LOSS = LossSettings(style_weight=20.0, tv_weight=60.0)
"""Chosen by eye. Started from the content and given tens of steps, a picture needs more pull towards the style than a
network needs in training, and enough total variation to keep single pixels from turning into coloured noise."""

_CHECK_EVERY = 25
"""Reading a loss waits for the device, so whether it is still a number is looked at now and then only."""


class OptimizationFailed(LienzoError):
    """The loss stopped being a number."""

    code = "optimization_failed"


@dataclass(frozen=True)
class OptimizerSettings:
    """How the pixels are moved.

    Attributes:
        steps: evaluations of the loss, over all scales.
        optimizer: ``adam``, or ``lbfgs`` with a line search by the strong Wolfe conditions.
        learning_rate: Adam's, in units of the picture's range [0, 1].
        final_rate: share of the learning rate that Adam ends each scale with, along half a cosine; 1: it stays. Steps
            that grow small at the end gain about as much as half as many steps again.
        beta1, beta2, epsilon: Adam's (Kingma and Ba 2015).
        search_iterations: of L-BFGS, between two points at which the run can be stopped, saved and judged.
        history: corrections that L-BFGS keeps.
        start: the picture to start from where none is given: the ``content``, the ``style``, mid ``grey``, or noise in
            which every value is drawn on its own: ``uniform`` over [0, 1], ``normal`` around grey (σ = 0.15), or
            ``white`` with the mean and the deviation of each of the content's channels.
        scales: how many sizes to paint at, each √2 times the one before; the last is the size asked for.
            The small ones settle the large strokes for a fraction of the cost (Gatys et al. 2017, section 6).
        carry_state: take Adam's moments along from one scale to the next.
        seed: of the noise.
        patience: leave a scale when the total loss has not fallen by ``tolerance`` of itself over this many
            evaluations; 0: never.
        tolerance: see ``patience``.
        ema: decay of an exponential moving average of Adam's iterates, which is then the result; 0: the last iterate.
        tile: pictures with a longer side than this are evaluated tile by tile
            (:class:`shared.perceptual_loss.PerceptualLoss`).
        loss: layers and weights.
    """

    steps: int = 200
    optimizer: str = "adam"
    learning_rate: float = 0.03
    final_rate: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    search_iterations: int = 20
    history: int = 20
    start: str = "content"
    scales: int = 2
    carry_state: bool = True
    seed: int = 0
    patience: int = 0
    tolerance: float = 1e-3
    ema: float = 0.0
    tile: int = 1536
    loss: LossSettings = field(default_factory=lambda: DEFAULT_LOSS)

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", OPTIMIZERS), ("start", STARTS)):
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}.", field=name
                )
        ranges = {
            "steps": (1, MAX_STEPS),
            "scales": (1, 6),
            "search_iterations": (1, 100),
            "history": (1, 100),
            "patience": (0, MAX_STEPS),
            "tile": (256, 16384),
        }
        for name, (lowest, highest) in ranges.items():
            if not lowest <= getattr(self, name) <= highest:
                raise InvalidInput(f"{name} is {getattr(self, name)}, expected {lowest} to {highest}.", field=name)
        if not 0 < self.learning_rate < 10:
            raise InvalidInput(f"learning_rate is {self.learning_rate}, expected 0 to 10.", field="learning_rate")
        for name in ("beta1", "beta2", "ema", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}, expected 0 or more and less than 1.", field=name)
        if not 0 < self.final_rate <= 1:
            raise InvalidInput(
                f"final_rate is {self.final_rate}, expected more than 0 and at most 1.", field="final_rate"
            )
        if not 0 < self.epsilon <= 1:
            raise InvalidInput(f"epsilon is {self.epsilon}, expected more than 0 and at most 1.", field="epsilon")
        if self.ema and self.optimizer != "adam":
            raise InvalidInput(
                "ema averages the iterates of adam; lbfgs has too few of them.", hint="Choose adam.", field="ema"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for records and checkpoints."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "loss"}
        return plain | {"loss": self.loss.as_dict()}


@dataclass(frozen=True)
class StylePicture:
    """One of several styles.

    Attributes:
        picture: ``[1, 3, H, W]``, RGB in [0, 1].
        weight: against the other styles.
        region: ``[1, 1, H, W]`` in [0, 1] over the content: where this style is painted. None: everywhere; styles
            without a region are blended.
    """

    picture: Tensor
    weight: float = 1.0
    region: Tensor | None = None


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
    canvas: _Canvas | None = None

    @cached_property
    def losses(self) -> dict[str, float]:
        return self.terms.values()

    def picture(self) -> Tensor:
        """The picture at this point, ``[1, 3, H, W]`` in [0, 1], a copy."""
        pixels = self.pixels.detach().clamp(0, 1)
        if self.canvas is not None:
            pixels = self.canvas(pixels)
        return pixels.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps: what it takes to go on as if nothing had happened.

    Attributes:
        done: evaluations made in all.
        scale: the scale that the run is in, from 0; ``done_in_scale``: evaluations made there.
        tensors: the pixels and the optimiser's state by name.
        numbers: what else the optimiser remembers.
    """

    done: int
    scale: int
    done_in_scale: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]


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
    style: Tensor | Sequence[StylePicture],
    encoder: Encoder,
    settings: OptimizerSettings | None = None,
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    resume: Checkpoint | None = None,
    on_iteration: Callable[[Iteration], bool | None] | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    checkpoint_every: int = 50,
) -> Painting:
    """Paint ``content`` in the manner of ``style``.

    Args:
        content: ``[1, 3, H, W]``, RGB in [0, 1]; gives the size of the result.
        style: ``[1, 3, H', W']``; its size against the content's sets the size of the strokes. Or several.
        encoder: losses are computed in fp32 whatever its dtype.
        start: a picture of the content's shape to start from instead of ``settings.start`` (a fast network's output,
            for a warm start).
        mask: ``[1, 1, H, W]`` in [0, 1]: where to paint. Where it is 0 the result is the content.
        resume: a checkpoint of the same run: same pictures, encoder and settings.
        on_iteration: called after every evaluation; returning False ends the run with the picture as it is.
        on_checkpoint: called at the first point where the run can be resumed after every ``checkpoint_every``
            evaluations, and never with L-BFGS in the middle of a line search.

    Raises:
        InvalidInput: a shape that cannot be painted, a layer that the encoder does not have, or a checkpoint of
            another run.
        OptimizationFailed: the loss is not a number.
    """
    settings = settings or OptimizerSettings()
    styles = [StylePicture(style)] if isinstance(style, Tensor) else list(style)
    loss = PerceptualLoss(encoder, settings.loss, tile=settings.tile)
    _check_pictures(content, styles, start, mask, encoder, settings)

    def here(tensor: Tensor) -> Tensor:
        return tensor.to(encoder.device)

    content = here(content)
    styles = [replace(s, picture=here(s.picture), region=None if s.region is None else here(s.region)) for s in styles]
    mask = None if mask is None else here(mask)
    picture = _starting_picture(settings, content, styles) if start is None else here(start)
    schedule = _schedule(settings, content.shape[-2:])
    run = _Run(settings, len(schedule), on_iteration, on_checkpoint, checkpoint_every)
    first = 0
    if resume is not None:
        first = _check_resume(resume, schedule)
        run.done = resume.done

    moments: dict[str, Tensor] = {}
    for number, (size, share) in enumerate(schedule[first:], start=first):
        scene = _Scene.at(size, content, styles, mask, loss)
        if resume is not None and number == first:
            run.enter(number, scene, here(resume.tensors["pixels"]), share - resume.done_in_scale)
            run.restore(resume)
        else:
            run.enter(number, scene, _resize(picture, size).clamp(0, 1).contiguous(), share)
            if settings.carry_state:
                run.carry(moments)
        picture, moments = run.descend()
        if run.stopped:
            break
    _check_loss(run.last)
    if picture.shape != content.shape:
        picture = _resize(picture, content.shape[-2:]).clamp(0, 1)
    if mask is not None:
        picture = torch.lerp(content, picture, mask)
    return Painting(picture, run.last.losses, run.done, run.seconds, run.stopped)


@dataclass(frozen=True)
class _Canvas:
    """Keeps what is outside the mask as the content has it."""

    content: Tensor
    mask: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.lerp(self.content, pixels, self.mask)


@dataclass(frozen=True)
class _Scene:
    """What one scale compares with, computed once."""

    size: tuple[int, int]
    loss: PerceptualLoss
    content: ContentTarget
    styles: tuple[StyleTarget, ...]
    canvas: _Canvas | None

    @classmethod
    def at(
        cls,
        size: tuple[int, int],
        content: Tensor,
        styles: Sequence[StylePicture],
        mask: Tensor | None,
        loss: PerceptualLoss,
    ) -> _Scene:
        ratio = size[0] / content.shape[-2]
        smallest = _smallest_side(loss.encoder, loss.settings)

        def scaled(style: StylePicture) -> Tensor:
            sides = tuple(max(smallest, round(side * ratio)) for side in style.picture.shape[-2:])
            return _resize(style.picture, sides)

        scaled_content = _resize(content, size)
        scaled_mask = None if mask is None else _shrink(mask, size)
        total = sum(style.weight for style in styles)
        targets = []
        blended = [style for style in styles if style.region is None]
        if blended:
            target = loss.style_target([scaled(style) for style in blended], [style.weight for style in blended])
            weight = sum(style.weight for style in blended) / total
            target = replace(target, weight=weight) if mask is None else loss.in_region(target, scaled_mask, weight)
            targets.append(target)
        for style in styles:
            if style.region is not None:
                region = _shrink(style.region if mask is None else style.region * mask, size)
                targets.append(loss.in_region(loss.style_target(scaled(style)), region, style.weight / total))
        canvas = None if mask is None else _Canvas(scaled_content, scaled_mask)
        return cls(size, loss, loss.content_target(scaled_content), tuple(targets), canvas)

    def evaluate(self, pixels: Tensor) -> LossTerms:
        seen = pixels if self.canvas is None else self.canvas(pixels)
        return self.loss(seen, self.content, self.styles)


class _Stop(Exception):
    """Leaves PyTorch's L-BFGS from within its line search."""


class _Run:
    """One optimisation: the pixels of the present scale, the optimiser that moves them, the count of evaluations."""

    def __init__(
        self,
        settings: OptimizerSettings,
        scales: int,
        on_iteration: Callable[[Iteration], bool | None] | None,
        on_checkpoint: Callable[[Checkpoint], None] | None,
        checkpoint_every: int,
    ):
        self.settings = settings
        self._scales = scales
        self.done = 0
        self.last: Iteration | None = None
        self.stopped = False
        self._on_iteration = on_iteration
        self._on_checkpoint = on_checkpoint
        self._checkpoint_every = max(1, checkpoint_every)
        self._saved_at = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def enter(self, number: int, scene: _Scene, pixels: Tensor, share: int) -> None:
        """Begin the scale ``number`` with ``share`` evaluations to make."""
        self._number, self._scene, self._left, self._done_here = number, scene, share, 0
        self._pixels = pixels.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
        self._best, self._windows = math.inf, 0
        settings = self.settings
        if settings.optimizer == "adam":
            self._optimizer = torch.optim.Adam(
                [self._pixels],
                settings.learning_rate,
                betas=(settings.beta1, settings.beta2),
                eps=settings.epsilon,
                fused=True,
            )
        else:
            self._optimizer = torch.optim.LBFGS(
                [self._pixels],
                lr=1.0,
                max_iter=settings.search_iterations,
                history_size=settings.history,
                tolerance_grad=0.0,
                tolerance_change=0.0,
                line_search_fn="strong_wolfe",
            )
        self._average = torch.zeros_like(self._pixels, requires_grad=False) if settings.ema else None
        self._averaged = 0

    def carry(self, moments: Mapping[str, Tensor]) -> None:
        """Go on with Adam's moments of a smaller scale.

        The losses are means, so a pixel's gradient shrinks as the pixels become more.
        """
        if not moments:
            return
        size = self._pixels.shape[-2:]
        ratio = math.prod(moments["exp_avg"].shape[-2:]) / math.prod(size)
        first = F.interpolate(moments["exp_avg"], size=size, mode="bilinear", align_corners=False)
        second = F.interpolate(moments["exp_avg_sq"], size=size, mode="bilinear", align_corners=False)
        self._optimizer.state[self._pixels] = {
            "step": moments["step"].clone(),
            "exp_avg": first * ratio,
            "exp_avg_sq": second * ratio**2,
        }

    def descend(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the evaluations of this scale; the picture that it ends with, and Adam's moments."""
        advance = self._advance_adam if self.settings.optimizer == "adam" else self._advance_lbfgs
        while self._left > 0 and not self.stopped:
            advance()
            if self._reached_plateau():
                self._left = 0
            self._save()
        picture = self._pixels.detach()
        if self._average is not None and self._averaged:
            picture = self._average / (1 - self.settings.ema**self._averaged)
        moments = dict(self._optimizer.state[self._pixels]) if self.settings.optimizer == "adam" else {}
        return picture.clamp(0, 1), moments

    def _advance_adam(self) -> None:
        terms = self._evaluate()
        self._optimizer.param_groups[0]["lr"] = self._learning_rate()
        self._optimizer.step()
        with torch.no_grad():
            self._pixels.clamp_(0, 1)
            if self._average is not None:
                self._average.lerp_(self._pixels, 1 - self.settings.ema)
                self._averaged += 1
        self._report(terms)

    def _learning_rate(self) -> float:
        """Of the next step; depends on nothing but the settings and how many steps this scale has made and has left."""
        total = self._done_here + self._left
        progress = self._done_here / max(1, total - 1)
        last = self.settings.final_rate
        return self.settings.learning_rate * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _advance_lbfgs(self) -> None:
        # One step of PyTorch's L-BFGS makes several evaluations as it searches along the line; its memory of the
        # curvature lives on between steps. A run that is stopped inside a step keeps the best picture of that step.
        self._optimizer.param_groups[0]["max_eval"] = max(1, min(self.settings.search_iterations * 5 // 4, self._left))
        best: tuple[float, Tensor] | None = None

        def closure() -> Tensor:
            nonlocal best
            if self._left <= 0:
                raise _Stop
            terms = self._evaluate()
            total = terms.total.item()  # the line search reads it anyway
            if best is None or total < best[0]:
                best = total, self._pixels.detach().clone()
            self._report(terms)
            if self.stopped:
                raise _Stop
            return terms.total

        try:
            self._optimizer.step(closure)
        except _Stop:
            with torch.no_grad():
                self._pixels.copy_(best[1])

    def _evaluate(self) -> LossTerms:
        self._optimizer.zero_grad(set_to_none=True)
        terms = self._scene.evaluate(self._pixels)
        terms.total.backward()
        return terms.detach()

    def _report(self, terms: LossTerms) -> None:
        self.done += 1
        self._done_here += 1
        self._left -= 1
        height, width = self._scene.size
        self.last = Iteration(
            self.done, self.settings.steps, height, width, self.seconds, terms, self._pixels, self._scene.canvas
        )
        if self.done % _CHECK_EVERY == 0:
            _check_loss(self.last)
        if self._on_iteration is not None and self._on_iteration(self.last) is False:
            self.stopped = True

    def _reached_plateau(self) -> bool:
        patience = self.settings.patience
        if not patience or self._done_here // patience == self._windows:
            return False
        self._windows = self._done_here // patience
        total = self.last.losses["total"]
        reached = total > self._best * (1 - self.settings.tolerance)
        self._best = min(self._best, total)
        return reached

    # --- checkpoints ---

    def _save(self) -> None:
        if (
            self._on_checkpoint is None
            or (self._left <= 0 and self._number == self._scales - 1)  # nothing is left to resume
            or (self.stopped and self.settings.optimizer == "lbfgs")  # within a line search
            or self.done // self._checkpoint_every == self._saved_at // self._checkpoint_every
        ):
            return
        self._saved_at = self.done
        tensors = {"pixels": self._pixels.detach().clone()}
        numbers = {"best": self._best, "averaged": self._averaged, "left": self._left}
        if self._average is not None:
            tensors["average"] = self._average.clone()
        for name, value in self._optimizer.state[self._pixels].items():
            if name == "al":
                continue  # a buffer of L-BFGS that every iteration writes before it reads
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}"] = value.clone()
            elif isinstance(value, list):
                for i, entry in enumerate(value):
                    if isinstance(entry, Tensor):
                        tensors[f"optimizer.{name}.{i:03}"] = entry.clone()
            elif isinstance(value, int | float):
                numbers[f"optimizer.{name}"] = value
        self._on_checkpoint(Checkpoint(self.done, self._number, self._done_here, tensors, numbers))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the optimiser's state where ``checkpoint`` left it."""
        self._done_here = checkpoint.done_in_scale
        self._saved_at = checkpoint.done
        self._best = checkpoint.numbers["best"]
        self._averaged = int(checkpoint.numbers["averaged"])
        self._left = int(checkpoint.numbers["left"])
        if self.settings.patience:
            self._windows = self._done_here // self.settings.patience
        state: dict[str, Any] = {}
        for name, tensor in sorted(checkpoint.tensors.items()):
            tensor = tensor.to(self._pixels.device).clone()
            if name == "average":
                self._average = tensor
            elif name.startswith("optimizer."):
                _, key, *index = name.split(".")
                if index:
                    state.setdefault(key, []).append(tensor)
                else:
                    state[key] = tensor
        for name, number in checkpoint.numbers.items():
            if name.startswith("optimizer."):
                state[name.removeprefix("optimizer.")] = number
        for name in ("func_evals", "n_iter"):
            if name in state:
                state[name] = int(state[name])
        if self.settings.optimizer == "lbfgs":
            state["al"] = [None] * self.settings.history
            for name in ("old_dirs", "old_stps", "ro"):
                state.setdefault(name, [])  # no correction yet
        self._optimizer.state[self._pixels] = state


def _check_pictures(
    content: Tensor,
    styles: Sequence[StylePicture],
    start: Tensor | None,
    mask: Tensor | None,
    encoder: Encoder,
    settings: OptimizerSettings,
) -> None:
    if not styles:
        raise InvalidInput("no style was given.", hint="Give at least one style picture.", field="style")
    smallest = _smallest_side(encoder, settings.loss)
    _check_picture("content", content, smallest, settings)
    for style in styles:
        _check_picture("style", style.picture, smallest, settings)
        if not 0 < style.weight < math.inf:
            raise InvalidInput(f"a style weighs {style.weight}, expected a number above 0.", field="style_weights")
    if start is not None:
        if start.shape != content.shape:
            raise InvalidInput(
                f"start is {tuple(start.shape)}, expected the content's shape {tuple(content.shape)}.", field="start"
            )
        _check_picture("start", start, smallest, settings)
    expected = (1, 1, *content.shape[-2:])
    for region in (mask, *(style.region for style in styles)):
        if region is None:
            continue
        if tuple(region.shape) != expected:
            raise InvalidInput(f"a mask is {tuple(region.shape)}, expected {expected}.", field="mask")
        if not bool(((region >= 0) & (region <= 1)).all()):
            raise InvalidInput("a mask has values outside 0 to 1.", field="mask")
        if not bool((region > 0).any()):
            raise InvalidInput("a mask is black everywhere.", hint="Paint it white where it counts.", field="mask")


def _check_picture(name: str, picture: Tensor, smallest: int, settings: OptimizerSettings) -> None:
    if picture.dim() != 4 or picture.shape[:2] != (1, 3):
        raise InvalidInput(f"{name} has shape {tuple(picture.shape)}, expected (1, 3, height, width).", field=name)
    height, width = picture.shape[-2:]
    if min(height, width) < smallest:
        raise InvalidInput(
            f"{name} is {width}×{height} pixels, expected at least {smallest}×{smallest} "
            f"for the layers {', '.join(settings.loss.layers)}.",
            hint="Use a larger size, a picture that is less elongated, or shallower layers.",
            field=name,
        )
    if not torch.isfinite(picture).all():
        raise InvalidInput(f"{name} has values that are not numbers.", field=name)


def _smallest_side(encoder: Encoder, loss: LossSettings) -> int:
    """Two activations a side at the deepest layer: one alone has no texture."""
    return max(SMALLEST_SIDE, 2 * encoder.architecture.through(loss.layers)[-1].scale)


def _check_loss(iteration: Iteration) -> None:
    if not math.isfinite(iteration.losses["total"]):
        raise OptimizationFailed(
            f"the loss is not a number after {iteration.step} steps ({iteration.losses}).",
            hint="Lower the learning rate or the style weight, or use precision float32.",
        )


def _check_resume(checkpoint: Checkpoint, schedule: Sequence[tuple[tuple[int, int], int]]) -> int:
    found = tuple(checkpoint.tensors["pixels"].shape[-2:])
    if checkpoint.scale >= len(schedule) or schedule[checkpoint.scale][0] != found:
        raise InvalidInput(
            f"the checkpoint is of another run: it has {found[1]}×{found[0]} pixels at scale {checkpoint.scale + 1}.",
            hint="Resume with the pictures and settings that the run was started with.",
            field="resume",
        )
    return checkpoint.scale


def _starting_picture(settings: OptimizerSettings, content: Tensor, styles: Sequence[StylePicture]) -> Tensor:
    if settings.start == "content":
        return content
    if settings.start == "style":
        return _resize(styles[0].picture, content.shape[-2:])
    if settings.start == "grey":
        return torch.full_like(content, 0.5)
    # Drawn on the CPU: a seed gives one picture on every device.
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.start == "uniform":
        return torch.rand(content.shape, generator=generator).to(content.device)
    noise = torch.randn(content.shape, generator=generator).to(content.device)
    if settings.start == "normal":
        return (0.5 + 0.15 * noise).clamp(0, 1)
    spread, mean = torch.std_mean(content, dim=(-2, -1), keepdim=True)
    return (mean + spread * noise).clamp(0, 1)


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


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture, size=tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _shrink(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask at another size; linear, so that it stays in [0, 1] and 0 and 1 stay what they are away from edges."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    return F.interpolate(mask, size=tuple(size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
