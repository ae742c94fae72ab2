"""The encoders that the joint embedding is trained with, by their names on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.errors import EngineUnavailable, NotFound
from shared.files import sha256
from shared.image_encoders import RESNETS, ImageEncoder, open_encoder
from shared.torchvision_compat import import_torchvision
from training.open_clip_encoder import PREFIX, OpenClipEncoder

_RESNET_OUTPUTS = {"features": "pool", "logits": "logits"}


def open_image_encoder(spec: str, output: str, *, device: str = "auto") -> ImageEncoder:
    """The encoder that ``spec`` names, as :func:`shared.image_encoders.open_encoder` or ``open_clip:MODEL/PRETRAINED``.

    Args:
        output: ``features`` or ``logits``, to take where a network has both and the spec does not end in ``:OUTPUT``.

    Raises:
        LienzoError: there is no such encoder, or it cannot be had; the message says what was expected.
    """
    if spec.startswith(PREFIX):
        return OpenClipEncoder(spec, device=device)
    if spec in RESNETS:
        spec = f"{spec}:{_RESNET_OUTPUTS[output]}"
    elif onnx_file(spec, output) is not None:
        spec = "{}:{}".format(*onnx_file(spec, output))
    return open_encoder(spec, device=device)


def onnx_file(spec: str, output: str) -> tuple[Path, str] | None:
    """File and output of ``PATH.onnx`` or ``PATH.onnx:OUTPUT``; None where ``spec`` is something else."""
    named = re.fullmatch(r"([^+]+\.onnx)(?::(\w+))?", spec, re.IGNORECASE)
    return (Path(named[1]), named[2] or output) if named else None


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
