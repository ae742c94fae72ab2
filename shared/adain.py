"""Arbitrary style transfer in one pass: adaptive instance normalisation and the decoder trained for it.

Huang and Belongie 2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization". Coarser than a
network trained for one style, and far coarser than the optimiser, but it knows every style: a start for the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.architectures import ADAIN_DECODER
from shared.encoders import Encoder

LAYER = "relu4_1"
"""Where the statistics are exchanged and the decoder begins."""


class AdaINDecoder(nn.Module):
    """From activations at ``relu4_1`` back to pixels: VGG-19 mirrored, with reflected borders, enlarging by repetition.

    Args:
        weights: tensors by layer name, as :func:`shared.weights.load` returns them for ``adain-decoder``.
        dtype: type of the convolutions.
        device: where it runs.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.dtype = dtype
        for name in ADAIN_DECODER.convolutions:
            for part in ("weight", "bias"):
                tensor = weights[f"{name}.{part}"].to(device=device, dtype=dtype)
                if tensor.dim() == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, 512, H, W]`` as pictures ``[N, 3, 8 H, 8 W]`` in [0, 1]."""
        x = features.to(self.dtype)
        for name in ADAIN_DECODER.convolutions:
            x = F.pad(x, (1, 1, 1, 1), mode="reflect")
            x = F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))
            if name != "conv1_1":
                x = F.relu(x, inplace=True)
                if name.endswith("_1"):
                    x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x.float().clamp(0, 1)


@torch.no_grad()
def paint_by_statistics(
    encoder: Encoder, decoder: AdaINDecoder, content: Tensor, style: Tensor, *, strength: float = 1.0
) -> Tensor:
    """Paint ``content`` with the channel means and deviations of ``style`` (equation 8, and 14 for the strength).

    Args:
        content: ``[1, 3, H, W]``, RGB in [0, 1].
        style: ``[1, 3, H', W']``.
        strength: 0 decodes the content as it is, 1 with the style's statistics.

    Returns:
        ``[1, 3, H, W]`` in [0, 1].
    """
    height, width = content.shape[-2:]
    # The decoder gives multiples of 8; the rest is mirrored and cut off again.
    padded = F.pad(content, (0, -width % 8, 0, -height % 8), mode="reflect")
    features, wanted = (encoder(picture, [LAYER])[LAYER].float() for picture in (padded, style))
    deviation, mean = torch.std_mean(features, dim=(-2, -1), keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(wanted, dim=(-2, -1), keepdim=True)
    normalised = (features - mean) / (deviation + 1e-5) * wanted_deviation + wanted_mean
    painted = decoder(torch.lerp(features, normalised, strength))
    return painted[..., :height, :width].contiguous()
