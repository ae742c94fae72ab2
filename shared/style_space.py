"""Style as a point: VGG-19 channel statistics of a picture, projected to the directions in which paintings differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from shared.encoders import Encoder
from shared.errors import GalleryError
from shared.files import write_atomically
from shared.images import resize, to_tensor

LAYERS = tuple(f"relu{block}_1" for block in range(1, 6))
LONGER_SIDE = 320
"""Pixels. Statistics depend on the size of the strokes, so every picture is brought to one size first."""

SHIPPED = Path(__file__).parent / "assets" / "style_space.safetensors"


@torch.no_grad()
def style_statistics(encoder: Encoder, picture: Image.Image) -> np.ndarray:
    """Mean and standard deviation of every channel at :data:`LAYERS`: what AdaIN transfers (Huang and Belongie 2017).

    Each layer's part is scaled to length 1, so that no layer drowns the others.

    Returns:
        ``[2 (64 + 128 + 256 + 512 + 512)]`` float32, at least 0.
    """
    pixels = to_tensor(resize(picture, LONGER_SIDE)).to(encoder.device)
    # Very elongated pictures would vanish on the way to the last layer.
    short = [max(0, 32 - side) for side in pixels.shape[-2:]]
    if any(short):
        pixels = F.pad(pixels, (0, short[1], 0, short[0]), mode="replicate")
    features = encoder(pixels, LAYERS)
    return np.concatenate([_layer_statistics(features[layer]) for layer in LAYERS])


@dataclass(frozen=True)
class StyleSpace:
    """An affine map from style statistics to a few dimensions, fitted on a collection of paintings by PCA.

    Without the mean of paintings taken away all pictures look alike to the cosine: the statistics have no negative
    component.

    Attributes:
        mean: ``[D]``, of the collection's statistics.
        basis: ``[K, D]``, principal directions, each divided by the root of the collection's spread along it to the
            power ``whitening``.
        fitted_on: names of the collections and counts, for the record.
    """

    mean: np.ndarray
    basis: np.ndarray
    fitted_on: str = ""

    @classmethod
    def fit(
        cls, statistics: np.ndarray, *, dimensions: int = 64, whitening: float = 0.5, fitted_on: str = ""
    ) -> StyleSpace:
        """PCA of ``[N, D]`` statistics; at most N − 1 dimensions."""
        mean = statistics.mean(0)
        _, singular, directions = np.linalg.svd(statistics - mean, full_matrices=False)
        dimensions = min(dimensions, len(statistics) - 1)
        spread = singular[:dimensions] / np.sqrt(len(statistics))
        # A direction's sign is arbitrary in an SVD; fixed, so that fitting again gives the same space.
        signs = np.sign(directions[np.arange(dimensions), np.abs(directions[:dimensions]).argmax(1)])
        basis = directions[:dimensions] * (signs / np.maximum(spread, 1e-9) ** whitening)[:, None]
        return cls(mean.astype(np.float32), basis.astype(np.float32), fitted_on)

    @cached_property
    def fingerprint(self) -> str:
        """Names this space: embeddings of spaces with other fingerprints cannot be compared."""
        digest = hashlib.sha256(json.dumps([*LAYERS, LONGER_SIDE]).encode())
        digest.update(self.mean.tobytes() + self.basis.tobytes())
        return digest.hexdigest()[:16]

    def project(self, statistics: np.ndarray) -> np.ndarray:
        """``[..., D]`` statistics → ``[..., K]`` embeddings of length 1."""
        embedding = (statistics - self.mean) @ self.basis.T
        return (embedding / np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), 1e-12)).astype(np.float32)

    def embed(self, encoder: Encoder, picture: Image.Image) -> np.ndarray:
        """The style embedding of one picture, ``[K]`` float32 of length 1."""
        return self.project(style_statistics(encoder, picture))

    def save(self, path: Path) -> None:
        """Write the space as safetensors."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({"mean": self.mean, "basis": self.basis}, {"fitted_on": self.fitted_on}))

    @classmethod
    def load(cls, path: Path = SHIPPED) -> StyleSpace:
        """Read a space that :meth:`save` wrote.

        Raises:
            GalleryError: the file is missing or is no style space.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                return cls(file.get_tensor("mean"), file.get_tensor("basis"), metadata.get("fitted_on", ""))
        except (OSError, SafetensorError) as error:
            raise GalleryError(
                f"the style space '{path}' cannot be read: {error}.", hint="Reinstall Lienzo."
            ) from error


@dataclass(frozen=True)
class StyleEncoder:
    """A style space as a :class:`shared.gallery_index.ImageEncoder`.

    Attributes:
        load: makes VGG-19, at the first picture: whoever only opens an index needs no network.
    """

    space: StyleSpace
    load: Callable[[], Encoder]

    name: ClassVar[str] = "style"

    @property
    def fingerprint(self) -> str:
        """Of the space."""
        return self.space.fingerprint

    @property
    def dimensions(self) -> int:
        """Of the space."""
        return len(self.space.basis)

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Style embeddings, ``[N, K]`` float32 of length 1; one by one, since paintings differ in shape."""
        rows = [self.space.embed(self._encoder, picture) for picture in pictures]
        return np.stack(rows) if rows else np.empty((0, self.dimensions), np.float32)

    @cached_property
    def _encoder(self) -> Encoder:
        return self.load()


def mean_embedding(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """The direction in the middle of some embeddings, of length 1."""
    mean = np.mean(embeddings, axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _layer_statistics(features: Tensor) -> np.ndarray:
    std, mean = torch.std_mean(features[0].float(), dim=(1, 2), correction=0)
    both = torch.cat([mean, std])
    return (both / both.norm().clamp_min(1e-12)).cpu().numpy()
