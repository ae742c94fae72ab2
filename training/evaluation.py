"""Measurements of fast models: against the reference optimiser, and of what the loss does not see.

All models paint the same content pictures, square crops from the middle. A number of a model is the median over them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from shared import weights
from shared.architectures import VGG16
from shared.devices import pick_device, pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput, WeightsUnavailable
from shared.fast_models import CARD_FILE, MODEL_FILE, Card, FastModel, ReferenceCard
from shared.files import sha256, write_atomically
from shared.galleries import Gallery
from shared.images import decode, resize, to_picture, to_tensor
from shared.losses import GaussianTarget, channel_means, gram_matrix, wasserstein_loss
from shared.optimizer import MAX_STEPS
from shared.perceptual_loss import LossSettings, PerceptualLoss, StyleTarget
from shared.torchvision_compat import import_torchvision
from training.bench import machine
from training.content_pictures import ContentPictures, list_pictures
from training.reference import marks_up_to, reference_losses, reference_settings, steps_as_good
from training.style_trainer import TrainingSettings

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the stage, and what is done of it and in all."""

TERMS = ("content", "style", "tv", "total")
SIZES = (32, 1024)
"""Smallest and largest side that is evaluated, in pixels: relu5_1 needs the one, patience the other."""

LATENCY_SIZES = (256, 512)
_LATENCY_ROUNDS = 7


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Attributes:
        size: side of the content pictures in pixels.
        marks: steps of the reference optimiser to compare with; none: no comparison.
        seed: of the reference's noise.
        device: ``auto``, ``cpu`` or ``cuda``.
        lpips: measure LPIPS where its network can be had.

    Raises:
        InvalidInput: the size is out of range, or a mark is.
    """

    size: int = 256
    marks: tuple[int, ...] = (100, 300, 500)
    seed: int = 0
    device: str = "auto"
    lpips: bool = True

    def __post_init__(self) -> None:
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise InvalidInput(f"size is {self.size}, expected {SIZES[0]} to {SIZES[1]} pixels.", field="size")
        for mark in self.marks:
            if not 1 <= mark <= MAX_STEPS:
                raise InvalidInput(f"a mark is {mark}, expected 1 to {MAX_STEPS}.", field="marks")


@dataclass(frozen=True)
class Pair:
    """One content painted by one model. What could not be measured is None or empty.

    Attributes:
        content: title of the content picture.
        losses: terms by name, each weighted as the card says; the painting's.
        reference: the same of the reference's picture, by steps.
        lpips: distance from the content, 0 is the content itself.
        border: see :func:`border_profile`.
        raster, raster_of_content: see :func:`raster_peak`.
        colour_to_style: :func:`colour_distance` from the style.
        mean_colour_to_style: the part of it between the mean colours alone, ΔE.
        colour_between_sizes: :func:`colour_distance` of the paintings at two sizes, the second half as large again.
    """

    content: str
    losses: Mapping[str, float]
    reference: Mapping[int, Mapping[str, float]]
    lpips: float | None
    border: tuple[float, ...]
    raster: float
    raster_of_content: float
    colour_to_style: float | None
    mean_colour_to_style: float | None
    colour_between_sizes: float


@dataclass(frozen=True)
class ReferenceMark:
    """The reference after some steps, and the network against it.

    Attributes:
        losses: median of each term over the pairs.
        share: of the pairs in which the network's total loss is no higher.
    """

    losses: Mapping[str, float]
    share: float


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model; medians over the pairs, None or empty where it was not measured.

    Attributes:
        styles: title, artist and whether it was found, of each style picture on the card.
        bytes: of the network's file.
        notes: what is missing and why, a sentence each.
        losses: by term.
        reference: by steps; None where there was no comparison.
        equals_steps: after how many steps the reference is as good in the median; None: not within those made.
        border: the worst ring of ``border_profile``: 1 means that no frame is to be seen.
        seconds: for one painting, by the side of a square picture in pixels.
    """

    slug: str
    name: str
    width: str
    parameters: int
    bytes: int
    styles: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    losses: Mapping[str, float]
    reference: Mapping[int, ReferenceMark] | None
    equals_steps: int | None
    lpips: float | None
    border: float
    border_profile: tuple[float, ...]
    raster: float
    raster_of_content: float
    colour_to_style: float | None
    mean_colour_to_style: float | None
    colour_between_sizes: float
    seconds: Mapping[int, float]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Evaluation:
    """All of it.

    Attributes:
        contents: title and source of each content picture.
        marks: steps of the reference that were asked for; it is judged at some in between too.
        machine: see :func:`training.bench.machine`; also what runs the networks, with how many threads, and how busy
            the machine was (the mean number of running processes over the last minute).
        notes: what holds for all models.
        models: in the order in which they were given.
        pictures: the contents; not part of the record.
        paintings: by slug, one for each content; not part of the record.
        heads: style picture by slug, where it was found; not part of the record.
    """

    size: int
    marks: tuple[int, ...]
    seed: int
    contents: tuple[Mapping[str, str], ...]
    machine: Mapping[str, Any]
    notes: tuple[str, ...]
    models: tuple[ModelResult, ...]
    pictures: tuple[Image.Image, ...] = field(default=(), repr=False)
    paintings: Mapping[str, Sequence[Image.Image]] = field(default_factory=dict, repr=False)
    heads: Mapping[str, Image.Image] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data, for JSON: every field as documented here, without the pictures."""
        record = replace(self, pictures=(), paintings={}, heads={})
        plain = asdict(record)
        return {name: plain[name] for name in plain if name not in ("pictures", "paintings", "heads")}


def note_reference(model: FastModel, result: ModelResult, size: int) -> bool:
    """Write how the model compares with the reference into its card; False where that was not measured.

    The card's hash is that of the network, which stays as it is.
    """
    if not result.reference:
        return False
    reference = ReferenceCard(
        pairs=len(result.pairs),
        size=size,
        network_total=result.losses["total"],
        optimizer_total={str(step): mark.losses["total"] for step, mark in sorted(result.reference.items())},
        equals_steps=result.equals_steps,
    )
    card = model.card.model_copy(update={"reference": reference})
    write_atomically(model.folder / CARD_FILE, (card.model_dump_json(indent=2) + "\n").encode())
    return True


# --- what is painted ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """A picture to paint.

    Attributes:
        source: name of the gallery that it is from.
        picture: ``[1, 3, S, S]``.
        larger: the same crop, half as large again.
    """

    title: str
    source: str
    picture: Tensor
    larger: Tensor


def pick_contents(
    galleries: Sequence[Gallery], count: int, size: int, *, seed: int = 0, leave_out: Collection[str] = ()
) -> list[Content]:
    """``count`` pictures, the galleries taking turns, each in an order drawn by ``seed``; fewer where there are fewer.

    Args:
        size: side of the crops in pixels.
        leave_out: SHA-256 of files that are no contents: the style pictures.

    Raises:
        InvalidInput: no picture is left.
    """
    orders = [
        [gallery.pictures[i] for i in np.random.default_rng((seed, number)).permutation(len(gallery.pictures))]
        for number, gallery in enumerate(galleries)
    ]
    chosen: list[Content] = []
    seen = set(leave_out)
    for place in range(max(map(len, orders), default=0)):
        for gallery, order in zip(galleries, orders, strict=True):
            if len(chosen) == count:
                return chosen
            if place >= len(order) or (digest := sha256(order[place].path)) in seen:
                continue
            seen.add(digest)
            path = (order[place].path,)
            try:
                crops = [ContentPictures(path, crop=side, batch=1).centre_crops() for side in (size, size * 3 // 2)]
            except InvalidInput:  # cannot be read; the next one of the gallery has its turn
                continue
            chosen.append(Content(order[place].title, gallery.name, *crops))
    if not chosen:
        raise InvalidInput("there is no content picture that can be read.", hint="Name a folder.", field="content")
    return chosen


def find_pictures(
    hashes: Collection[str], folders: Iterable[Path], on_progress: Progress | None = None
) -> dict[str, Path]:
    """Picture files below ``folders`` by SHA-256, as far as ``hashes`` asks for them.

    Raises:
        InvalidInput: a folder does not exist or has no picture.
    """
    found: dict[str, Path] = {}
    listed = [path for folder in folders for path in list_pictures(folder)]
    for done, path in enumerate(listed, start=1):
        if found.keys() >= set(hashes):
            break
        if (digest := sha256(path)) in hashes:
            found.setdefault(digest, path)
        if on_progress:
            on_progress("style pictures", done, len(listed))
    return found


@dataclass(frozen=True)
class _Style:
    """What a model learned from, as far as it was found: pictures ``[1, 3, H, W]`` by their file's hash."""

    size: int
    pictures: Mapping[str, Tensor]

    @classmethod
    def of(cls, card: Card, files: Mapping[str, Path]) -> _Style:
        # As large as in training: the size of the style picture sets the size of the strokes.
        size = card.training.get("style_size", TrainingSettings().style_size)
        hashes = sorted({style.sha256 for style in card.styles} & files.keys())
        return cls(size, {digest: to_tensor(resize(decode(files[digest]), size)) for digest in hashes})

    @cached_property
    def colours(self) -> Colours:
        return Colours.of(list(self.pictures.values()))


# --- losses -------------------------------------------------------------------------------------------------------


class _Judge:
    """The perceptual loss of one style at one card's weights, in fp32, and the reference that minimises it."""

    def __init__(
        self, tensors: Mapping[str, Tensor], loss: LossSettings, style: _Style, device: torch.device, dtype: torch.dtype
    ):
        self.loss = PerceptualLoss(Encoder(tensors, device=device), loss)
        self.encoder = Encoder(tensors, dtype=dtype, device=device)
        self.style = style
        self.device = device
        self._target: StyleTarget = self.loss.style_target([each.to(device) for each in style.pictures.values()])

    @torch.no_grad()
    def losses(self, painting: Tensor, content: Tensor) -> dict[str, float]:
        targets = self.loss.content_target(content.to(self.device)), self._target
        return self.loss(painting.to(self.device), *targets).values()

    def reference(
        self, content: Tensor, marks: Sequence[int], seed: int, cache: Path, on_step: Callable[[int], None]
    ) -> dict[int, dict[str, float]]:
        """The reference's losses at ``marks``, read from ``cache`` where they were computed before."""
        settings = reference_settings(marks[-1], self.loss.settings, seed)
        # All that the descent depends on; the number of steps is not part of it.
        identity = {
            "content": hashlib.sha256(content.numpy().tobytes()).hexdigest(),
            "shape": list(content.shape),
            "styles": list(self.style.pictures),
            "style_size": self.style.size,
            "settings": {name: value for name, value in settings.as_dict().items() if name != "steps"},
            "encoder": self.encoder.architecture.name,
            "precision": str(self.encoder.dtype),
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        file = cache / f"{key[:32]}.json"
        found = _read_curve(file)
        if not found.keys() >= set(marks):
            targets = self.loss.content_target(content.to(self.device)), self._target
            pictures = list(self.style.pictures.values())
            found |= reference_losses(content, pictures, self.encoder, settings, self.loss, targets, marks, on_step)
            cache.mkdir(parents=True, exist_ok=True)
            curve = {str(mark): terms for mark, terms in sorted(found.items())}
            write_atomically(file, json.dumps({"of": identity, "losses": curve}, indent=1).encode())
        return {mark: found[mark] for mark in marks}


def _read_curve(file: Path) -> dict[int, dict[str, float]]:
    try:
        curve = json.loads(file.read_bytes())["losses"]
        return {int(mark): {term: float(terms[term]) for term in TERMS} for mark, terms in curve.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read and is computed again: %s", file, error)
        return {}


def _loss_of(card: Card) -> LossSettings | None:
    """The loss that the card says the network was trained with; None where it says none that can be computed."""
    try:
        return LossSettings(**card.training["loss"])
    except (KeyError, TypeError, InvalidInput):
        return None


class Lpips:
    """Learned perceptual image patch similarity (Zhang et al. 2018), through VGG-16.

    The linear weights come with torchmetrics, the convolutions from Lienzo's own pinned weights: torchvision would
    download the same ones and unpickle them.

    Args:
        tensors: of ``vgg16``, as :func:`shared.weights.load` returns them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        import_torchvision()  # torchmetrics imports it as it is
        # Private, since the public class cannot do without torchvision's download.
        from torchmetrics.functional.image.lpips import _LPIPS

        self._network = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
        convolutions = [module for module in self._network.net.modules() if isinstance(module, nn.Conv2d)]
        for name, convolution in zip(VGG16.convolutions, convolutions, strict=True):
            convolution.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Distance of two pictures ``[1, 3, H, W]`` in [0, 1]; 0 for equal ones."""
        return float(self._network(a, b, normalize=True))


def open_lpips(on_progress: Progress | None = None) -> tuple[Lpips | None, str]:
    """LPIPS, or None and why it cannot be measured here."""
    try:
        return Lpips(weights.load("vgg16", progress=on_progress)), ""
    except WeightsUnavailable as error:
        log.info("%s", error)
        return None, "LPIPS was not measured: VGG-16 could not be had; `lienzo weights fetch vgg16` says why."
    except ModuleNotFoundError as error:
        if error.name != "torchmetrics":
            raise
        return None, "LPIPS was not measured: the package torchmetrics is not installed."


# --- the border ---------------------------------------------------------------------------------------------------

_BLOCK = 4
_FRAME = 16
_SURROUND = 64
_LEVEL = 1 / 255


def border_profile(paint: Callable[[Tensor], Tensor], content: Tensor) -> tuple[float, ...]:
    """How much further off the painting is along its border than in the middle: 1, where no frame is to be seen.

    A painting may well put other strokes at its border than it would if the picture went on there, and nobody minds;
    what is seen is a frame, a band whose tone is not the one that its subject has elsewhere. So the tone of a place
    (the mean colour of 4×4 pixels, which strokes average out of) is compared with what the network makes of such a
    colour: an affine map from the content's colours to the painting's, fitted by least squares. Each ring of blocks,
    from the border inwards as far as 16 pixels, has a mean squared deviation from it, and so has all that lies further
    inside.

    Contents differ at their borders, so both are put in relation to the same places in a second painting, in which the
    border is none: the content goes on, reflected, for 64 pixels on each side, and the painting is cropped again. That
    also takes out how the network's normalisations react to the crop.

    Medians of the outermost ring over six paintings of The Met were 1.0 to 1.2 for the three networks that ship, which
    pad by reflection, and 1.25, 1.5 and 1.7 for the same ones made to pad with zeros, in the order in which their
    frames catch the eye.

    Returns:
        The ratio of root mean square deviations, ring against the middle, by ring of 4 pixels from the border inwards:
        four of them, fewer for sides below 128. Deviations of less than one level of 256 count as one.
    """
    height, width = content.shape[-2:]
    surround = min(_SURROUND, (min(height, width) - 1) // _BLOCK * _BLOCK)
    whole = paint(F.pad(content, (surround,) * 4, mode="reflect"))
    inside = whole[..., surround:-surround, surround:-surround]
    source, with_border, without = (_tones(each) for each in (content, paint(content), inside))
    colours = torch.cat([source.flatten(1), torch.ones(1, source[0].numel(), dtype=source.dtype)]).T
    # By the pseudo-inverse, for contents without colour.
    palette = torch.linalg.pinv(colours) @ without.flatten(1).T
    expected = (colours @ palette).T.reshape_as(source)
    deviations = [(each - expected).square().mean(0) for each in (with_border, without)]
    depth = _depth(*source.shape[-2:])
    rings = min(_FRAME // _BLOCK, min(source.shape[-2:]) // 8)

    def ratio(places: Tensor) -> float:
        bordered, plain = (float(each[places].mean()) + _LEVEL**2 for each in deviations)
        return bordered / plain

    middle = ratio(depth >= rings)
    return tuple((ratio(depth == ring) / middle) ** 0.5 for ring in range(rings))


def _tones(picture: Tensor) -> Tensor:
    """Mean colours of blocks, ``[3, H / 4, W / 4]``; what is left of a block on the right and below counts as one."""
    return F.avg_pool2d(picture.double(), _BLOCK, ceil_mode=True)[0]


def _depth(height: int, width: int) -> Tensor:
    """Distance of each place from the border, 0 on it."""
    down, across = (torch.minimum(torch.arange(n), torch.arange(n).flip(0)) for n in (height, width))
    return torch.minimum(down[:, None], across[None])


# --- the raster ---------------------------------------------------------------------------------------------------


def raster_peak(picture: Tensor) -> float:
    """How far the spectrum stands out at the frequencies of the network's grid, periods of 2 and 4 pixels: 1, not.

    A network that enlarges its activations twice by two leaves its artefacts (checkerboards, lines) at the frequencies
    0, 1/4 and 1/2 in either direction (Odena et al. 2016). At each such point but (0, 0) the mean energy of the 3×3
    frequencies around it is divided by that of its neighbours: up to a sixteenth of the spectrum away in the
    directions in which the point lies, not counting the nearest two. In a direction in which the point is 0, natural
    pictures have a ridge, so neighbours stay on it. The result is the mean over the points; without a raster it
    scatters around 1.

    Args:
        picture: ``[1, 3, H, W]``, both sides at least 32; what exceeds a multiple of 4 is left out.
    """
    height, width = (side // 4 * 4 for side in picture.shape[-2:])
    lines = picture[0, :, :height, :width].double()
    windows = (torch.hann_window(side, dtype=torch.float64) for side in (height, width))
    window = torch.outer(*windows)
    # The window leaks a constant to the frequencies next to 0, and so each period's onto its neighbours only.
    power = torch.fft.fft2((lines - lines.mean((1, 2), keepdim=True)) * window).abs().square().sum(0)
    ratios = []
    # The other half of the plane mirrors this one.
    for down, across in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)):
        reach = [max(4, side // 16) if part else 1 for part, side in ((down, height), (across, width))]
        patch = power.roll((reach[0] - down * height // 4, reach[1] - across * width // 4), (0, 1))
        patch = patch[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
        away = torch.maximum(*torch.meshgrid(*(torch.arange(-r, r + 1).abs() for r in reach), indexing="ij"))
        tiny = torch.finfo(power.dtype).tiny  # a picture of one colour has no energy anywhere
        ratios.append(float((patch[away <= 1].mean() + tiny) / (patch[away > 2].mean() + tiny)))
    return statistics.mean(ratios)


# --- colours ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colours:
    """The normal distribution of a picture's colours in CIE Lab.

    Attributes:
        moments: second moments about 0, ``[1, 3, 3]``.
        means: ``[1, 3]``.
    """

    moments: Tensor
    means: Tensor

    @classmethod
    def of(cls, pictures: Sequence[Tensor]) -> Colours:
        """Of all pixels of pictures ``[1, 3, H, W]``, each picture counting alike."""
        labs = [to_lab(picture) for picture in pictures]
        return cls(
            torch.stack([gram_matrix(lab) for lab in labs]).mean(0),
            torch.stack([channel_means(lab) for lab in labs]).mean(0),
        )


def colour_distance(a: Colours, b: Colours) -> float:
    """2-Wasserstein distance of two distributions of colours: ΔE that pixels are moved by, in the root mean square."""
    squared = 3 * wasserstein_loss(a.moments, a.means, GaussianTarget.of(b.moments, b.means))
    return float(squared.clamp_min(0).sqrt())


def to_lab(pictures: Tensor) -> Tensor:
    """sRGB in [0, 1] as CIE 1976 L*a*b* (white D65), fp64, ``[N, 3, H, W]``: L* in 0–100, one unit is one ΔE."""
    levels = pictures.double()
    linear = torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    to_xyz = linear.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    # Divided by the white: each row sums to 1.
    xyz = torch.einsum("ij,njhw->nihw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    bent = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = bent.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


# --- speed --------------------------------------------------------------------------------------------------------


def latencies(
    models: Sequence[FastModel], sizes: Sequence[int], rounds: int, on_progress: Progress | None = None
) -> dict[str, dict[int, float]]:
    """Median seconds of :meth:`FastModel.paint` on a square picture, by slug and size.

    The models take turns, so that what else the machine does falls on all of them; a first round is not counted.
    """
    times: dict[tuple[str, int], list[float]] = {(model.card.slug, size): [] for model in models for size in sizes}
    pictures = {size: np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32) for size in sizes}
    for turn in range(rounds + 1):
        for model in models:
            for size in sizes:
                began = time.perf_counter()
                model.paint(pictures[size])
                if turn:
                    times[model.card.slug, size].append(time.perf_counter() - began)
        if on_progress:
            on_progress("speed", turn + 1, rounds + 1)
    return {
        model.card.slug: {size: statistics.median(times[model.card.slug, size]) for size in sizes} for model in models
    }


# --- all of it ----------------------------------------------------------------------------------------------------


def evaluate(
    models: Sequence[FastModel],
    contents: Sequence[Content],
    style_files: Mapping[str, Path],
    settings: EvaluationSettings,
    cache: Path,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Measure ``models`` on ``contents``.

    Args:
        models: at least one; each of another slug.
        contents: from :func:`pick_contents`, at ``settings.size``.
        style_files: style pictures by SHA-256; a model none of whose style pictures is among them is measured without
            losses.
        cache: folder that the reference's losses are kept in, so that an interrupted evaluation goes on where it was,
            and another network of the same style costs nothing.
    """
    report = on_progress or (lambda stage, done, total: None)
    device = pick_device(settings.device)
    dtype = pick_dtype("auto", device)
    styles = {model.card.slug: _Style.of(model.card, style_files) for model in models}
    judged = {
        model.card.slug: loss for model in models if styles[model.card.slug].pictures and (loss := _loss_of(model.card))
    }
    tensors = weights.load("vgg19", progress=report) if judged else {}
    judges = {slug: _Judge(tensors, loss, styles[slug], device, dtype) for slug, loss in judged.items()}
    lpips, missing = open_lpips(report) if settings.lpips else (None, "")

    # First what takes seconds, so that mistakes show before the reference has run for hours.
    painted: dict[str, list[Tensor]] = {}
    pairs: dict[str, list[dict[str, Any]]] = {}
    for number, model in enumerate(models):
        slug = model.card.slug
        painted[slug], pairs[slug] = [], []
        for i, content in enumerate(contents):
            painting = _paint(model, content.picture)
            painted[slug].append(painting)
            pairs[slug].append(_measure(model, painting, content, styles[slug], judges.get(slug), lpips))
            report("paintings", number * len(contents) + i + 1, len(models) * len(contents))
    seconds = latencies(models, LATENCY_SIZES, _LATENCY_ROUNDS, report)
    facts = _facts(models[0], device)
    curves = _references(judges, contents, settings, cache, report) if settings.marks else {}
    return Evaluation(
        size=settings.size,
        marks=settings.marks,
        seed=settings.seed,
        contents=tuple({"title": content.title, "source": content.source} for content in contents),
        machine=facts | {"reference_precision": str(dtype).removeprefix("torch.")},
        notes=(missing,) if missing else (),
        models=tuple(
            _result(
                model,
                [
                    Pair(reference=curve, **pair)
                    for pair, curve in zip(
                        pairs[model.card.slug], curves.get(model.card.slug, [{}] * len(contents)), strict=True
                    )
                ],
                seconds[model.card.slug],
                style_files,
                judged=model.card.slug in judges,
            )
            for model in models
        ),
        pictures=tuple(to_picture(content.picture) for content in contents),
        paintings={slug: [to_picture(painting) for painting in found] for slug, found in painted.items()},
        heads={
            slug: to_picture(next(iter(style.pictures.values()))) for slug, style in styles.items() if style.pictures
        },
    )


def _paint(model: FastModel, picture: Tensor) -> Tensor:
    return torch.from_numpy(model.paint(picture.numpy()))


def _measure(
    model: FastModel, painting: Tensor, content: Content, style: _Style, judge: _Judge | None, lpips: Lpips | None
) -> dict[str, Any]:
    """The fields of a :class:`Pair` but for the reference."""
    colours = Colours.of([painting])
    known = bool(style.pictures)
    return {
        "content": content.title,
        "losses": judge.losses(painting, content.picture) if judge else {},
        "lpips": lpips(painting, content.picture) if lpips else None,
        "border": border_profile(lambda picture: _paint(model, picture), content.picture),
        "raster": raster_peak(painting),
        "raster_of_content": raster_peak(content.picture),
        "colour_to_style": colour_distance(colours, style.colours) if known else None,
        "mean_colour_to_style": float((colours.means - style.colours.means).norm()) if known else None,
        "colour_between_sizes": colour_distance(colours, Colours.of([_paint(model, content.larger)])),
    }


def _references(
    judges: Mapping[str, _Judge],
    contents: Sequence[Content],
    settings: EvaluationSettings,
    cache: Path,
    report: Progress,
) -> dict[str, list[dict[int, dict[str, float]]]]:
    steps, curves, done = max(settings.marks), {}, 0
    total = steps * len(judges) * len(contents)
    marks = sorted({*marks_up_to(steps), *settings.marks})
    for slug, judge in judges.items():
        curves[slug] = []
        for content in contents:

            def count(step: int, before: int = done) -> None:
                report("reference", before + step, total)

            curves[slug].append(judge.reference(content.picture, marks, settings.seed, cache, count))
            done += steps
            report("reference", done, total)
    return curves


def _result(
    model: FastModel, pairs: Sequence[Pair], seconds: Mapping[int, float], files: Mapping[str, Path], *, judged: bool
) -> ModelResult:
    card = model.card
    losses = _medians([pair.losses for pair in pairs])
    reference = {
        mark: ReferenceMark(
            losses=_medians([pair.reference[mark] for pair in pairs]),
            share=statistics.mean(pair.losses["total"] <= pair.reference[mark]["total"] for pair in pairs),
        )
        for mark in pairs[0].reference
    }
    profile = tuple(statistics.median(ring) for ring in zip(*(pair.border for pair in pairs), strict=True))
    totals = {mark: found.losses["total"] for mark, found in reference.items()}
    return ModelResult(
        slug=card.slug,
        name=card.name,
        width=card.width,
        parameters=card.parameters,
        bytes=(model.folder / MODEL_FILE).stat().st_size,
        styles=tuple(
            {"title": style.title, "artist": style.artist, "found": style.sha256 in files} for style in card.styles
        ),
        notes=_notes(card, files, judged),
        losses=losses,
        reference=reference or None,
        equals_steps=steps_as_good(losses["total"], totals) if reference else None,
        border=max(profile),
        border_profile=profile,
        seconds=seconds,
        pairs=tuple(pairs),
        **{
            name: _median([getattr(pair, name) for pair in pairs])
            for name in (
                "lpips",
                "raster",
                "raster_of_content",
                "colour_to_style",
                "mean_colour_to_style",
                "colour_between_sizes",
            )
        },
    )


def _notes(card: Card, files: Mapping[str, Path], judged: bool) -> tuple[str, ...]:
    found = sum(style.sha256 in files for style in card.styles)
    if not found:
        return (f"{card.slug} was measured without losses: none of its style pictures was found.",)
    notes = []
    if found < len(card.styles):
        notes.append(f"{card.slug} was measured against {found} of its {len(card.styles)} style pictures.")
    if not judged:
        notes.append(f"{card.slug} was measured without losses: its card does not say what it was trained to minimise.")
    return tuple(notes)


def _facts(model: FastModel, device: torch.device) -> dict[str, Any]:
    facts = machine(device) | {
        "provider": model.provider,
        "provider_threads": model.running.threads,
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    return facts


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _median(values: Sequence[float | None]) -> float | None:
    """None where a value was not measured: then none of them was."""
    return None if None in values else statistics.median(values)
