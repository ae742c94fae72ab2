"""The losses of neural style transfer, as pure functions of tensors.

Sources: Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks" (content and style);
Johnson, Alahi and Fei-Fei 2016, "Perceptual Losses for Real-Time Style Transfer" (total variation as a regulariser).

Every loss is a mean, so that its weight means the same at every picture size. Half-precision activations are
widened first: losses are always fp32 (or fp64).
"""

from __future__ import annotations

import torch
from torch import Tensor


def gram_matrix(features: Tensor) -> Tensor:
    r"""Correlations between channels, :math:`G_{ij} = \frac{1}{M} \sum_k F_{ik} F_{jk}`, with M = H·W positions.

    Gatys et al. (equation 3) leave out 1/M and divide by M² in the loss; dividing here gives the same loss when both
    pictures have one size, and a sensible one when they do not.

    Args:
        features: ``[N, C, H, W]``.

    Returns:
        ``[N, C, C]``, symmetric and positive semi-definite.
    """
    n, c, h, w = features.shape
    if features.is_contiguous(memory_format=torch.channels_last):
        # The same sums, without moving the activations into another order first.
        positions = features.permute(0, 2, 3, 1).reshape(n, h * w, c)
    else:
        positions = features.reshape(n, c, h * w).transpose(1, 2)
    return _Gram.apply(positions)


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


def total_variation(pictures: Tensor) -> Tensor:
    r"""Mean squared difference of neighbouring pixels, down plus across; 0 for a constant picture.

    Johnson et al. use it (section 3.2) after Mahendran and Vedaldi 2015 with exponent :math:`\beta = 2`.

    Args:
        pictures: ``[N, 3, H, W]``; a side of one pixel adds nothing.
    """
    pictures = _widen(pictures)
    terms = (pictures.diff(dim=dim).square() for dim in (-2, -1) if pictures.shape[dim] > 1)
    return sum((term.mean() for term in terms), start=pictures.new_zeros(()))


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
