"""Pictures as vectors: one interface to the style embedding, to ResNets and to any ONNX feature extractor.

A *spec* names an encoder:

=======================  =============================================================================================
``style``                VGG-19 channel statistics projected by PCA (:mod:`shared.style_space`)
``resnet50``             average pool, 2048 numbers; prepared as the thesis does for style retrieval (:data:`THESIS`)
``resnet50:pool``        the same, prepared as the network was trained (:data:`IMAGENET`)
``resnet50:logits``      the 1000 numbers before the softmax, prepared likewise
``resnet152`` …          with the same outputs
``FILE.onnx[:OUTPUT]``   a network of one's own: normalised RGB ``[N, 3, H, W]`` in, ``[N, K]`` out
``A+B``                  several of these side by side, each with the same weight in the cosine
=======================  =============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from shared import weights
from shared.devices import pick_device, pick_dtype
from shared.encoders import Encoder, load_encoder
from shared.errors import InvalidInput, ModelRefused, NotFound, WeightsUnavailable
from shared.files import sha256
from shared.gallery_index import ImageEncoder
from shared.images import to_array
from shared.onnx_runtime import open_session
from shared.style_space import StyleEncoder, StyleSpace

STYLE = "style"
RESNETS = ("resnet50", "resnet152")
OUTPUTS = ("pool", "logits")
BATCH = 16
"""Pictures that go through a network together."""


_ONNX = re.compile(r"(.+\.onnx)(?::(.*))?", re.IGNORECASE | re.DOTALL)
# Names first, so that what follows one is a part of its own; a plus in a file's path does not end it.
_PART = re.compile(r"((?:style|resnet\d+)(?::\w+)?|.+?\.onnx(?::[^+]*)?|.+)(?:\+|$)", re.IGNORECASE | re.DOTALL)


def open_encoder(
    spec: str,
    *,
    device: str = "auto",
    vgg19: Callable[[], Encoder] | None = None,
    progress: weights.Progress | None = None,
) -> ImageEncoder:
    """The encoder that ``spec`` names, with its network loaded; the module's docstring lists what can be named.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        vgg19: makes the VGG-19 of the style embedding at the first picture, for callers who have one anyway.
        progress: called while weights are fetched.

    Raises:
        InvalidInput: nothing is called that.
        NotFound: there is no such ONNX file.
        ModelRefused: the ONNX file is no feature extractor.
        WeightsUnavailable: the weights could not be had; the hint says how to bring them.
    """
    if len(parts := _PART.findall(spec)) > 1:
        opened = (open_encoder(part, device=device, vgg19=vgg19, progress=progress) for part in parts)
        return JoinedEncoder(tuple(opened))
    if network := _ONNX.fullmatch(spec):
        return OnnxEncoder(Path(network[1]), network[2], device=device)
    name, _, output = spec.partition(":")
    try:
        if spec == STYLE:
            if vgg19 is None:
                encoder = load_encoder(device=device, progress=progress)
                return StyleEncoder(StyleSpace.load(), lambda: encoder)
            return StyleEncoder(StyleSpace.load(), vgg19)
        if name in RESNETS and output in ("", *OUTPUTS):
            return ResNetEncoder(name, output or None, device=device, progress=progress)
    except WeightsUnavailable as error:
        raise WeightsUnavailable(
            error.message, hint=f"{error.hint} Or name another encoder: a file NETWORK.onnx.", field="encoder"
        ) from error
    named = ", ".join((STYLE, *RESNETS, *(f"{each}:{output}" for each in RESNETS for output in OUTPUTS)))
    raise InvalidInput(
        f"there is no image encoder '{spec[:200]}'.",
        hint=f"Encoders are: {named}, NETWORK.onnx or NETWORK.onnx:OUTPUT, and several of them joined by +.",
        field="encoder",
    )


def absolute_spec(spec: str) -> str:
    """``spec`` with the paths of its files made absolute, for processes that run in another folder."""
    parts = _PART.findall(spec)
    return "+".join(str(Path(part).absolute()) if _ONNX.fullmatch(part) else part for part in parts)


# --- preparation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """From a picture to what a network takes.

    Attributes:
        frame: height and width of what the crop is taken from: the picture is made to just cover it.
        crop: height and width of the crop, in pixels.
        mean, std: subtracted from, and dividing, each channel of RGB in [0, 1].
    """

    frame: tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, picture: Image.Image, augment: np.random.Generator | None = None) -> np.ndarray:
        """``[1, 3, *crop]`` float32: resized (bilinear), cropped in the middle, normalised.

        Args:
            augment: draws the crop's place, and whether the picture is flipped, as for training.
        """
        (frame_height, frame_width), (height, width) = self.frame, self.crop
        if frame_height * picture.width >= frame_width * picture.height:
            size = (frame_height * picture.width // picture.height, frame_height)
        else:
            size = (frame_width, frame_width * picture.height // picture.width)
        rooms = (size[0] - width, size[1] - height)
        left, top = (round(room / 2) if augment is None else int(augment.integers(room + 1)) for room in rooms)
        resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        pixels = to_array(resized.crop((left, top, left + width, top + height)))
        if augment is not None and augment.random() < 0.5:
            pixels = pixels[..., ::-1]
        mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


IMAGENET = Preparation((256, 256), (224, 224), *weights.IMAGENET)
"""As torchvision prepares pictures for its ResNets: shorter side 256, the middle 224×224, normalised."""

_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)

THESIS = Preparation((256, 256), (256, 256), _CAFFE_MEAN, (1.0, 1.0, 1.0))
"""As the thesis prepares pictures for style retrieval (section 4.2.1): resized and centred to 256×256, divided by 255,
and [103.939, 116.779, 123.68] / 255, in the order BGR, subtracted; nothing divides by a standard deviation.

It leaves open whether *centred* crops or distorts (here: shorter side 256, the middle 256×256) and in which order the
channels reach the network (here: the order in which it was trained, RGB, each channel less its own mean).
"""


# --- encoders -----------------------------------------------------------------------------------------------------


class _Network:
    """What encoders have in common whose pictures are all brought to one size.

    Attributes:
        preparation: see :class:`Preparation`.
    """

    name: str
    fingerprint: str
    dimensions: int
    preparation: Preparation
    batch = BATCH

    def embed(self, pictures: Sequence[Image.Image], *, augment: np.random.Generator | None = None) -> np.ndarray:
        """See :meth:`ImageEncoder.embed`.

        Args:
            augment: draws crops and flips in place of the middle, as for training.
        """
        rows = [np.empty((0, self.dimensions), np.float32)]
        for start in range(0, len(pictures), self.batch):
            prepared = [self.preparation(picture, augment) for picture in pictures[start : start + self.batch]]
            rows.append(_unit(self.features(np.concatenate(prepared))))
        return np.concatenate(rows)

    def features(self, prepared: np.ndarray) -> np.ndarray:
        """What the network makes of at most ``batch`` prepared pictures: ``[N, 3, H, W]`` → ``[N, dimensions]``."""
        raise NotImplementedError


class ResNetEncoder(_Network):
    """A ResNet of torchvision.

    Args:
        network: one of :data:`RESNETS`.
        output: one of :data:`OUTPUTS`, of pictures prepared as for ImageNet; None: the average pool, prepared as in the
            thesis.
        tensors: weights as :func:`shared.weights.load` returns them; loaded where not given.
    """

    def __init__(
        self,
        network: str,
        output: str | None = None,
        *,
        device: str = "auto",
        tensors: dict[str, torch.Tensor] | None = None,
        progress: weights.Progress | None = None,
    ):
        target = pick_device(device)
        tensors = weights.load(network, progress=progress) if tensors is None else tensors
        self.preparation = THESIS if output is None else IMAGENET
        architecture = weights.architecture(network)
        # Pictures come normalised: the first convolution that weights bring has nothing to do.
        untouched = {"input.weight": torch.eye(3).reshape(3, 3, 1, 1), "input.bias": torch.zeros(3)}
        self._encoder = Encoder(tensors | untouched, architecture, dtype=pick_dtype("auto", target), device=target)
        self._last = list(architecture.layers)[-1]
        self._classifier = (
            tuple(tensors[f"classifier.{part}"].to(target) for part in ("weight", "bias"))
            if output == "logits"
            else None
        )
        self.name = f"{network}:{output}" if output else network
        self.dimensions = architecture.classifier[0 if output == "logits" else 1]
        self.fingerprint = _fingerprint(
            network, weights.SOURCES[network].checkpoint_sha256, output or "pool", self.preparation
        )

    @torch.inference_mode()
    def features(self, prepared: np.ndarray) -> np.ndarray:
        activations = self._encoder(torch.from_numpy(prepared).to(self._encoder.device), [self._last])[self._last]
        pooled = activations.float().mean((2, 3))
        return (pooled if self._classifier is None else F.linear(pooled, *self._classifier)).cpu().numpy()


class OnnxEncoder(_Network):
    """A feature extractor in an ONNX file: normalised RGB ``[N, 3, H, W]`` in, ``[N, K]`` out.

    N, H and W may be fixed. Where H and W are not, pictures are prepared as :data:`IMAGENET`; where they are, the
    proportion of frame to crop is the same.

    Args:
        output: name of the output; the first where not given.

    Raises:
        NotFound: there is no such file.
        ModelRefused: the network does not fit; the message says what was expected.
    """

    def __init__(
        self, path: Path, output: str | None = None, *, device: str = "auto", preparation: Preparation | None = None
    ):
        if not path.is_file():
            raise NotFound(
                f"there is no ONNX file '{path}'.",
                hint="Give the path of a feature extractor, or the encoder 'style'.",
                field="encoder",
            )
        self._refuse_external(path)
        self._path = path
        self._session = open_session(path, device=device)
        count, height, width = self._read_input()
        self._output = self._pick_output(output)
        self._fixed_count = count
        self.batch = count or BATCH
        if preparation is None:
            crop = (height or IMAGENET.crop[0], width or IMAGENET.crop[1])
            frame = tuple(side * IMAGENET.frame[0] // IMAGENET.crop[0] for side in crop)
            preparation = Preparation(frame, crop, IMAGENET.mean, IMAGENET.std)
        self.preparation = preparation
        self.name = f"{path.name}:{output}" if output else path.name
        self.dimensions = self._measure()
        self.fingerprint = _fingerprint(sha256(path), self._output, self.preparation)

    def features(self, prepared: np.ndarray) -> np.ndarray:
        given = len(prepared)
        if self._fixed_count is not None and given < self._fixed_count:
            prepared = np.concatenate([prepared, prepared[[-1] * (self._fixed_count - given)]])
        return self._session.run([self._output], {self._session.get_inputs()[0].name: prepared})[0][:given]

    @staticmethod
    def _refuse_external(path: Path) -> None:
        # The key of a TensorProto's external data, as protobuf writes it: field 1, ten bytes with tag and length.
        if b"\n\x08location" in path.read_bytes():
            raise ModelRefused(
                f"'{path.name}' keeps weights in another file beside it, so its hash does not name the network.",
                hint="Export it as one file (torch.onnx.export: external_data=False).",
                field="encoder",
            )

    def _read_input(self) -> tuple[int | None, int | None, int | None]:
        """N, H and W where they are fixed."""
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise self._refusal(f"has {len(inputs)} inputs, expected 1")
        shape = inputs[0].shape
        if inputs[0].type != "tensor(float)" or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise self._refusal(f"takes {inputs[0].type} {shape}, expected float [N, 3, H, W]")
        return tuple(shape[axis] if isinstance(shape[axis], int) else None for axis in (0, 2, 3))

    def _pick_output(self, name: str | None) -> str:
        outputs = [output.name for output in self._session.get_outputs()]
        if name is None:
            return outputs[0]
        if name not in outputs:
            raise self._refusal(f"has no output '{name}'", hint=f"Its outputs are: {', '.join(outputs)}.")
        return name

    def _measure(self) -> int:
        """Length of a vector, from a run: what the file states may be a mere name."""
        count = self._fixed_count or 2  # a network may state any number and take one
        try:
            found = self.features(np.zeros((count, 3, *self.preparation.crop), np.float32))
        except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception.
            reason = str(error).strip().partition("\n")[0]
            raise self._refusal(f"cannot run on {self.preparation.crop} pixels ({reason})") from error
        if found.ndim != 2 or len(found) != count or found.dtype != np.float32:
            raise self._refusal(
                f"gives {found.dtype} {list(found.shape)} as '{self._output}' for {count} pictures, "
                f"expected float32 [{count}, K]",
                hint="Name another output as FILE.onnx:OUTPUT, or end the network with a global average.",
            )
        return found.shape[1]

    def _refusal(self, what: str, hint: str = "") -> ModelRefused:
        hint = hint or "Export a feature extractor: pictures in, one vector each out."
        return ModelRefused(f"'{self._path.name}' {what}.", hint=hint, field="encoder")


class JoinedEncoder:
    """The vectors of several encoders end to end: the cosine is the mean of theirs."""

    def __init__(self, parts: tuple[ImageEncoder, ...]):
        self.parts = parts
        self.name = "+".join(part.name for part in parts)
        self.fingerprint = _fingerprint(*(part.fingerprint for part in parts))
        self.dimensions = sum(part.dimensions for part in parts)

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """See :meth:`ImageEncoder.embed`."""
        return join([part.embed(pictures) for part in self.parts])


def join(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of length 1 from several encoders, ``[N, K]`` each, as rows of length 1: ``[N, sum of K]``."""
    return np.concatenate(embeddings, axis=1) / np.float32(np.sqrt(len(embeddings)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
