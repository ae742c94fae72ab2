"""What both the reference optimiser and the trainer minimise: content + style + total variation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shared.architectures import VGG19
from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.losses import (
    TV_FORMS,
    GaussianTarget,
    channel_means,
    content_loss,
    gram_matrix,
    style_loss,
    total_variation,
    wasserstein_loss,
)
from shared.tiles import Tile, cut

CONTENT_FORMS = ("mean", "sum", "half_sum")
STYLE_FORMS = ("gram", "wasserstein")


@dataclass(frozen=True)
class LossSettings:
    """Which layers count, and how much.

    The defaults are for the activation-normalised VGG-19: content at ``relu4_2`` and style at ``relu1_1`` …
    ``relu5_1`` with a fifth each (Gatys et al. 2016, section 3), all taken after the rectifier.

    Attributes:
        content_layers: weight by layer name.
        style_layers: weight by layer name.
        content_weight, style_weight, tv_weight: weights of the three terms.
        content_form: ``mean`` of the squared differences of activations, their ``sum`` over one picture, or
            ``half_sum`` (Gatys et al. 2016, equation 1).
        style_form: ``gram``: mean squared difference of Gram matrices; ``wasserstein``:
            :func:`shared.losses.wasserstein_loss`.
        tv_form: see :func:`shared.losses.total_variation`.
        relative: divide the content and style loss of each layer by the mean square of its target, so that one set of
            weights serves networks whose activations are of any size, as torchvision's are.
    """

    content_layers: Mapping[str, float] = field(default_factory=lambda: VGG19.content_layers)
    style_layers: Mapping[str, float] = field(default_factory=lambda: VGG19.style_layers)
    content_weight: float = 1.0
    style_weight: float = 5.0
    tv_weight: float = 0.3
    content_form: str = "mean"
    style_form: str = "gram"
    tv_form: str = "mean_squared"
    relative: bool = False

    def __post_init__(self) -> None:
        weights = (
            ("content_weight", self.content_weight),
            ("style_weight", self.style_weight),
            ("tv_weight", self.tv_weight),
            *self.content_layers.items(),
            *self.style_layers.items(),
        )
        for name, weight in weights:
            if not 0 <= weight < float("inf"):
                raise InvalidInput(f"{name} is {weight}, expected a number ≥ 0.", field=name)
        if not self.layers:
            raise InvalidInput("no layer was named.", hint="Name content layers, style layers or both.", field="layers")
        forms = {"content_form": CONTENT_FORMS, "style_form": STYLE_FORMS, "tv_form": TV_FORMS}
        for name, allowed in forms.items():
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}.", field=name
                )

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.content_layers, *self.style_layers)))

    def as_dict(self) -> dict:
        """Plain data, for cards, checkpoints and records."""
        return {
            "content_layers": dict(self.content_layers),
            "style_layers": dict(self.style_layers),
            "content_weight": self.content_weight,
            "style_weight": self.style_weight,
            "tv_weight": self.tv_weight,
            "content_form": self.content_form,
            "style_form": self.style_form,
            "tv_form": self.tv_form,
            "relative": self.relative,
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

    def detach(self) -> LossTerms:
        """The same values without the graph that they were computed by."""
        return LossTerms(self.content.detach(), self.style.detach(), self.tv.detach())

    def values(self) -> dict[str, float]:
        """The three terms and their sum as numbers. Waits for the device once."""
        content, style, tv = torch.stack([self.content, self.style, self.tv]).detach().tolist()
        return {"content": content, "style": style, "tv": tv, "total": content + style + tv}


@dataclass(frozen=True)
class ContentTarget:
    """Activations to keep.

    Attributes:
        features: by layer, ``[N, C, H, W]``, for each tile of the picture (one, unless it is tiled).
        power: their mean square by layer, for relative losses; else empty.
    """

    features: tuple[Mapping[str, Tensor], ...]
    power: Mapping[str, Tensor]


@dataclass(frozen=True)
class StyleTarget:
    """Statistics of activations to reach, at every place or in a region.

    Attributes:
        grams: Gram matrix by layer, ``[1, C, C]``.
        power: its mean square by layer.
        gaussians: by layer, for the Wasserstein loss; else empty.
        region: weight of each activation by layer, ``[1, 1, H, W]``; None for the whole picture.
        weight: of this target among several.
    """

    grams: Mapping[str, Tensor]
    power: Mapping[str, Tensor]
    gaussians: Mapping[str, GaussianTarget]
    region: Mapping[str, Tensor] | None = None
    weight: float = 1.0


class PerceptualLoss:
    """Compares pictures with a content target and a style target through an :class:`Encoder`.

    Args:
        encoder: losses are computed in fp32 whatever its dtype.
        settings: what counts.
        tile: pictures with a side longer than this many pixels are looked at tile by tile, so that memory is bounded
            by the tile. Tiles overlap by what the deepest layer sees and Gram matrices are summed over all of them:
            loss and gradient are those of the whole picture. Each tile is computed once more for the gradient.

    Raises:
        InvalidInput: the encoder has no layer of a name; the message lists those it has.
    """

    def __init__(self, encoder: Encoder, settings: LossSettings | None = None, *, tile: int | None = None):
        self.encoder = encoder
        self.settings = settings or LossSettings()
        self.tile = tile
        steps = encoder.architecture.through(self.settings.layers)
        self._overlap, self._alignment = steps[-1].reach, steps[-1].scale
        smallest = 2 * self._alignment  # with one alone, the last tile may hold no activation of the deepest layer
        if tile is not None and tile < smallest:
            raise InvalidInput(f"tile is {tile}, expected at least {smallest} pixels.", field="tile")

    @torch.no_grad()
    def content_target(self, pictures: Tensor) -> ContentTarget:
        """Activations of the content pictures ``[N, 3, H, W]`` at the content layers."""
        layers = self.settings.content_layers
        if not layers:
            return ContentTarget((), {})
        features = []
        for tile in self._tiles(pictures):
            found = self.encoder(_crop(pictures, tile), layers)
            features.append({name: self._core(name, found[name], tile, pictures) for name in layers})
        # The trainer comes by here at every step; only relative losses divide by it.
        power = (
            {name: _mean_square([part[name] for part in features]) for name in layers} if self.settings.relative else {}
        )
        return ContentTarget(tuple(features), power)

    @torch.no_grad()
    def style_target(self, pictures: Tensor | Sequence[Tensor], weights: Sequence[float] | None = None) -> StyleTarget:
        """Statistics of the style pictures at the style layers.

        Args:
            pictures: ``[N, 3, H, W]``, or several such of different sizes.
            weights: of each picture in the mean of their statistics; equal where not given.

        Raises:
            InvalidInput: there are not as many weights as pictures, or they are not positive numbers.
        """
        pictures = [pictures] if isinstance(pictures, Tensor) else list(pictures)
        shares = _shares(sum(len(batch) for batch in pictures), weights)
        collected: dict[str, Tensor] = {}
        for picture in (batch[i : i + 1] for batch in pictures for i in range(len(batch))):
            share = next(shares)
            for tile in self._tiles(picture):
                found = (
                    self.encoder(_crop(picture, tile), self.settings.style_layers) if self.settings.style_layers else {}
                )
                for name, features in found.items():
                    part = share * self._statistics(name, features, tile, picture, None)
                    collected[name] = collected[name] + part if name in collected else part
        grams = {name: _gram_of(statistics) for name, statistics in collected.items()}
        return StyleTarget(
            grams,
            {name: _mean_square([gram]) for name, gram in grams.items()},
            {name: GaussianTarget.of(grams[name], _means_of(statistics)) for name, statistics in collected.items()}
            if self.settings.style_form == "wasserstein"
            else {},
        )

    def in_region(self, target: StyleTarget, region: Tensor, weight: float = 1.0) -> StyleTarget:
        """``target``, to be reached where ``region`` is (Gatys et al. 2017, section 4.1).

        Args:
            region: ``[1, 1, H, W]`` in [0, 1], of the size of the pictures that will be compared.
            weight: of this target among several.

        Raises:
            InvalidInput: the region is empty.
        """
        if not bool((region > 0).any()):
            raise InvalidInput("a region is empty.", hint="Paint it white where it counts.", field="mask")
        sizes = {
            layer: self.encoder.architecture.size(layer, *region.shape[-2:]) for layer in self.settings.style_layers
        }
        maps = {layer: F.adaptive_avg_pool2d(region.float(), size) for layer, size in sizes.items()}
        return replace(target, region=maps, weight=weight)

    def __call__(
        self, pictures: Tensor, content: ContentTarget, style: StyleTarget | Sequence[StyleTarget]
    ) -> LossTerms:
        """The loss of ``pictures`` ``[N, 3, H, W]`` against targets from the methods above."""
        settings = self.settings
        styles = (style,) if isinstance(style, StyleTarget) else tuple(style)
        tiles = self._tiles(pictures)
        if len(tiles) == 1:
            parts = self._look(pictures, pictures, tiles[0], content.features[0] if content.features else {}, styles)
        else:
            parts = None
            for i, tile in enumerate(tiles):
                target = content.features[i] if content.features else {}
                part = checkpoint(
                    self._look, _crop(pictures, tile), pictures.detach(), tile, target, styles, use_reentrant=False
                )
                parts = part if parts is None else [a + b for a, b in zip(parts, part, strict=True)]
        variation, content_parts, statistics = (
            parts[0],
            parts[1 : 1 + len(settings.content_layers)],
            iter(parts[1 + len(settings.content_layers) :]),
        )
        zero = pictures.new_zeros((), dtype=torch.float32)
        content_term = sum(
            (
                w * part / content.power[layer] if settings.relative else w * part
                for (layer, w), part in zip(settings.content_layers.items(), content_parts, strict=True)
            ),
            zero,
        )
        found = {}
        for key, layer in self._described(styles):
            found[key, layer] = next(statistics)
        style_term = sum(
            (
                target.weight * w * self._style_loss(layer, found[_region_key(target), layer], target)
                for target in styles
                for layer, w in settings.style_layers.items()
            ),
            zero,
        )
        return LossTerms(
            content=settings.content_weight * content_term,
            style=settings.style_weight * style_term,
            tv=settings.tv_weight * variation,
        )

    def _look(
        self,
        crop: Tensor,
        whole: Tensor,
        tile: Tile,
        content: Mapping[str, Tensor],
        styles: tuple[StyleTarget, ...],
    ) -> list[Tensor]:
        """What one tile adds: total variation, content losses, then statistics; ``whole`` only gives the size."""
        settings = self.settings
        features = self.encoder(crop, settings.layers)
        top, left = tile.top - tile.crop[0], tile.left - tile.crop[1]
        variation = total_variation(
            crop[..., top:, left:],
            settings.tv_form,
            starting_in=(tile.bottom - tile.top, tile.right - tile.left),
            of=tuple(whole.shape[-2:]),
        )
        content_parts = []
        for layer in settings.content_layers:
            core = self._core(layer, features[layer], tile, whole)
            height, width = self.encoder.architecture.size(layer, *whole.shape[-2:])
            share = core.shape[-2] * core.shape[-1] / (height * width)
            elements = core.shape[1] * height * width
            factor = {"mean": 1.0, "sum": elements, "half_sum": elements / 2}[settings.content_form]
            content_parts.append(content_loss(core, content[layer]) * (share * factor))
        regions = {_region_key(target): target.region for target in styles}
        statistics = [
            self._statistics(layer, features[layer], tile, whole, regions[key])
            for key, layer in self._described(styles)
        ]
        return [variation, *content_parts, *statistics]

    def _described(self, styles: Iterable[StyleTarget]) -> list[tuple[int, str]]:
        """(region, layer) of each statistic, in the order in which they are computed; regions may be shared."""
        keys = dict.fromkeys(_region_key(target) for target in styles)
        return [(key, layer) for key in keys for layer in self.settings.style_layers]

    def _statistics(
        self, layer: str, features: Tensor, tile: Tile, whole: Tensor, region: Mapping[str, Tensor] | None
    ) -> Tensor:
        """What the tile adds to Gram matrices ``[N, C, C]``, or with the means below to ``[N, C + 1, C]``."""
        core = self._core(layer, features, tile, whole)
        if region is None:
            height, width = self.encoder.architecture.size(layer, *whole.shape[-2:])
            weights, share = None, core.shape[-2] * core.shape[-1] / (height * width)
        else:
            weights = self._core(layer, region[layer], replace(tile, crop=(0, 0, 0, 0)), whole)
            share = weights.sum() / region[layer].sum()
        gram = gram_matrix(core, weights)
        if self.settings.style_form == "gram":
            return gram * share
        return torch.cat([gram, channel_means(core, weights)[:, None]], dim=1) * share

    def _style_loss(self, layer: str, statistics: Tensor, target: StyleTarget) -> Tensor:
        if self.settings.style_form == "gram":
            loss = style_loss(statistics, target.grams[layer])
            return loss / target.power[layer] if self.settings.relative else loss
        loss = wasserstein_loss(_gram_of(statistics), _means_of(statistics), target.gaussians[layer])
        # Squared activations, where Gram matrices differ by their fourth powers.
        return loss / target.power[layer].sqrt() if self.settings.relative else loss

    def _tiles(self, pictures: Tensor) -> tuple[Tile, ...]:
        height, width = pictures.shape[-2:]
        side = max(height, width) if self.tile is None else self.tile
        return (
            cut(height, width, side=max(side, 1), overlap=self._overlap, alignment=self._alignment)
            if (max(height, width) > side)
            else (Tile(0, 0, height, width, (0, 0, height, width)),)
        )

    def _core(self, layer: str, features: Tensor, tile: Tile, whole: Tensor) -> Tensor:
        """The activations of the tile itself, without those of its surroundings."""
        if (tile.top, tile.left, tile.bottom, tile.right) == (0, 0, *whole.shape[-2:]):
            return features
        architecture = self.encoder.architecture
        scale = architecture[layer].scale
        spans = []
        for start, stop, first, end, size in zip(
            (tile.top, tile.left),
            (tile.bottom, tile.right),
            tile.crop[:2],
            whole.shape[-2:],
            architecture.size(layer, *whole.shape[-2:]),
            strict=True,
        ):
            last = size if stop == end else stop // scale
            spans.append(slice((start - first) // scale, last - first // scale))
        return features[..., spans[0], spans[1]]


def _crop(pictures: Tensor, tile: Tile) -> Tensor:
    top, left, bottom, right = tile.crop
    return pictures[..., top:bottom, left:right]


def _gram_of(statistics: Tensor) -> Tensor:
    return statistics[:, : statistics.shape[2]]


def _means_of(statistics: Tensor) -> Tensor:
    return statistics[:, -1]


def _region_key(target: StyleTarget) -> int:
    return id(target.region) if target.region is not None else 0


def _mean_square(parts: Sequence[Tensor]) -> Tensor:
    total = sum(part.float().square().sum() for part in parts)
    return (total / sum(part.numel() for part in parts)).clamp_min(torch.finfo(torch.float32).tiny)


def _shares(count: int, weights: Sequence[float] | None) -> Iterable[float]:
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise InvalidInput(
            f"{len(weights)} weights were given for {count} style pictures.",
            hint="Give one weight for each style picture, or none.",
            field="style_weights",
        )
    if any(not 0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0:
        raise InvalidInput(f"style weights are {weights}, expected numbers ≥ 0, not all 0.", field="style_weights")
    return iter([weight / sum(weights) for weight in weights])
