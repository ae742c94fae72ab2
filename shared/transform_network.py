"""The feed-forward network that paints a picture in one pass (Johnson, Alahi and Fei-Fei 2016).

Differences from the paper's architecture (its supplementary material), each with its reason:

* instance normalisation instead of batch normalisation (Ulyanov et al. 2016: better pictures);
* reflection padding everywhere (zero padding draws dark frames);
* nearest-neighbour enlargement and a convolution instead of a transposed convolution (Odena et al. 2016: no
  checkerboard);
* a sigmoid at the end, so that the output is a picture in [0, 1] by construction;
* the enlarged activations are cropped to the size that the matching reduction came from, so that the output has
  exactly the size of the input, whatever it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import InvalidInput

WIDTHS = {"full": 32, "half": 16, "quarter": 8}
"""Filters of the first convolution by width preset; all others are multiples of it. ``full`` is the paper's."""

STRIDE = 4
"""Pixels along a side that one activation of the body stands for."""

MIN_SIDE = 32
"""The smallest side, in pixels, that the network is meant for."""

RESIDUAL_BLOCKS = 5


class TransformNetwork(nn.Module):
    """c9s1-32, d64, d128, five residual blocks of 128, u64, u32, c9s1-3 at full width.

    Args:
        width: a key of :data:`WIDTHS`.
    """

    def __init__(self, width: str = "half"):
        super().__init__()
        if width not in WIDTHS:
            raise InvalidInput(f"width is '{width}', expected one of {', '.join(WIDTHS)}.", field="width")
        self.width = width
        n = WIDTHS[width]
        self.enter = _ConvNorm(3, n, kernel=9)
        self.down1 = _ConvNorm(n, 2 * n, kernel=3, stride=2)
        self.down2 = _ConvNorm(2 * n, 4 * n, kernel=3, stride=2)
        self.body = nn.Sequential(*(_Residual(4 * n) for _ in range(RESIDUAL_BLOCKS)))
        self.up1 = _ConvNorm(4 * n, 2 * n, kernel=3)
        self.up2 = _ConvNorm(2 * n, n, kernel=3)
        self.leave = _ReflectConv(n, 3, kernel=9)

    def forward(self, pictures: Tensor, scales: Tensor | None = None) -> Tensor:
        """Paint.

        Args:
            pictures: ``[N, 3, H, W]``, RGB in [0, 1], both sides at least :data:`MIN_SIDE`.
            scales: ``[N, A]``, what each picture's normalised activations are multiplied by and shifted to, as
                :meth:`scales` orders it, in place of the network's own (conditional instance normalisation, Dumoulin
                et al. 2017).

        Returns:
            Pictures of the same shape and range.
        """
        given = None if scales is None else self._by_layer(scales)
        full = F.relu(self.enter(pictures, given))
        halved = F.relu(self.down1(full, given))
        x = F.relu(self.down2(halved, given))
        for block in self.body:
            x = block(x, given)
        x = F.relu(self.up1(_enlarge_to(x, halved), given))
        x = F.relu(self.up2(_enlarge_to(x, full), given))
        return self.leave(x).float().sigmoid()

    def norms(self) -> list[nn.InstanceNorm2d]:
        """The normalisations, in the order in which pictures pass them."""
        return [module for module in self.modules() if isinstance(module, nn.InstanceNorm2d)]

    def scales(self) -> Tensor:
        """The network's own scales and shifts ``[A]``, layer by layer: 1,600 numbers at half width."""
        return torch.cat([part.detach() for norm in self.norms() for part in (norm.weight, norm.bias)])

    def with_scales(self, scales: Tensor) -> TransformNetwork:
        """A copy of the network that has ``scales`` ``[A]`` for its own."""
        other = copy.deepcopy(self)
        with torch.no_grad():
            for norm, (weight, bias) in zip(other.norms(), self._by_layer(scales[None]), strict=True):
                norm.weight.copy_(weight[0])
                norm.bias.copy_(bias[0])
        return other

    def _by_layer(self, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        channels = [norm.num_features for norm in self.norms() for _ in range(2)]
        parts = iter(scales.split(channels, dim=1))
        return zip(parts, parts, strict=True)


class SharedNetwork(nn.Module):
    """One body for many styles: a transform network, and scales for each style (Dumoulin et al. 2017).

    Args:
        network: the body; its own scales are where every style starts from.
        styles: number of styles.
    """

    def __init__(self, network: TransformNetwork, styles: int):
        super().__init__()
        self.network = network
        self.styles = nn.Parameter(network.scales().repeat(styles, 1))
        for norm in network.norms():
            # Every style has its own instead.
            norm.requires_grad_(False)

    def forward(self, pictures: Tensor, mixture: Tensor) -> Tensor:
        """Paint ``[N, 3, H, W]``, each picture in a mixture of the styles: ``[N, S]``, rows that sum to 1."""
        return self.network(pictures, mixture @ self.styles)

    def network_of(self, mixture: Tensor) -> TransformNetwork:
        """The transform network of one mixture ``[S]``: the same function as this one with that mixture."""
        return self.network.with_scales(mixture @ self.styles.detach())


class _ReflectConv(nn.Conv2d):
    """A convolution that keeps the size (divided by the stride, rounded up), padded by reflection."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode="reflect", bias=bias)


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1):
        super().__init__()
        # The normalisation that follows subtracts any bias again.
        self.conv = _ReflectConv(inputs, outputs, kernel=kernel, stride=stride, bias=False)
        self.norm = nn.InstanceNorm2d(outputs, affine=True)

    def forward(self, x: Tensor, scales: Iterator[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        x = self.conv(x)
        if scales is None:
            return self.norm(x)
        weight, bias = next(scales)
        return F.instance_norm(x, eps=self.norm.eps) * weight[:, :, None, None] + bias[:, :, None, None]


class _Residual(nn.Module):
    """Two convolutions beside an identity, without a rectifier after the sum (Gross and Wilber 2016)."""

    def __init__(self, filters: int):
        super().__init__()
        self.first = _ConvNorm(filters, filters, kernel=3)
        self.second = _ConvNorm(filters, filters, kernel=3)

    def forward(self, x: Tensor, scales: Iterator[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        return x + self.second(F.relu(self.first(x, scales)), scales)


def _enlarge_to(x: Tensor, like: Tensor) -> Tensor:
    """``x`` twice as large, cropped to the height and width of ``like`` (which is at most one pixel smaller)."""
    height, width = like.shape[-2:]
    return F.interpolate(x, scale_factor=2, mode="nearest")[..., :height, :width]
