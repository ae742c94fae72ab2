"""The encoders that the joint embedding is trained with, by their names on the command line."""

from __future__ import annotations

import re
from pathlib import Path

from shared.image_encoders import RESNETS, ImageEncoder, open_encoder
from shared.sentence_encoder import SentenceEncoder
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


def open_sentence_encoder(spec: str, *, device: str = "auto") -> SentenceEncoder | OpenClipEncoder:
    """The encoder that ``spec`` names: a sentence transformer's folder, or ``open_clip:MODEL/PRETRAINED``.

    Raises:
        InvalidInput: there is no such folder.
        ModelRefused: it holds no sentence transformer.
        WeightsUnavailable: the weights of a CLIP cannot be had.
    """
    if spec.startswith(PREFIX):
        return OpenClipEncoder(spec, device=device)
    return SentenceEncoder.open(spec)
