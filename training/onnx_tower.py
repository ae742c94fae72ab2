"""An image encoder in ONNX as a PyTorch network, so that it can be trained along, and back again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from shared.errors import ModelRefused
from shared.files import write_atomically
from shared.image_encoders import OnnxEncoder
from shared.images import decode

_BATCH = 16


class OnnxTower(nn.Module):
    """A convolutional network read from ONNX; its tensors of more than one number are parameters.

    Args:
        path: of the file.
        output: name of the output that :meth:`forward` gives.

    Raises:
        ModelRefused: the network has an operator that is not in :data:`OPERATORS`.
    """

    def __init__(self, path: Path, output: str):
        super().__init__()
        self._model = onnx.load(path)
        graph = self._model.graph
        self._input, self._output = graph.input[0].name, output
        self._nodes = [node for node in graph.node if node.name or node.output]
        if foreign := sorted({node.op_type for node in self._nodes} - OPERATORS.keys()):
            raise ModelRefused(
                f"'{path.name}' has operators that cannot be trained here: {', '.join(foreign)}.",
                hint="Train with the encoder as it is, without --finetune.",
                field="image_encoder",
            )
        self._names = {tensor.name: f"t{i}" for i, tensor in enumerate(graph.initializer)}
        for tensor in graph.initializer:
            array = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if array.is_floating_point():
                self.register_parameter(self._names[tensor.name], nn.Parameter(array))
            else:
                self.register_buffer(self._names[tensor.name], array)

    def forward(self, pictures: Tensor) -> Tensor:
        """``[N, 3, H, W]``, prepared, → ``[N, D]``."""
        values = {name: getattr(self, own) for name, own in self._names.items()} | {self._input: pictures}
        for node in self._nodes:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            given = [values[name] if name else None for name in node.input]
            values[node.output[0]] = OPERATORS[node.op_type](attributes, *given)
            if node.output[0] == self._output:
                break
        return values[self._output]

    def save(self, path: Path) -> None:
        """Write the network with its present weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            array = getattr(self, self._names[tensor.name]).numpy(force=True)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        write_atomically(path, model.SerializeToString())


@dataclass(frozen=True)
class TunedImages:
    """Pictures that are looked at anew at each step, because the network that looks is trained.

    Attributes:
        paths: N pictures that can be read.
        encoder: prepares them.
        tower: the network.
    """

    paths: tuple[Path, ...]
    encoder: OnnxEncoder
    tower: OnnxTower

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """See :class:`training.embed.Images`."""
        return self._look([self.encoder.preparation(decode(self.paths[row]), rng) for row in rows])

    @torch.no_grad()
    def all(self) -> Tensor:
        """See :class:`training.embed.Images`."""
        parts = [self.paths[start : start + _BATCH] for start in range(0, len(self.paths), _BATCH)]
        return torch.cat([self._look([self.encoder.preparation(decode(path)) for path in part]) for part in parts])

    def _look(self, prepared: list[np.ndarray]) -> Tensor:
        device = next(self.tower.parameters()).device
        return F.normalize(self.tower(torch.from_numpy(np.concatenate(prepared)).to(device)), dim=-1)


def _pads(attributes: Mapping[str, Any]) -> tuple[int, int]:
    """Padding of height and width; ONNX gives both ends, which must agree."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ModelRefused(
            "the network pads its sides unequally, which cannot be trained here.", hint="Train without --finetune."
        )
    return top, left


def _convolve(attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    return F.conv2d(x, weight, bias, tuple(strides), _pads(attributes), tuple(dilations), attributes.get("group", 1))


def _max_pool(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    strides = tuple(attributes.get("strides", (1, 1)))
    ceil = bool(attributes.get("ceil_mode", 0))
    return F.max_pool2d(x, tuple(attributes["kernel_shape"]), strides, _pads(attributes), ceil_mode=ceil)


def _mean(attributes: Mapping[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = attributes["axes"] if axes is None else axes.tolist()
    return x.mean(tuple(chosen), keepdim=bool(attributes.get("keepdims", 1)))


def _gemm(attributes: Mapping[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda attributes, a, b: a + b,
    "Conv": _convolve,
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda attributes, x: x.mean((2, 3), keepdim=True),
    "MaxPool": _max_pool,
    "ReduceMean": _mean,
    "Relu": lambda attributes, x: F.relu(x),
}
"""What a residual network with folded normalisations is made of."""
