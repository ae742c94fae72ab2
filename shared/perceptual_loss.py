"""What both the reference optimiser and the trainer minimise: content + style + total variation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from shared.encoders import Encoder, check_layers
from shared.errors import InvalidInput
from shared.losses import content_loss, gram_matrix, style_loss, total_variation

_GATYS_STYLE_LAYERS = {f"relu{block}_1": 0.2 for block in range(1, 6)}


@dataclass(frozen=True)
class LossSettings:
    """Which layers count, and how much.

    The defaults are for the activation-normalised VGG-19: content at ``relu4_2`` and style at ``relu1_1`` …
    ``relu5_1`` with a fifth each (Gatys et al. 2016, section 3), all taken after the rectifier.

    Attributes:
        content_layers: weight by layer name.
        style_layers: weight by layer name.
        content_weight, style_weight, tv_weight: weights of the three terms.
    """

    content_layers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"relu4_2": 1.0}))
    style_layers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType(_GATYS_STYLE_LAYERS))
    content_weight: float = 1.0
    style_weight: float = 5.0
    tv_weight: float = 0.3

    def __post_init__(self) -> None:
        check_layers([*self.content_layers, *self.style_layers])
        weights = {
            "content_weight": self.content_weight,
            "style_weight": self.style_weight,
            "tv_weight": self.tv_weight,
            **self.content_layers,
            **self.style_layers,
        }
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise InvalidInput(f"{name} is {weight}, expected a number ≥ 0.", field=name)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.content_layers, *self.style_layers)))

    def as_dict(self) -> dict:
        """Plain data, for cards and checkpoints."""
        return {
            "content_layers": dict(self.content_layers),
            "style_layers": dict(self.style_layers),
            "content_weight": self.content_weight,
            "style_weight": self.style_weight,
            "tv_weight": self.tv_weight,
        }


@dataclass(frozen=True)
class LossTerms:
    """One evaluation, each term weighted as it enters ``total``; scalars with a gradient."""

    content: Tensor
    style: Tensor
    tv: Tensor

    @property
    def total(self) -> Tensor:
        return self.content + self.style + self.tv

    def values(self) -> dict[str, float]:
        """The three terms and their sum as numbers. Waits for the device once."""
        content, style, tv = torch.stack([self.content, self.style, self.tv]).detach().tolist()
        return {"content": content, "style": style, "tv": tv, "total": content + style + tv}


class PerceptualLoss:
    """Compares pictures with a content target and a style target through an :class:`Encoder`."""

    def __init__(self, encoder: Encoder, settings: LossSettings | None = None):
        self.encoder = encoder
        self.settings = settings or LossSettings()

    @torch.no_grad()
    def content_target(self, pictures: Tensor) -> dict[str, Tensor]:
        """Activations of the content pictures ``[N, 3, H, W]`` at the content layers."""
        if not self.settings.content_layers:
            return {}
        return self.encoder(pictures, self.settings.content_layers)

    @torch.no_grad()
    def style_target(self, pictures: Tensor) -> dict[str, Tensor]:
        """Gram matrices of the style pictures ``[N, 3, H, W]`` at the style layers, averaged over N: ``[1, C, C]``."""
        if not self.settings.style_layers:
            return {}
        features = self.encoder(pictures, self.settings.style_layers)
        return {layer: gram_matrix(f).mean(0, keepdim=True) for layer, f in features.items()}

    def __call__(self, pictures: Tensor, content: Mapping[str, Tensor], style: Mapping[str, Tensor]) -> LossTerms:
        """The loss of ``pictures`` ``[N, 3, H, W]`` against targets from the two methods above."""
        settings = self.settings
        features = self.encoder(pictures, settings.layers)
        zero = pictures.new_zeros((), dtype=torch.float32)
        content_term = sum(
            (w * content_loss(features[layer], content[layer]) for layer, w in settings.content_layers.items()),
            zero,
        )
        style_term = sum(
            (w * style_loss(gram_matrix(features[layer]), style[layer]) for layer, w in settings.style_layers.items()),
            zero,
        )
        return LossTerms(
            content=settings.content_weight * content_term,
            style=settings.style_weight * style_term,
            tv=settings.tv_weight * total_variation(pictures),
        )
