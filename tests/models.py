"""Networks and fast models made here, small enough for every test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from shared.files import sha256
from shared.transform_network import TransformNetwork


def random_network(width: str = "quarter", seed: int = 0) -> TransformNetwork:
    """A transform network with every weight drawn.

    A fresh one's normalisations shift by zero, which hides zero padding from a constant picture, and are all equal,
    which lets an exporter share their weights.
    """
    generator = torch.Generator().manual_seed(seed)
    network = TransformNetwork(width).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm2d):
                module.weight += 1
    return network


def card_fields(**changes: object) -> dict[str, object]:
    """What an export does not know by itself."""
    fields = {
        "name": "A Test",
        "styles": [{"title": "Strokes", "artist": "Nobody", "sha256": "0" * 64}],
        "training": {"steps": 1, "seconds": 0.5},
        "data": {"content": "hills", "pictures": 2},
        "created": "2001-02-03",
    }
    return fields | changes


def cluster(centre: list[float], radius: float = 0.5) -> dict[str, object]:
    return {"id": "test", "style_space": "0" * 16, "centre": centre, "radius": radius}


def write_negative(folder: Path, slug: str, **card: object) -> Path:
    """A fast model in ``folder / slug`` that paints the negative, ``1 - pictures``: what it does is easy to check."""
    model = folder / slug
    model.mkdir(parents=True)
    shape = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["one", "pictures"], ["painted"])],
        "negative",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("painted", TensorProto.FLOAT, shape)],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), model / "model.onnx"
    )
    fields = {
        "slug": slug,
        "width": "none",
        "parameters": 1,
        "stride": 1,
        "min_side": 32,
        "opset": 18,
        "parity": {"max_difference": 0.0, "shapes": [[1, 32, 32]]},
        "sha256": sha256(model / "model.onnx"),
    }
    write_card(model, card_fields(**fields) | card)
    return model


def read_raw_card(model: Path) -> dict[str, object]:
    return json.loads((model / "card.json").read_text(encoding="utf-8"))


def write_card(model: Path, card: Mapping[str, object]) -> None:
    (model / "card.json").write_text(json.dumps(card), encoding="utf-8")


def write_extractor(
    path: Path,
    *,
    shape: tuple | list = ("n", 3, "h", "w"),
    kind: int = TensorProto.FLOAT,
    inputs: int = 1,
) -> Path:
    """A feature extractor: ``features`` are mean colours ``[N, 3]``, ``with_one`` has a 1 after them, ``map`` is 4-d.

    Args:
        shape: of the input; names are dynamic.
        kind: type of the numbers.
        inputs: how many there are; all but the first are added to it.
    """
    names = [f"pictures{i}" for i in range(inputs)]
    one = onnx.numpy_helper.from_array(np.ones((1, 1), helper.tensor_dtype_to_np_dtype(kind)), "one")
    axes = list(range(2, len(shape)))
    nodes = [
        helper.make_node("Sum", names, ["map"]),
        helper.make_node("ReduceMean", ["map"], ["features"], axes=axes, keepdims=0),
        helper.make_node("Shape", ["features"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "last"], ["column"], axis=0),
        helper.make_node("Expand", ["one", "column"], ["ones"]),
        helper.make_node("Concat", ["features", "ones"], ["with_one"], axis=1),
    ]
    outputs = {"features": ["n", shape[1]], "with_one": ["n", "k"], "map": list(shape)}
    graph = helper.make_graph(
        nodes,
        "extractor",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name in names],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [one, helper.make_tensor("last", TensorProto.INT64, [1], [1])],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
