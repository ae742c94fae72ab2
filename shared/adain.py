"""Arbitrary style transfer in one pass: adaptive instance normalisation and the decoder trained for it.

Huang and Belongie 2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization". Coarser than a
network trained for one style, and far coarser than the optimiser, but it knows every style: a preview, and a start for
the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.architectures import ADAIN_DECODER
from shared.encoders import Encoder

LAYER = "relu4_1"
"""Where the statistics are exchanged and the decoder begins."""

MARGIN = 32
"""Pixels of mirrored surroundings after which :data:`LAYER` no longer sees the encoder's zeros beyond a border."""


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
    encoder: Encoder,
    decoder: AdaINDecoder,
    content: Tensor,
    style: Tensor | Sequence[tuple[Tensor, float]],
    *,
    strength: float = 1.0,
    margin: int = 0,
) -> Tensor:
    """Paint ``content`` with the channel means and deviations of ``style`` (equation 8, and 14 for the strength).

    Args:
        content: ``[1, 3, H, W]``, RGB in [0, 1].
        style: ``[1, 3, H', W']``; or several with a weight each, whose means and deviations are mixed (equation 15:
            what is mixed there is linear in them, so that one pass of the decoder is enough).
        strength: 0 decodes the content as it is, 1 with the style's statistics.
        margin: pixels, a multiple of 8, by which all pictures are mirrored outwards before they are looked at. The
            decoder was trained behind a network with reflected borders; the encoder pads with zeros, which without a
            margin it paints as a dark frame. See :data:`MARGIN`.

    Returns:
        ``[1, 3, H, W]`` in [0, 1].
    """
    height, width = content.shape[-2:]
    # The decoder gives multiples of 8; the rest is mirrored and cut off again.
    features = _activations(encoder, F.pad(content, (0, -width % 8, 0, -height % 8), mode="reflect"), margin)
    deviation, mean = torch.std_mean(features, dim=(-2, -1), keepdim=True)
    styles = [(style, 1.0)] if isinstance(style, Tensor) else style
    total = sum(weight for _, weight in styles)
    wanted_deviation, wanted_mean = torch.zeros_like(deviation), torch.zeros_like(mean)
    for picture, weight in styles:
        its_deviation, its_mean = torch.std_mean(_activations(encoder, picture, margin), dim=(-2, -1), keepdim=True)
        wanted_deviation += weight / total * its_deviation
        wanted_mean += weight / total * its_mean
    normalised = (features - mean) / (deviation + 1e-5) * wanted_deviation + wanted_mean
    painted = decoder(torch.lerp(features, normalised, strength))
    return painted[..., :height, :width].contiguous()


def _activations(encoder: Encoder, picture: Tensor, margin: int) -> Tensor:
    """``[1, 512, H / 8, W / 8]`` of a picture in mirrored surroundings, without those of the surroundings."""
    if not margin:
        return encoder(picture, [LAYER])[LAYER].float()
    rows, columns = (_mirrored(side, margin).to(picture.device) for side in picture.shape[-2:])
    cells = margin // 8
    return encoder(picture[..., rows[:, None], columns], [LAYER])[LAYER].float()[..., cells:-cells, cells:-cells]


def _mirrored(side: int, margin: int) -> Tensor:
    """Indices of a side with its reflection on both ends, which ``F.pad`` only does up to the side's own length."""
    period = 2 * side - 2
    at = torch.arange(-margin, side + margin) % period
    return torch.minimum(at, period - at)
