"""VGG-19 read by layer name: pictures in, activations out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import InvalidInput

_CONVOLUTIONS_PER_BLOCK = (2, 2, 4, 4, 4)
_CHANNELS_PER_BLOCK = (64, 128, 256, 512, 512)
POOLINGS = ("max", "average")


def _layer_order() -> tuple[str, ...]:
    names = []
    for block, convolutions in enumerate(_CONVOLUTIONS_PER_BLOCK, start=1):
        for i in range(1, convolutions + 1):
            names += [f"conv{block}_{i}", f"relu{block}_{i}"]
        names.append(f"pool{block}")
    return tuple(names)


LAYERS = _layer_order()
"""Every name that an :class:`Encoder` can be read at, from the picture inwards."""


def check_layers(layers: Iterable[str]) -> tuple[str, ...]:
    """``layers`` as a tuple.

    Raises:
        InvalidInput: none was given, or one does not exist; the message lists those that do.
    """
    layers = tuple(layers)
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        raise InvalidInput(
            f"unknown VGG-19 layer {', '.join(repr(name) for name in unknown)}." if unknown else "no layer was named.",
            hint=f"Layers are: {', '.join(LAYERS)}.",
            field="layers",
        )
    return layers


def channels(layer: str) -> int:
    """Number of channels of the activations at ``layer``."""
    (name,) = check_layers([layer])
    return _CHANNELS_PER_BLOCK[_block(name) - 1]


def receptive_stride(layer: str) -> int:
    """How many picture pixels one activation at ``layer`` stands for along a side (a power of two)."""
    (name,) = check_layers([layer])
    return 2 ** (_block(name) if name.startswith("pool") else _block(name) - 1)


def _block(layer: str) -> int:
    return int(layer.removeprefix("conv").removeprefix("relu").removeprefix("pool")[0])


class Encoder(nn.Module):
    """The convolutions of VGG-19 (Simonyan and Zisserman 2015, configuration E), frozen.

    Normalisation is part of the network: pictures go in as RGB in [0, 1], and a 1×1 convolution with the weights
    ``input.weight`` and ``input.bias`` turns them into what the network was trained on. Convolutions pad with zeros,
    as the original does.

    Args:
        weights: tensors by layer name (``conv1_1.weight`` …) as :func:`shared.weights.load` returns them.
        pooling: ``max`` as trained, or ``average``, which Gatys et al. 2016 (section 2) found to give slightly more
            appealing pictures.
        dtype: type of the convolutions; activations come out in it.
        device: where it runs.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        pooling: str = "max",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise InvalidInput(f"pooling is '{pooling}', expected one of {', '.join(POOLINGS)}.", field="pooling")
        self.pooling = pooling
        self.dtype = dtype
        for name in ("input", *(layer for layer in LAYERS if layer.startswith("conv"))):
            for part in ("weight", "bias"):
                # The first convolution is three products a pixel: in fp32 it keeps the picture's own precision.
                kind = torch.float32 if name == "input" else dtype
                tensor = weights[f"{name}.{part}"].to(device=device, dtype=kind)
                if tensor.dim() == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.input_weight.device

    def forward(self, pictures: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Activations at ``layers``.

        The network is run no deeper than the deepest of them.

        Args:
            pictures: ``[N, 3, H, W]``, RGB in [0, 1].
            layers: names from :data:`LAYERS`.

        Returns:
            ``{layer: [N, C, H', W']}`` in the encoder's dtype.

        Raises:
            InvalidInput: a layer does not exist, or the picture is too small to reach it.
        """
        wanted = set(check_layers(layers))
        deepest = max(wanted, key=LAYERS.index)
        smallest = receptive_stride(deepest)
        if min(pictures.shape[-2:]) < smallest:
            height, width = pictures.shape[-2:]
            raise InvalidInput(
                f"a picture of {width}×{height} pixels is too small for layer {deepest}, "
                f"which needs {smallest}×{smallest}.",
                hint="Use a larger size, or shallower layers.",
                field="size",
            )
        x = F.conv2d(pictures.float(), self.input_weight, self.input_bias)
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        found = {}
        for name in LAYERS[: LAYERS.index(deepest) + 1]:
            if name.startswith("conv"):
                x = F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), padding=1)
            elif name.startswith("relu"):
                # In place only where nobody was promised the values before it.
                x = F.relu(x, inplace=f"conv{name[4:]}" not in wanted)
            else:
                x = F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)
            if name in wanted:
                found[name] = x
        return found
