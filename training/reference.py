"""How good a network is, in steps of the reference optimiser that it replaces."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shared.encoders import Encoder
from shared.fast_models import ReferenceCard
from shared.optimizer import Iteration, OptimizerSettings, optimize
from shared.perceptual_loss import ContentTarget, LossSettings, PerceptualLoss
from shared.transform_network import TransformNetwork


def compare_with_reference(
    network: TransformNetwork,
    contents: Tensor,
    style: Tensor,
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
        style: ``[1, 3, H', W']``, the (first) style picture.
        on_step: called with the steps done and the steps in all.
    """
    judge = PerceptualLoss(Encoder(weights, device=device), loss)
    encoder = Encoder(weights, dtype=dtype, device=device)
    style_target = judge.style_target(style.to(device))
    marks = sorted({steps, *(mark for mark in (25, 50, 75, 100, 150, 200, 300, 500) if mark <= steps)})
    network = network.to(device).eval()
    network_totals, optimizer_totals = [], {mark: [] for mark in marks}
    for i, content in enumerate(contents.to(device).split(1)):
        content_target = judge.content_target(content)

        def total(picture: Tensor, target: ContentTarget = content_target) -> float:
            with torch.no_grad():
                return judge(picture, target, style_target).values()["total"]

        def record(iteration: Iteration, done: int = i * steps, measure: Callable[[Tensor], float] = total) -> None:
            if iteration.step in optimizer_totals:
                optimizer_totals[iteration.step].append(measure(iteration.picture()))
            if on_step is not None:
                on_step(done + iteration.step, len(contents) * steps)

        with torch.no_grad():
            network_totals.append(total(network(content)))
        settings = OptimizerSettings(
            steps=steps, start="uniform", scales=1, learning_rate=0.02, final_rate=1.0, seed=i, loss=loss
        )
        optimize(content, style, encoder, settings, on_iteration=record)
    network_total = statistics.median(network_totals)
    medians = {mark: statistics.median(values) for mark, values in optimizer_totals.items()}
    return ReferenceCard(
        pairs=len(contents),
        size=contents.shape[-1],
        network_total=network_total,
        optimizer_total={str(mark): total for mark, total in medians.items()},
        equals_steps=next((mark for mark, total in medians.items() if total <= network_total), None),
    )
