"""Encoders from local files: a network in ONNX for pictures, a sentence transformer for texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shared.errors import EngineUnavailable, InvalidInput, ModelRefused, NotFound
from shared.files import sha256
from shared.images import to_array
from shared.onnx_runtime import open_session
from shared.torchvision_compat import import_torchvision
from shared.weights import cache_dir
from training.open_clip_encoder import PREFIX, OpenClipEncoder

FRAME, CROP = 256, 224
"""The picture's shorter side is made FRAME pixels, and a square of CROP pixels is looked at."""

_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
_STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
_BATCH = 16


class OnnxImageEncoder:
    """A feature extractor in an ONNX file: normalised RGB ``[N, 3, H, W]`` in, ``[N, D]`` out.

    Attributes:
        name: the file's name and the output.
        fingerprint: of the file, the output and the preparation.
        dimensions: D.
        path: of the file.
        output: name of the output.
    """

    def __init__(self, path: Path, output: str, *, device: str = "auto"):
        if not path.is_file():
            raise NotFound(
                f"there is no ONNX file '{path}'.",
                hint="Name one as --image-encoder PATH.onnx, with an output of [N, D].",
                field="image_encoder",
            )
        self.path, self._session = path, open_session(path, device=device)
        shapes = {each.name: each.shape for each in self._session.get_outputs()}
        # The only output needs no name.
        self.output = output if output in shapes or len(shapes) > 1 else next(iter(shapes))
        if len(shapes.get(self.output, ())) != 2:
            raise ModelRefused(
                f"'{path.name}' has no output '{output}' of [N, D]; its outputs are {', '.join(shapes)}.",
                hint="Name one as PATH.onnx:OUTPUT.",
                field="image_encoder",
            )
        self.name = f"{path.name}:{self.output}"
        self.fingerprint = hashlib.sha256(f"{sha256(path)} {self.output} {FRAME} {CROP}".encode()).hexdigest()[:16]
        self.dimensions = self.features(np.zeros((1, 3, CROP, CROP), np.float32)).shape[1]

    def embed(self, pictures: Sequence[Image.Image], *, augment: np.random.Generator | None = None) -> np.ndarray:
        """Vectors of the pictures, ``[N, D]`` float32, each of length 1.

        Args:
            augment: draws crops and flips in place of the middle, as for training.
        """
        rows = [np.empty((0, self.dimensions), np.float32)]
        for start in range(0, len(pictures), _BATCH):
            prepared = [self.preparation(picture, augment) for picture in pictures[start : start + _BATCH]]
            found = self.features(np.concatenate(prepared))
            rows.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
        return np.concatenate(rows)

    def preparation(self, picture: Image.Image, augment: np.random.Generator | None = None) -> np.ndarray:
        """``[1, 3, CROP, CROP]`` float32: resized (bilinear), cropped in the middle or as drawn, normalised."""
        ratio = FRAME / min(picture.size)
        size = tuple(max(FRAME, int(side * ratio)) for side in picture.size)
        rooms = tuple(side - CROP for side in size)
        left, top = (round(room / 2) if augment is None else int(augment.integers(room + 1)) for room in rooms)
        resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        pixels = to_array(resized.crop((left, top, left + CROP, top + CROP)))
        if augment is not None and augment.random() < 0.5:
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray((pixels - _MEAN) / _STD)

    def features(self, prepared: np.ndarray) -> np.ndarray:
        """What the network makes of prepared pictures: ``[N, 3, H, W]`` → ``[N, D]``."""
        return self._session.run([self.output], {self._session.get_inputs()[0].name: prepared})[0]


def open_image_encoder(spec: str, output: str, *, device: str = "auto") -> OnnxImageEncoder | OpenClipEncoder:
    """The encoder that ``spec`` names: ``resnet50``, ``PATH.onnx`` or ``open_clip:MODEL/PRETRAINED``.

    Args:
        output: to take where a network has several and the spec does not end in ``:OUTPUT``.

    Raises:
        NotFound: the file is not there.
        ModelRefused: it is no feature extractor.
        WeightsUnavailable: the weights of a CLIP cannot be had.
        InvalidInput: nothing is called that.
    """
    if spec.startswith(PREFIX):
        return OpenClipEncoder(spec, device=device)
    named = re.fullmatch(r"(.+\.onnx|resnet50)(?::(\w+))?", spec, re.IGNORECASE)
    if named is None:
        raise InvalidInput(
            f"there is no image encoder '{spec[:200]}'.",
            hint=f"Name resnet50, a network as PATH.onnx or PATH.onnx:OUTPUT, or {PREFIX}MODEL/PRETRAINED.",
            field="image_encoder",
        )
    path = cache_dir() / "resnet50.onnx" if named[1].lower() == "resnet50" else Path(named[1])
    return OnnxImageEncoder(path, named[2] or output, device=device)


class SentenceTransformerEncoder:
    """A sentence transformer's folder, read by the package sentence-transformers.

    Attributes:
        fingerprint: of its weights.
    """

    def __init__(self, folder: Path):
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise NotFound(
                f"there is no sentence encoder in '{folder}': model.safetensors is missing.",
                hint="Name a folder that sentence-transformers saved.",
                field="sentence_encoder",
            )
        import_torchvision()  # or transformers' own import of it may fail
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise EngineUnavailable(
                f"the sentence encoder needs a package that is not installed ({error.name}).",
                hint="Install it: pip install sentence-transformers",
                field="sentence_encoder",
            ) from error

        self.name = folder.name
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.fingerprint = sha256(weights)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """``[N, D]`` float32, each of length 1."""
        return self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def open_sentence_encoder(spec: str, *, device: str = "auto") -> SentenceTransformerEncoder | OpenClipEncoder:
    """The encoder that ``spec`` names: a sentence transformer's folder, or ``open_clip:MODEL/PRETRAINED``.

    Raises:
        NotFound: there is no such folder.
        WeightsUnavailable: the weights of a CLIP cannot be had.
    """
    if spec.startswith(PREFIX):
        return OpenClipEncoder(spec, device=device)
    return SentenceTransformerEncoder(Path(spec))
