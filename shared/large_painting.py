"""Painting a picture that is too large for one pass: the same function, in strips, with the statistics of the whole.

A transform network normalises every layer by the mean and the variance of the whole picture, so strips cannot simply be
painted one by one: each would get a style of its own. Statistics estimated from a sample of the picture are not enough
either (from 44 % of a picture's pixels, the painting differed by 30 levels at its worst thousandth). So the layers are
run one after the other over all strips. What a layer makes is kept in a temporary file, as float16; what costs less to
make again than to keep, the activations at full size, is made again. Memory depends on the strip alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shared.engines import Engine
from shared.errors import ModelRefused
from shared.graphs import four_at_once, weights_of

STRIP_PIXELS = 1 << 19
"""Pixels of the picture that a strip stands for, at whatever size the activations have there."""

_LEAST_ROWS = 8
_EPSILON = 1e-5
_BLOCKS = 5

OpenGraph = Callable[[bytes], Engine]


@dataclass(frozen=True)
class _Step:
    """A convolution, after what comes before it in its stage.

    Attributes:
        conv: name of its weights.
        norm: the normalisation of its input, where that is what another convolution made.
        relu: whether a rectifier follows that.
        enlarge: whether the input is enlarged twofold, to the size of ``enlarge`` times smaller than the picture.
    """

    conv: str
    stride: int = 1
    norm: str = ""
    relu: bool = True
    enlarge: int = 0


@dataclass(frozen=True)
class _Stage:
    """What one pass over the strips computes.

    Attributes:
        source, target: names of the activations read and written; no target: only statistics are wanted.
        state: the sum that the source is added to first (a residual block's), read and, updated, written.
    """

    steps: tuple[_Step, ...]
    source: str
    target: str = ""
    reads_state: bool = False
    writes_state: bool = False

    @property
    def last(self) -> str:
        return self.steps[-1].conv


def _stages() -> list[_Stage]:
    enter = _Step("enter")
    down1 = _Step("down1", stride=2, norm="enter")
    stages = [
        _Stage((enter,), "picture"),
        _Stage((enter, down1), "picture", "half"),
        _Stage((_Step("down2", stride=2, norm="down1"),), "half", "raw"),
    ]
    before = "down2"
    for i in range(_BLOCKS):
        first, second = f"body.{i}.first", f"body.{i}.second"
        begin = _Step(first, norm=before, relu=i == 0)
        stages.append(_Stage((begin,), "raw", "raw", reads_state=i > 0, writes_state=True))
        stages.append(_Stage((_Step(second, norm=first),), "raw", "raw"))
        before = second
    up2 = _Step("up2", norm="up1", enlarge=1)
    stages.append(_Stage((_Step("up1", norm=before, relu=False, enlarge=2),), "raw", "half", reads_state=True))
    stages.append(_Stage((up2,), "half"))
    stages.append(_Stage((up2, _Step("leave", norm="up2")), "half", "painting"))
    return stages


_SHRUNK = {"picture": 1, "half": 2, "raw": 4, "painting": 1}
"""How many times smaller than the picture the activations of a name are."""


class LargePainter:
    """Paints large pictures with one network.

    Args:
        data: the network's file, one that :mod:`training.export` wrote.
        open_graph: opens a graph on the engine that shall run it.
        strip_pixels: see :data:`STRIP_PIXELS`.

    Raises:
        ModelRefused: the file holds another kind of network.
    """

    def __init__(self, data: bytes, open_graph: OpenGraph, *, strip_pixels: int = STRIP_PIXELS):
        self._weights = weights_of(onnx.load_model_from_string(data))
        self._open, self._strip_pixels = open_graph, strip_pixels
        wanted = {f"{step.conv}.{kind}" for stage in _stages() for step in stage.steps for kind in _kinds(step.conv)}
        if missing := wanted - self._weights.keys():
            raise ModelRefused(
                f"this network cannot paint large pictures: it has no {min(missing)}.",
                hint="Ask for a smaller size, or export the network with `lienzo-train export`.",
            )

    def paint(
        self,
        height: int,
        width: int,
        read: Callable[[int, int], np.ndarray],
        write: Callable[[int, np.ndarray], None],
        *,
        on_strip: Callable[[int, int], None] | None = None,
    ) -> None:
        """Paint a picture of ``height`` × ``width``.

        Args:
            read: the picture's rows from one to before another, ``uint8 [rows, width, 3]``; asked for twice.
            write: takes the painting's rows from one on, of the same kind, in order.
            on_strip: told how many strips are done, and how many there are.
        """
        stages = _stages()
        sizes = {shrunk: (-(-height // shrunk), -(-width // shrunk)) for shrunk in (1, 2, 4)}
        strips = [self._strips(sizes, stage) for stage in stages]
        done, total = 0, sum(map(len, strips))
        statistics: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        with _Scratch({name: sizes[_SHRUNK[name]] for name in ("half", "raw")}, self._channels()) as scratch:
            for stage, spans in zip(stages, strips, strict=True):
                engine = self._open(self._graph(stage, statistics))
                moments: list[tuple[np.ndarray, np.ndarray]] = []
                for first, last in spans:
                    (low, high), geometry = _needed(stage, first, last, sizes)
                    rows = read(low, high) if stage.source == "picture" else scratch.read(stage.source, low, high)
                    inputs = {"rows": rows[None], **geometry}
                    if stage.reads_state:
                        inputs["state"] = scratch.read("state", low, high)[None]
                    outputs = dict(zip(_outputs(stage), engine.run(inputs), strict=True))
                    if stage.target == "painting":
                        write(first, outputs["out"][0])
                    else:
                        moments.append((outputs["mean"][0], outputs["length"][0]))
                    # A strip is written when the next one has read its rows: it overwrites what it was made of.
                    scratch.flush()
                    if stage.target in ("half", "raw"):
                        scratch.write_later(stage.target, first, outputs["out"][0])
                    if stage.writes_state:
                        kept = outputs["sum"][0]
                        scratch.write_later("state", first, kept[:, first - low : last - low])
                    done += 1
                    if on_strip:
                        on_strip(done, total)
                scratch.flush()
                if stage.target != "painting":
                    width_there = sizes[_shrunk_after(stage)][1]
                    statistics[stage.last] = self._scale_and_shift(stage.last, moments, width_there)

    def _strips(self, sizes: Mapping[int, tuple[int, int]], stage: _Stage) -> list[tuple[int, int]]:
        """Rows of the stage's result by strip, as even as can be."""
        shrunk = _shrunk_after(stage)
        height, width = sizes[shrunk]
        rows = max(_LEAST_ROWS, self._strip_pixels // (width * shrunk**2))
        count = max(1, height // rows)
        return list(pairwise(height * i // count for i in range(count + 1)))

    def _channels(self) -> dict[str, int]:
        return {
            name: self._weights[f"{conv}.conv.weight"].shape[0] for name, conv in (("half", "down1"), ("raw", "down2"))
        }

    def _scale_and_shift(
        self, norm: str, moments: list[tuple[np.ndarray, np.ndarray]], width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What an instance normalisation multiplies by and adds, ``[1, C, 1, 1]`` each.

        Args:
            moments: mean and Euclidean length of each row of activations, ``[C, rows]``, strip by strip.
            width: of a row.
        """
        means, lengths = (np.concatenate(parts, axis=1).astype(np.float64) for parts in zip(*moments, strict=True))
        mean = means.mean(axis=1)
        variance = np.maximum((lengths**2 / width).mean(axis=1) - mean**2, 0)
        scale = self._weights[f"{norm}.norm.weight"] / np.sqrt(variance + _EPSILON)
        shift = self._weights[f"{norm}.norm.bias"] - mean * scale
        return tuple(each.astype(np.float32)[None, :, None, None] for each in (scale, shift))

    def _graph(self, stage: _Stage, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
        """The stage as a network of its own, what its normalisations multiply by and add made part of it.

        Activations come and go as float16 ``[1, channels, rows, width]``, the picture and the painting as uint8
        ``[1, rows, width, 3]``.
        """
        build = _Build(self._weights)
        picture = stage.source == "picture"
        if picture:
            x = build.input("rows", TensorProto.UINT8, [1, None, None, 3])
            x = build.node("Cast", [build.node("Transpose", [x], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
            x = build.node("Div", [x, build.constant(np.float32(255))])
        else:
            shape = [1, self._channels()[stage.source], None, None]
            x = build.node("Cast", [build.input("rows", TensorProto.FLOAT16, shape)], to=TensorProto.FLOAT)
        for step in stage.steps:
            if step.norm:
                scale, shift = map(build.constant, statistics[step.norm])
                x = build.node("Add", [build.node("Mul", [x, scale]), shift])
                if step.relu:
                    x = build.node("Relu", [x])
            if stage.reads_state:
                state = build.input("state", TensorProto.FLOAT16, shape)
                x = build.node("Add", [build.node("Cast", [state], to=TensorProto.FLOAT), x])
            if stage.writes_state:
                build.output("sum", build.node("Cast", [x], to=TensorProto.FLOAT16), TensorProto.FLOAT16)
            x = build.convolution(x, step)
        if stage.target == "painting":
            x = build.node("Mul", [x, build.constant(np.float32(255))])
            x = build.node("Cast", [build.node("Round", [x])], to=TensorProto.UINT8)
            build.output("out", build.node("Transpose", [x], perm=[0, 2, 3, 1]), TensorProto.UINT8)
        else:
            if stage.target:
                build.output("out", build.node("Cast", [x], to=TensorProto.FLOAT16), TensorProto.FLOAT16)
            axes = build.constant(np.array([3]))
            build.output("mean", build.node("ReduceMean", [x, axes], keepdims=0), TensorProto.FLOAT)
            build.output("length", build.node("ReduceL2", [x, axes], keepdims=0), TensorProto.FLOAT)
        return build.finish(_outputs(stage))


def _kinds(conv: str) -> tuple[str, ...]:
    return ("weight", "bias") if conv == "leave" else ("conv.weight", "norm.weight", "norm.bias")


def _outputs(stage: _Stage) -> list[str]:
    if stage.target == "painting":
        return ["out"]
    return [*(["sum"] if stage.writes_state else []), *(["out"] if stage.target else []), "mean", "length"]


def _kernel(conv: str) -> int:
    return 9 if conv in ("enter", "leave") else 3


def _shrunk_after(stage: _Stage) -> int:
    """How many times smaller than the picture the stage's result is."""
    shrunk = _SHRUNK[stage.source]
    for step in stage.steps:
        shrunk = (step.enlarge or shrunk) * step.stride
    return shrunk


def _needed(
    stage: _Stage, first: int, last: int, sizes: Mapping[int, tuple[int, int]]
) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
    """The rows of the source that the result's rows ``first`` to ``last`` are made of, and how each step pads and cuts.

    Inside the picture a strip has real rows around it; at the picture's edge, and there alone, each convolution's
    input is reflected.
    """
    shrunk, geometry = _shrunk_after(stage), {}
    low, high = first, last
    for step in reversed(stage.steps):
        around = _kernel(step.conv) // 2
        shrunk //= step.stride
        height, width = sizes[shrunk]
        low, high = low * step.stride - around, (high - 1) * step.stride + around + 1
        top, bottom = max(0, -low), max(0, high - height)
        geometry[f"pad.{step.conv}"] = np.array([0, 0, top, around, 0, 0, bottom, around])
        low, high = low + top, high - bottom
        if step.conv == "leave":
            geometry["cut.leave"] = np.array([last - first, width])
        if step.enlarge:
            start = low // 2 * 2
            geometry[f"cut.{step.conv}"] = np.array([[low - start, 0], [high - start, width]])
            low, high, shrunk = start // 2, -(-high // 2), shrunk * 2
    return (low, high), geometry


class _Build:
    """A graph under construction; names of values are made up as it grows."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: dict[str, onnx.ValueInfoProto] = {}
        self._constants: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"value.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def input(self, name: str, kind: int, shape: list[int | None]) -> str:
        self._inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"constant.{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def output(self, name: str, value: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs[name] = helper.make_tensor_value_info(name, kind, None)

    def convolution(self, x: str, step: _Step) -> str:
        if step.enlarge:
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            x = self.node(
                "Resize",
                [x, "", scales],
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )
            cut = self.input(f"cut.{step.conv}", TensorProto.INT64, [2, 2])
            ends = [self.node("Gather", [cut, self.constant(np.int64(i))]) for i in range(2)]
            x = self.node("Slice", [x, *ends, self.constant(np.array([2, 3]))])
        x = self.node("Pad", [x, self.input(f"pad.{step.conv}", TensorProto.INT64, [8])], mode="reflect")
        if step.conv != "leave":
            kernel = self.constant(self._weights[f"{step.conv}.conv.weight"])
            return self.node("Conv", [x, kernel], strides=[step.stride, step.stride])
        kernel = self.constant(four_at_once(self._weights["leave.weight"]))
        bias = self.constant(np.tile(self._weights["leave.bias"], 4))
        x = self.node("Conv", [x, kernel, bias], strides=[2, 2], pads=[0, 0, 1, 1])
        x = self.node("DepthToSpace", [self.node("Sigmoid", [x])], blocksize=2)
        end = self.input("cut.leave", TensorProto.INT64, [2])
        return self.node("Slice", [x, self.constant(np.zeros(2, np.int64)), end, self.constant(np.array([2, 3]))])

    def finish(self, outputs: list[str]) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "stage",
            list(self._inputs.values()),
            [self._outputs[name] for name in outputs],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


class _Scratch:
    """Activations by name in temporary files, ``float16 [channels, rows, width]``, read and written by rows."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], channels: Mapping[str, int]):
        shapes = {name: (channels[name], *size) for name, size in sizes.items()}
        self._shapes = {**shapes, "state": shapes["raw"]}
        self._waiting: list[tuple[str, int, np.ndarray]] = []

    def __enter__(self) -> _Scratch:
        self._files = {name: tempfile.TemporaryFile(buffering=0) for name in self._shapes}  # noqa: SIM115
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def read(self, name: str, low: int, high: int) -> np.ndarray:
        channels, _, width = self._shapes[name]
        rows = np.empty((channels, high - low, width), np.float16)
        for offset, channel in zip(self._offsets(name, low), rows, strict=True):
            self._files[name].seek(offset)
            if self._files[name].readinto(channel) != channel.nbytes:
                raise OSError("the temporary file of a large painting is cut short")
        return rows

    def write_later(self, name: str, low: int, rows: np.ndarray) -> None:
        """Write rows from ``low`` on when :meth:`flush` is called."""
        self._waiting.append((name, low, rows))

    def flush(self) -> None:
        for name, low, rows in self._waiting:
            for offset, channel in zip(self._offsets(name, low), rows, strict=True):
                self._files[name].seek(offset)
                if self._files[name].write(channel) != channel.nbytes:
                    raise OSError(f"'{tempfile.gettempdir()}' is full: a large painting needs 32 bytes a pixel there")
        self._waiting.clear()

    def _offsets(self, name: str, low: int) -> list[int]:
        """Where row ``low`` of each channel begins, in bytes."""
        channels, height, width = self._shapes[name]
        return [2 * width * (channel * height + low) for channel in range(channels)]
