"""Pretrained networks read by layer name: pictures in, activations out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import weights as pretrained
from shared.architectures import VGG19, Architecture, Layer
from shared.devices import pick_device, pick_dtype
from shared.errors import InvalidInput

POOLINGS = ("max", "average")


class Encoder(nn.Module):
    """The convolutions of a pretrained network, frozen.

    Normalisation is part of the network: pictures go in as RGB in [0, 1], and a 1×1 convolution with the weights
    ``input.weight`` and ``input.bias`` turns them into what the network was trained on. Convolutions pad with zeros,
    as the originals do. Batch normalisation is expected to have been folded into the convolutions.

    Args:
        weights: tensors by layer name (``conv1_1.weight`` …) as :func:`shared.weights.load` returns them.
        architecture: what they are the weights of.
        pooling: ``max`` as trained, or ``average``, which Gatys et al. 2016 (section 2) found to give slightly more
            appealing pictures.
        dtype: type of the convolutions; activations come out in it.
        device: where it runs.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        architecture: Architecture = VGG19,
        *,
        pooling: str = "max",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise InvalidInput(f"pooling is '{pooling}', expected one of {', '.join(POOLINGS)}.", field="pooling")
        self.architecture = architecture
        self.pooling = pooling
        self.dtype = dtype
        for name in ("input", *architecture.convolutions):
            for part in ("weight", "bias"):
                # The first convolution is three products a pixel: in fp32 it keeps the picture's own precision.
                kind = torch.float32 if name == "input" else dtype
                tensor = weights[f"{name}.{part}"].to(device=device, dtype=kind)
                if tensor.dim() == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(_buffer(name, part), tensor, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.input_weight.device

    def forward(self, pictures: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Activations at ``layers``.

        The network is run no deeper than the deepest of them.

        Args:
            pictures: ``[N, 3, H, W]``, RGB in [0, 1].
            layers: names from the architecture.

        Returns:
            ``{layer: [N, C, H', W']}`` in the encoder's dtype.

        Raises:
            InvalidInput: a layer does not exist, or the picture is too small to reach it.
        """
        wanted = set(layers)
        steps = self.architecture.through(wanted)
        smallest = steps[-1].scale
        if min(pictures.shape[-2:]) < smallest:
            height, width = pictures.shape[-2:]
            raise InvalidInput(
                f"a picture of {width}×{height} pixels is too small for layer {steps[-1].name}, "
                f"which needs {smallest}×{smallest}.",
                hint="Use a larger size, or shallower layers.",
                field="size",
            )
        x = F.conv2d(pictures.float(), self.input_weight, self.input_bias)
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        before = None
        for step in steps:
            # A rectifier writes over its input only where nobody was promised the values before it.
            x = self._run(step, x, keep=before in wanted)
            if step.name in wanted:
                found[step.name] = x
            before = step.name
        return found

    def _run(self, step: Layer, x: Tensor, keep: bool) -> Tensor:
        if step.kind == "conv":
            return self._convolve(step.name, x, step.stride, step.padding)
        if step.kind == "relu":
            return F.relu(x, inplace=not keep)
        if step.kind == "pool":
            if self.pooling == "max":
                return F.max_pool2d(x, step.kernel, step.stride, step.padding)
            return F.avg_pool2d(x, step.kernel, step.stride, step.padding, count_include_pad=False)
        return self._bottleneck(step, x)

    def _bottleneck(self, step: Layer, x: Tensor) -> Tensor:
        """A block of ResNet: 1×1, 3×3 and 1×1 convolutions beside a shortcut (He et al. 2016, figure 5 right)."""
        y = F.relu(self._convolve(f"{step.name}.conv1", x), inplace=True)
        y = F.relu(self._convolve(f"{step.name}.conv2", y, step.stride, padding=1), inplace=True)
        y = self._convolve(f"{step.name}.conv3", y)
        if f"{step.name}.shortcut" in self.architecture.convolutions:
            x = self._convolve(f"{step.name}.shortcut", x, step.stride)
        return F.relu(x + y, inplace=True)

    def _convolve(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = getattr(self, _buffer(name, "weight")), getattr(self, _buffer(name, "bias"))
        return F.conv2d(x, weight, bias, stride, padding)


def load_encoder(
    name: str = "vgg19",
    *,
    device: str = "auto",
    pooling: str = "max",
    precision: str = "auto",
    progress: pretrained.Progress | None = None,
) -> Encoder:
    """The encoder with the weights ``name``, fetched where they are not on this machine.

    Args:
        device: see :func:`shared.devices.pick_device`.
        precision: see :func:`shared.devices.pick_dtype`; ``auto`` takes what is fastest there.
        progress: called while fetching.

    Raises:
        NotFound: no weights have that name.
        WeightsUnavailable: they could not be had.
        EngineUnavailable: the device is not there.
    """
    target = pick_device(device)
    tensors = pretrained.load(name, progress=progress)
    architecture, dtype = pretrained.architecture(name), pick_dtype(precision, target)
    return Encoder(tensors, architecture, pooling=pooling, dtype=dtype, device=target)


def _buffer(name: str, part: str) -> str:
    return f"{name}_{part}".replace(".", "_")
