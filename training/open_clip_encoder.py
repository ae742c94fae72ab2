"""CLIP and SigLIP through the package open_clip: pictures and texts that already lie in one space."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from shared.devices import pick_device
from shared.errors import EngineUnavailable, InvalidInput, WeightsUnavailable
from shared.torchvision_compat import import_torchvision

PREFIX = "open_clip:"
_BATCH = 16


class OpenClipEncoder:
    """A model of open_clip as an image encoder and as a sentence encoder; both sides have the same dimensions.

    Args:
        spec: ``open_clip:MODEL/PRETRAINED`` as `open_clip.list_pretrained()` names them, or ``open_clip:hf-hub:…`` or
            ``open_clip:local-dir:…``.

    Attributes:
        name: the spec.
        fingerprint: of the weights.
        dimensions: of its space.

    Raises:
        EngineUnavailable: open_clip is not installed.
        InvalidInput: the spec names no model.
        WeightsUnavailable: the weights cannot be had.
    """

    def __init__(self, spec: str, *, device: str = "auto"):
        self.name = spec
        named = spec.removeprefix(PREFIX)
        model, pretrained = named, None
        if not named.startswith(("hf-hub:", "local-dir:")):
            model, _, pretrained = named.partition("/")
            if not model or not pretrained:
                raise InvalidInput(
                    f"'{spec[:200]}' names no model of open_clip.",
                    hint=f"Write it like {PREFIX}ViT-B-32/laion2b_s34b_b79k.",
                    field="image_encoder",
                )
        import_torchvision()  # or open_clip's own import of it may fail
        try:
            import open_clip
        except ModuleNotFoundError as error:
            raise EngineUnavailable(
                f"'{spec}' needs a package that is not installed ({error.name}).",
                hint="Install it: pip install -e '.[clip]'",
                field="image_encoder",
            ) from error

        self._device = pick_device(device)
        try:
            self._model, self._prepare = open_clip.create_model_from_pretrained(
                model, pretrained, device=self._device, weights_only=True
            )
            self._tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:  # those of the hub's client have no other base
            raise WeightsUnavailable(
                f"open_clip cannot load '{named}': {str(error).strip().partition(chr(10))[0]}",
                hint="Check the name with open_clip.list_pretrained(), and that the machine reaches the hub; or name "
                f"a folder as {PREFIX}local-dir:FOLDER.",
                field="image_encoder",
            ) from error
        self._model.eval()
        digest = hashlib.sha256(named.encode())
        for key, tensor in sorted(self._model.state_dict().items()):
            digest.update(key.encode() + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self.dimensions = self.encode([""]).shape[1]

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Image.Image], *, augment: np.random.Generator | None = None) -> np.ndarray:
        """Vectors of the pictures, ``[N, D]`` float32, each of length 1.

        Args:
            augment: draws crops (seven eighths of each side) and flips, as for training.
        """
        rows = [np.empty((0, self.dimensions), np.float32)]
        for start in range(0, len(pictures), _BATCH):
            some = [_varied(picture, augment) for picture in pictures[start : start + _BATCH]]
            prepared = torch.stack([self._prepare(picture.convert("RGB")) for picture in some])
            found = self._model.encode_image(prepared.to(self._device))
            rows.append(F.normalize(found.float(), dim=-1).numpy(force=True))
        return np.concatenate(rows)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the texts, ``[N, D]`` float32, each of length 1; what the context cannot hold is not read."""
        found = self._model.encode_text(self._tokenizer(list(texts)).to(self._device))
        return F.normalize(found.float(), dim=-1).numpy(force=True)


def _varied(picture: Image.Image, augment: np.random.Generator | None) -> Image.Image:
    if augment is None:
        return picture
    width, height = (max(1, side * 7 // 8) for side in picture.size)
    left, top = int(augment.integers(picture.width - width + 1)), int(augment.integers(picture.height - height + 1))
    crop = picture.crop((left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if augment.random() < 0.5 else crop
