"""How good a network is, in steps of the reference optimiser that it replaces."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from shared.encoders import Encoder
from shared.fast_models import ReferenceCard
from shared.optimizer import Iteration, OptimizerSettings, StylePicture, optimize
from shared.perceptual_loss import ContentTarget, LossSettings, PerceptualLoss, StyleTarget
from shared.transform_network import TransformNetwork

_MARKS = (25, 50, 75, 100, 150, 200, 300, 500)


def marks_up_to(steps: int) -> tuple[int, ...]:
    """The steps at which the reference is judged on its way to the last one."""
    return tuple(sorted({steps, *(mark for mark in _MARKS if mark <= steps)}))


def reference_settings(steps: int, loss: LossSettings, seed: int) -> OptimizerSettings:
    """The reference: Adam from noise, at one scale and a constant rate, so that no step depends on how many follow."""
    return OptimizerSettings(
        steps=steps, start="uniform", scales=1, learning_rate=0.02, final_rate=1.0, seed=seed, loss=loss
    )


def reference_losses(
    content: Tensor,
    styles: Sequence[Tensor],
    encoder: Encoder,
    settings: OptimizerSettings,
    judge: PerceptualLoss,
    targets: tuple[ContentTarget, StyleTarget],
    marks: Collection[int],
    on_step: Callable[[int], None] | None = None,
) -> dict[int, dict[str, float]]:
    """The weighted loss terms and their total (``content``, ``style``, ``tv``, ``total``) at each of ``marks``.

    Args:
        content: ``[1, 3, H, W]``.
        styles: one or several ``[1, 3, H', W']``; the mean of their Gram matrices is the target.
        encoder: what the optimiser looks through, in any precision.
        judge: evaluates in fp32 what is returned, against ``targets``.
        on_step: called with the steps done.
    """
    found: dict[int, dict[str, float]] = {}

    def record(iteration: Iteration) -> None:
        if iteration.step in marks:
            with torch.no_grad():
                found[iteration.step] = judge(iteration.picture(), *targets).values()
        if on_step is not None:
            on_step(iteration.step)

    optimize(content, [StylePicture(style) for style in styles], encoder, settings, on_iteration=record)
    return found


def steps_as_good(total: float, reference: Mapping[int, float]) -> int | None:
    """After how many steps the reference's total loss, given by step, is as low as ``total``; None: after none."""
    return next((step for step, found in sorted(reference.items()) if found <= total), None)


def compare_with_reference(
    network: TransformNetwork,
    contents: Tensor,
    styles: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    loss: LossSettings,
    *,
    steps: int = 100,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> ReferenceCard:
    """Compare the network's total loss with the optimiser's (Adam, from noise, the same weights) on each content.

    The optimiser's convolutions may run in ``dtype``; every loss that is compared is evaluated in fp32.

    Args:
        contents: ``[N, 3, H, W]``, pictures that the network was not trained on.
        styles: one or several ``[1, 3, H', W']``; the mean of their Gram matrices is the target.
        on_step: called with the steps done and the steps in all.
    """
    judge = PerceptualLoss(Encoder(weights, device=device), loss)
    encoder = Encoder(weights, dtype=dtype, device=device)
    styles = [style.to(device) for style in styles]
    style_target = judge.style_target(styles)
    marks = marks_up_to(steps)
    network = network.to(device).eval()
    network_totals, optimizer_totals = [], {mark: [] for mark in marks}
    for i, content in enumerate(contents.to(device).split(1)):
        targets = judge.content_target(content), style_target
        with torch.no_grad():
            network_totals.append(judge(network(content), *targets).values()["total"])

        def count(step: int, before: int = i * steps) -> None:
            if on_step is not None:
                on_step(before + step, len(contents) * steps)

        settings = reference_settings(steps, loss, seed=i)
        for mark, terms in reference_losses(content, styles, encoder, settings, judge, targets, marks, count).items():
            optimizer_totals[mark].append(terms["total"])
    network_total = statistics.median(network_totals)
    medians = {mark: statistics.median(values) for mark, values in optimizer_totals.items()}
    return ReferenceCard(
        pairs=len(contents),
        size=contents.shape[-1],
        network_total=network_total,
        optimizer_total={str(mark): total for mark, total in medians.items()},
        equals_steps=steps_as_good(network_total, medians),
    )
