"""The losses of neural style transfer, as pure functions of tensors.

Sources: Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks" (content and style);
Johnson, Alahi and Fei-Fei 2016, "Perceptual Losses for Real-Time Style Transfer" (total variation as a regulariser);
Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer" (regions).

Every loss is a mean unless a form is named, so that its weight means the same at every picture size. Half-precision
activations are widened first: losses are always fp32 (or fp64).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TV_FORMS = ("mean_squared", "sum_squared", "sum_absolute")

_NOTHING = 1e-12
"""Weights that sum to less than this are none."""


def gram_matrix(features: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Correlations between channels, :math:`G_{ij} = \frac{1}{M} \sum_k F_{ik} F_{jk}`, with M = H·W positions.

    Gatys et al. (equation 3) leave out 1/M and divide by M² in the loss; dividing here gives the same loss when both
    pictures have one size, and a sensible one when they do not.

    With weights it is the guided Gram matrix of Gatys et al. 2017 (section 4.1),
    :math:`\sum_k m_k F_{ik} F_{jk} / \sum_k m_k`: what the picture is like where the weights are high.

    Args:
        features: ``[N, C, H, W]``.
        weights: ``[1, 1, H, W]``, none negative; 0 everywhere gives 0.

    Returns:
        ``[N, C, C]``, symmetric and positive semi-definite.
    """
    positions = _positions(features)
    if weights is None:
        return _Gram.apply(positions)
    # The root goes to either factor; the mean over all positions becomes one over the weighted ones. Their sum is that
    # of the roots as they were rounded, or a constant weight would not be the same as none.
    roots = weights.reshape(1, -1, 1).sqrt().to(positions.dtype)
    return _Gram.apply(positions * roots) * (roots.numel() / _widen(roots).square().sum().clamp_min(_NOTHING))


def channel_means(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of each channel over positions, weighted as in :func:`gram_matrix`: ``[N, C]``."""
    positions = _widen(_positions(features))
    if weights is None:
        return positions.mean(1)
    weights = weights.reshape(1, -1, 1)
    return (positions * weights).sum(1) / weights.sum().clamp_min(_NOTHING)


def _positions(features: Tensor) -> Tensor:
    """``[N, C, H, W]`` as ``[N, H·W, C]``."""
    if features.is_contiguous(memory_format=torch.channels_last):
        # The same values, without moving the activations into another order first.
        return features.permute(0, 2, 3, 1).flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared difference of activations.

    Gatys et al. (equation 1) sum and halve: their :math:`\mathcal{L}_{content}` is C·H·W / 2 times this.

    Args:
        features, target: ``[N, C, H, W]``.
    """
    return (_widen(features) - _widen(target)).square().mean()


def style_loss(gram: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared difference of Gram matrices.

    Gatys et al. (equation 4) have :math:`E_l = \frac{1}{4 N_l^2 M_l^2} \sum_{ij} (G_{ij} - A_{ij})^2` over sums; with
    :func:`gram_matrix` dividing by M, that is exactly a quarter of this.

    Args:
        gram: ``[N, C, C]``.
        target: ``[N, C, C]``, or ``[1, C, C]`` for all N.
    """
    return (gram - target.expand_as(gram)).square().mean()


@dataclass(frozen=True)
class GaussianTarget:
    """The normal distribution that activations of a style have at one layer, with what is constant about it.

    Attributes:
        means: ``[1, C]``.
        root: symmetric square root of the covariance, ``[1, C, C]``.
        trace: of the covariance, ``[1]``.
    """

    means: Tensor
    root: Tensor
    trace: Tensor

    @classmethod
    def of(cls, gram: Tensor, means: Tensor) -> GaussianTarget:
        """From second moments ``[1, C, C]`` about 0 and means ``[1, C]``."""
        covariance = _covariance(gram, means)
        values, vectors = torch.linalg.eigh(covariance.double())
        root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.transpose(1, 2)
        return cls(means, root.to(gram.dtype), covariance.diagonal(dim1=1, dim2=2).sum(1))


def wasserstein_loss(gram: Tensor, means: Tensor, target: GaussianTarget) -> Tensor:
    r"""Squared 2-Wasserstein distance of two normal distributions of activations, divided by the channels.

    :math:`\lVert\mu - \mu_t\rVert^2 + \mathrm{tr}(\Sigma + \Sigma_t -
    2 (\Sigma_t^{1/2} \Sigma \Sigma_t^{1/2})^{1/2})` (Olkin and Pukelsheim 1982; as a style loss: Vacher et al. 2020,
    Katherine Crowson's style-transfer-pytorch). Gram matrices mix where activations lie with how they spread; this
    weighs the two as moving one distribution into the other does.

    Args:
        gram: second moments about 0, ``[N, C, C]`` as :func:`gram_matrix` returns them.
        means: ``[N, C]``.
        target: for all N.
    """
    covariance = _covariance(gram, means)
    between = target.root @ covariance @ target.root
    with torch.no_grad():
        # What the eigenvalues would add up to without the difference that rounding spoils where there is no spread.
        scale = between.diagonal(dim1=1, dim2=2).sum(1) + (means[:, None] @ target.root).square().sum((1, 2))
    spread = covariance.diagonal(dim1=1, dim2=2).sum(1) + target.trace - 2 * _TraceOfRoot.apply(between, scale)
    return ((means - target.means).square().sum(1) + spread).mean() / means.shape[1]


def _covariance(gram: Tensor, means: Tensor) -> Tensor:
    return gram - means[:, :, None] * means[:, None, :]


class _TraceOfRoot(torch.autograd.Function):
    """tr(A^½) of symmetric positive semi-definite ``[N, C, C]``; its derivative is A^(-½) / 2.

    Autograd's way through the eigenvectors divides by differences of eigenvalues, many of which are 0 where a layer
    has fewer positions than channels. In the derivative, eigenvalues below a hundred-thousandth of the largest count as
    that, and all below a ten-millionth of ``scale`` ``[N]``: below, rounding decides what they are. Computed in fp64.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, scale: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.transpose(1, 2)).double() / 2)
        ctx.save_for_backward(values, vectors, scale)
        return values.clamp_min(0).sqrt().sum(1).to(matrix.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        values, vectors, scale = ctx.saved_tensors
        floor = torch.maximum(values[:, -1:] * 1e-5, scale[:, None].double() * 1e-7)
        inverse_roots = values.clamp_min(floor).rsqrt().where(floor > 0, 0.0)
        inverse = (vectors * inverse_roots[:, None]) @ vectors.transpose(1, 2)
        return gradient[:, None, None] * inverse.to(gradient.dtype) / 2, None


def total_variation(
    pictures: Tensor,
    form: str = "mean_squared",
    *,
    starting_in: tuple[int, int] | None = None,
    of: tuple[int, int] | None = None,
) -> Tensor:
    r"""Differences of neighbouring pixels, down plus across; 0 for a constant picture.

    Johnson et al. use it (section 3.2) after Mahendran and Vedaldi 2015 with exponent :math:`\beta = 2`.

    Args:
        pictures: ``[N, 3, H, W]``; a side of one pixel adds nothing.
        form: ``mean_squared``: the mean of the squares in each direction; ``sum_squared`` and ``sum_absolute``: the sum
            over one picture, as other tools define it.
        starting_in: count only differences from a pixel in the first so many rows and columns to the next: the part
            of a larger picture, handed over with one row and column more where there is one.
        of: height and width of that larger picture, for the mean.
    """
    pictures = _widen(pictures)
    rows, columns = starting_in or pictures.shape[-2:]
    height, width = of or pictures.shape[-2:]
    n, channels = pictures.shape[:2]
    down = pictures[..., : rows + 1, :columns].diff(dim=-2)
    across = pictures[..., :rows, : columns + 1].diff(dim=-1)
    if form == "sum_absolute":
        return (down.abs().sum() + across.abs().sum()) / n
    down, across = down.square().sum(), across.square().sum()
    if form == "sum_squared":
        return (down + across) / n
    return down / (n * channels * max(height - 1, 1) * width) + across / (n * channels * height * max(width - 1, 1))


def grid_energy(pictures: Tensor, period: int = 4) -> Tensor:
    r"""How much of a regular grid of lines there is: the artefact of networks that enlarge their activations.

    Averages each row over the columns of one phase (column modulo ``period``), and takes the variance over the phases;
    the same for each column. By Parseval that is the picture's spectrum on the lines of the frequencies k / ``period``
    alone. A texture without a fixed raster averages out: photographs and paintings have about 5e-5 at 256 pixels.

    Args:
        pictures: ``[N, 3, H, W]``, both sides at least ``period``.
        period: in pixels; what the body of a transform network is enlarged by.
    """
    energy = pictures.new_zeros((), dtype=torch.float32)
    for lines in (_widen(pictures), _widen(pictures).transpose(-1, -2)):
        whole = lines[..., : lines.shape[-1] // period * period]
        phases = whole.unflatten(-1, (-1, period)).mean(-2)
        energy = energy + phases.var(-1, correction=0).mean()
    return energy


class _Gram(torch.autograd.Function):
    """XᵀX / M of ``[N, M, C]``, summed in fp32.

    The gradient X (dG + dGᵀ) / M is multiplied in X's own dtype. Autograd's derivative of the widened product would
    keep an fp32 copy of every activation, and pass over it twice more.
    """

    @staticmethod
    def forward(ctx, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        wide = _widen(positions)
        return wide.transpose(1, 2) @ wide / positions.shape[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (positions,) = ctx.saved_tensors
        symmetric = (gradient + gradient.transpose(1, 2)) / positions.shape[1]
        return positions @ symmetric.to(positions.dtype)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
