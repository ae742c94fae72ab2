"""Muon: steps of equal length in every direction of a convolution's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration in :func:`orthogonalised`, chosen by Jordan for speed: it ends near 1, not at 1."""


class Muon(torch.optim.Optimizer):
    r"""Gradient descent with momentum whose steps are orthogonalised as matrices.

    The gradient of a convolution, seen as a matrix of outputs by inputs, has a few large singular values and many small
    ones; a plain step follows the few. Replacing :math:`U \Sigma V^T` by :math:`U V^T` follows all of them alike
    (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"). Steps are scaled as in Liu et
    al. 2025, "Muon is scalable for LLM training", section 2.2, to the root mean square that Adam's usually have, so
    that learning rates mean the same. PyTorch's own Muon takes matrices only, no convolutions.

    Args:
        parameters: of two dimensions or more; the first counts as rows, the others together as columns.
        lr: learning rate.
        momentum: share of the mean gradient that is kept at each step.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; parameters without a gradient stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
                # Nesterov's look ahead: the mean as it would be after this gradient once more.
                direction = gradient.lerp(mean, group["momentum"]).flatten(1)
                scale = 0.2 * max(direction.shape) ** 0.5
                parameter.add_(orthogonalised(direction).reshape(parameter.shape), alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with all singular values brought near 1 (0.7 to 1.2), its singular vectors kept.

    By a Newton–Schulz iteration, that is by products of matrices alone; a matrix of zeros stays one.

    Args:
        matrix: ``[M, N]``.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T
