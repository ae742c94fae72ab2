"""Trains the joint embedding of texts and pictures: the published cosine margin loss, and a contrastive one."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from shared.devices import pick_device
from shared.errors import InvalidInput
from shared.joint_embedding import ACTIVATIONS, Projection
from training.checkpoints import load_checkpoint, save_checkpoint
from training.retrieval_metrics import Figure, measure_both, score
from training.style_trainer import TrainingFailed

log = logging.getLogger(__name__)

LOSSES = ("margin", "contrastive")
SCHEDULES = ("constant", "cosine")

Figures = Mapping[str, Mapping[str, Figure]]
"""Figures by direction and name, see :func:`training.retrieval_metrics.measure_both`."""


@dataclass(frozen=True)
class EmbedSettings:
    """How an embedding is trained. The defaults are those of the preset ``best``.

    Attributes:
        dimensions: K of the common space.
        loss: ``margin`` (:func:`margin_loss`) or ``contrastive`` (:func:`contrastive_loss`).
        activation: ``tanh`` or ``none``, after the projections.
        image_output: of the image encoder, where the encoder's name leaves it open: ``features`` or ``logits``.
        standardize: bring every image feature to mean 0 and variance 1 over the training pictures; else the features,
            whose length is 1, are multiplied by √D.
        sentences: whether a sentence encoder, where one is given, is read beside the words.
        sentence_scale: length of its vectors, against 1 for the words of a field.
        least_words: times that a word must occur in the training descriptions to be counted; words of titles all are.
        extra_share: share of the training pairs whose author, school, type, technique and time are read too; 0: never.
        epochs, batch, learning_rate, schedule, weight_decay: of AdamW; without weight decay it is Adam.
        dropout: share of the inputs of both projections that are left out at each step.
        views: random crops of each picture to train on; 0: the picture's middle alone.
        margin, mismatches: of the margin loss, and the share of its pairs that do not belong together.
        temperature: the first one of the contrastive loss, which learns it.
        hardness: how much more negatives count that are hard, see :func:`contrastive_loss`.
        finetune: whether the image encoder is trained too, at the learning rate ``tower_rate``.
        seed: of the initial weights, of the order and of the crops.
    """

    dimensions: int = 256
    loss: str = "contrastive"
    activation: str = "none"
    image_output: str = "features"
    standardize: bool = False
    sentences: bool = True
    sentence_scale: float = 3.0
    least_words: int = 10
    extra_share: float = 0.0
    epochs: int = 20
    batch: int = 64
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    dropout: float = 0.3
    views: int = 2
    margin: float = 0.1
    mismatches: float = 0.8
    temperature: float = 0.07
    hardness: float = 0.0
    finetune: bool = False
    tower_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("loss", LOSSES), ("activation", ACTIVATIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}.", field=name
                )
        for name, least in (
            ("dimensions", 1),
            ("least_words", 1),
            ("epochs", 1),
            ("batch", 2),
            ("views", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}, expected at least {least}.", field=name)
        for name, low, high in (
            ("extra_share", 0, 1),
            ("mismatches", 0, 1),
            ("margin", -1, 1),
            ("dropout", 0, 0.99),
            ("learning_rate", 1e-9, 1),
            ("tower_rate", 1e-9, 1),
            ("temperature", 1e-3, 10),
            ("sentence_scale", 0, 100),
            ("weight_decay", 0, 10),
            ("hardness", 0, 10),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidInput(f"{name} is {getattr(self, name)}, expected {low} to {high}.", field=name)


_THESIS = EmbedSettings(
    dimensions=28,
    loss="margin",
    activation="tanh",
    image_output="logits",
    sentences=False,
    epochs=10,
    batch=28,
    learning_rate=1e-4,
    schedule="constant",
    dropout=0.0,
)

PRESETS = {"thesis": _THESIS, "semart": dataclasses.replace(_THESIS, dimensions=128), "best": EmbedSettings()}
"""``semart``: Garcia and Vogiatzis (2018); ``thesis``: the same with 28 dimensions; ``best``: chosen by measuring on
validation pairs.

The first two differ from the publications in two ways: ResNet-50's outputs come at one length for all pictures (two
seeds told no difference), and random crops are drawn from a few for each picture, not anew in each epoch.
"""


class Images(Protocol):
    """The image features of one split, with or without a network that is trained along."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """``[len(rows), D]`` of random views; differentiable where the image encoder is trained."""

    def all(self) -> Tensor:
        """``[N, D]``, every picture as a service would look at it."""


@dataclass(frozen=True)
class CachedImages:
    """Features that were computed before.

    Attributes:
        features: ``[N, 1 + V, D]``; view 0 is the one that a service has.
    """

    features: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        views = rng.integers(self.features.shape[1], size=len(rows))
        return torch.from_numpy(self.features[rows, views].astype(np.float32))

    def all(self) -> Tensor:
        return torch.from_numpy(self.features[:, 0].astype(np.float32))


@dataclass(frozen=True)
class Pairs:
    """Texts and pictures of one split; row i of both belongs together.

    Attributes:
        text: ``[N, F]``, see :class:`shared.joint_embedding.TextFeatures`.
        images: N pictures.
        extra: the first column of ``text`` that holds the extra text, and the first after it.
    """

    text: sparse.csr_array
    images: Images
    extra: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Epoch:
    """One epoch, as the table, the curves and the record see it."""

    epoch: int
    epochs: int
    loss: float
    figures: Figures
    """On the validation pairs."""
    best: bool
    """Whether no epoch before had a higher sum of R@k."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and JSON."""
        return {
            "epoch": self.epoch,
            "loss": self.loss,
            **{side: {name: asdict(figure) for name, figure in found.items()} for side, found in self.figures.items()},
        }


@dataclass(frozen=True)
class EmbedResult:
    """The projections after the best epoch.

    Attributes:
        history: :meth:`Epoch.as_dict` of every epoch.
        tower: state of the image encoder after the best epoch, where it was trained.
    """

    text_side: Projection
    image_side: Projection
    best_epoch: int
    history: list[dict[str, Any]]
    tower: Mapping[str, Tensor] | None = None


class JointNetwork(nn.Module):
    """Both projections while they are trained: linear, tanh or not, length 1.

    Args:
        images: ``[N, D]``, the training pictures, for the mean and the scale of each feature.
        aligned: the last D columns of the texts lie in the space of the pictures; both are then projected alike at
            first, and words count nothing, so that training starts from the cosines of that space.
    """

    def __init__(self, text_dimensions: int, images: Tensor, settings: EmbedSettings, *, aligned: bool = False):
        super().__init__()
        self.text = nn.Linear(text_dimensions, settings.dimensions)
        self.image = nn.Linear(images.shape[1], settings.dimensions)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.temperature)))
        self.activation, self.dropout = settings.activation, settings.dropout
        if settings.standardize:
            mean, scale = images.mean(0), 1 / images.std(0, correction=0).clamp_min(1e-6)
        else:
            mean, scale = torch.zeros(images.shape[1]), torch.full((images.shape[1],), math.sqrt(images.shape[1]))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        if aligned:
            self._align()

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, F]`` and ``[N, D]`` → twice ``[N, K]`` of length 1."""
        return self._project(self.text, text), self._project(self.image, (image - self.mean) * self.scale)

    def sides(self) -> tuple[Projection, Projection]:
        """The projections of texts and pictures as they are used afterwards, the scaling of the features included."""
        weight = self.image.weight * self.scale
        bias = self.image.bias - weight @ self.mean
        return tuple(
            Projection(w.numpy(force=True).copy(), b.numpy(force=True).copy(), self.activation)
            for w, b in ((self.text.weight, self.text.bias), (weight, bias))
        )

    @torch.no_grad()
    def _align(self) -> None:
        common = nn.init.orthogonal_(torch.empty_like(self.image.weight))
        self.image.weight.copy_(common)
        self.text.weight.zero_()
        self.text.weight[:, -common.shape[1] :] = common
        for layer in (self.text, self.image):
            layer.bias.zero_()

    def _project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        y = layer(F.dropout(x, self.dropout, self.training))
        return F.normalize(torch.tanh(y) if self.activation == "tanh" else y, dim=-1)


def margin_loss(text: Tensor, image: Tensor, matches: Tensor, margin: float) -> Tensor:
    """Mean of ``1 - cos`` over pairs that match and ``max(0, cos - margin)`` over those that do not.

    Garcia and Vogiatzis (2018), section 5.2.

    Args:
        text, image: ``[N, K]`` of length 1.
        matches: ``[N]`` bool.
    """
    cosines = (text * image).sum(-1)
    return torch.where(matches, 1 - cosines, F.relu(cosines - margin)).mean()


def contrastive_loss(text: Tensor, image: Tensor, scale: Tensor | float, hardness: float = 0.0) -> Tensor:
    """Symmetric InfoNCE: every text must pick its picture among those of the batch, and the other way round.

    Radford et al. 2021 (CLIP), figure 3. With ``hardness`` β the negatives of each query count in proportion to
    ``exp(β cos)``, with the same sum (Robinson et al. 2021, "Contrastive Learning with Hard Negative Samples").

    Args:
        text, image: ``[N, K]`` of length 1; row i of both belongs together.
        scale: inverse of the temperature.
    """
    cosines = text @ image.T
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    halves = []
    for each in (cosines, cosines.T):
        logits = each * scale
        if hardness and len(each) > 1:
            # The weights' logarithms join the exponent; no gradient flows through them.
            weights = F.log_softmax((hardness * each.detach()).masked_fill(own, -math.inf), dim=1)
            logits = torch.where(own, logits, logits + weights + math.log(len(each) - 1))
        halves.append(F.cross_entropy(logits, torch.arange(len(each), device=each.device)))
    return (halves[0] + halves[1]) / 2


def train_embedding(
    train: Pairs,
    validation: Pairs,
    settings: EmbedSettings,
    run: Path,
    *,
    tower: nn.Module | None = None,
    aligned: bool = False,
    device: str = "auto",
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> EmbedResult:
    """Train ``settings.epochs`` epochs, resuming after the last whole one where ``run`` holds a checkpoint.

    All that is random in an epoch depends on the seed and the epoch alone, so a resumed training ends like one that
    was not interrupted.

    Args:
        run: folder of the checkpoints.
        tower: the image encoder that ``train.images`` and ``validation.images`` run through, where it is trained too.
        aligned: whether texts and pictures come from one space, see :class:`JointNetwork`.
        on_step: called with the steps done and the steps in all.
        on_epoch: called after every epoch.

    Raises:
        InvalidInput: the checkpoint belongs to other settings or pairs.
        TrainingFailed: the loss is no longer a number.
    """
    target = pick_device(device)
    torch.manual_seed(settings.seed)
    if tower is not None:
        tower.to(target)
    pictures = train.images.all()
    network = JointNetwork(train.text.shape[1], pictures.cpu(), settings, aligned=aligned).to(target)
    groups = [{"params": list(network.parameters()), "factor": settings.learning_rate}]
    if tower is not None:
        groups.append({"params": list(tower.parameters()), "factor": settings.tower_rate})
    optimizer = torch.optim.AdamW(groups, settings.learning_rate, weight_decay=settings.weight_decay)
    belongs = {
        "settings": asdict(settings),
        "pairs": f"{_fingerprint(train.text, pictures)} {_fingerprint(validation.text, validation.images.all())}",
    }

    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {"epoch": 0, "score": -math.inf}
    checkpoint = load_checkpoint(run)
    if checkpoint is not None:
        _check_same(checkpoint["belongs"], belongs, run)
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if tower is not None:
            tower.load_state_dict(checkpoint["tower"])
        history, best = checkpoint["history"], checkpoint["best"]
        log.info("resuming after epoch %d", len(history))

    steps = _steps(len(train.images), settings)
    for epoch in range(len(history), settings.epochs):
        rng = np.random.default_rng((settings.seed, epoch))
        torch.manual_seed(int(rng.integers(2**62)))
        network.train()
        losses = []
        for number, rows in enumerate(_batches(len(train.images), settings, rng)):
            done = epoch * steps + number
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * _schedule(settings.schedule, done / (settings.epochs * steps))
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(network, train, rows, settings, rng, target)
            if not math.isfinite(loss.item()):
                raise TrainingFailed(f"the loss is not a number in epoch {epoch + 1}.", hint="Lower --learning-rate.")
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if on_step is not None:
                on_step(done + 1, settings.epochs * steps)
        figures = measure_both(*embed_pairs(network, validation, target))
        better = score(figures) > best["score"]
        found = Epoch(epoch + 1, settings.epochs, float(np.mean(losses)), figures, better)
        history.append(found.as_dict())
        if better:
            best = {"epoch": epoch + 1, "score": score(figures), "network": _copied(network), "tower": _copied(tower)}
        save_checkpoint(
            run,
            {
                "belongs": belongs,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "tower": _copied(tower),
                "history": history,
                "best": best,
            },
        )
        if on_epoch is not None:
            on_epoch(found)
    network.load_state_dict(best["network"])
    return EmbedResult(*network.sides(), best["epoch"], history, best["tower"])


@torch.no_grad()
def embed_pairs(network: JointNetwork, pairs: Pairs, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Texts (without the extra text) and pictures as points, twice ``[N, K]``."""
    network.eval()
    text = pairs.text.tolil()
    text[:, slice(*pairs.extra)] = 0
    points = network(torch.from_numpy(text.toarray()).to(device), pairs.images.all().to(device))
    return tuple(each.numpy(force=True) for each in points)


def _loss(
    network: JointNetwork,
    pairs: Pairs,
    rows: np.ndarray,
    settings: EmbedSettings,
    rng: np.random.Generator,
    device: torch.device,
) -> Tensor:
    text_rows = rows
    if settings.loss == "margin":
        mismatched = rng.random(len(rows)) < settings.mismatches
        text_rows = np.where(mismatched, rng.integers(len(pairs.images), size=len(rows)), rows)
    text = pairs.text[text_rows].toarray()
    text[rng.random(len(rows)) >= settings.extra_share, slice(*pairs.extra)] = 0
    points = network(torch.from_numpy(text).to(device), pairs.images.batch(rows, rng).to(device))
    if settings.loss == "margin":
        return margin_loss(*points, torch.from_numpy(text_rows == rows).to(device), settings.margin)
    # 100 is where Radford et al. stop the scale.
    return contrastive_loss(*points, network.log_scale.exp().clamp(max=100), settings.hardness)


def _steps(pairs: int, settings: EmbedSettings) -> int:
    """Steps an epoch. A last batch of a single pair is left out: it has no negative."""
    whole, rest = divmod(pairs, settings.batch)
    return whole + (rest > 1)


def _batches(pairs: int, settings: EmbedSettings, rng: np.random.Generator) -> list[np.ndarray]:
    order = rng.permutation(pairs)
    return [order[i * settings.batch :][: settings.batch] for i in range(_steps(pairs, settings))]


def _schedule(name: str, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress)) if name == "cosine" else 1.0


def _copied(module: nn.Module | None) -> dict[str, Tensor] | None:
    return None if module is None else {name: tensor.cpu().clone() for name, tensor in module.state_dict().items()}


def _fingerprint(text: sparse.csr_array, pictures: Tensor) -> str:
    """Hexadecimal digits over texts and pictures: whether a checkpoint belongs to them."""
    digest = hashlib.sha256(pictures.numpy(force=True).tobytes())
    for part in (text.data, text.indices, text.indptr):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _check_same(made_with: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    hint = "Use the same to resume, another --output, or delete the folder to start over."
    if made_with["settings"] != now["settings"]:
        old = made_with["settings"]
        changed = ", ".join(f"{k}: {old.get(k)} then, {v} now" for k, v in now["settings"].items() if old.get(k) != v)
        raise InvalidInput(
            f"the checkpoint in '{run}' was made with other settings ({changed}).", hint=hint, field="output"
        )
    if made_with["pairs"] != now["pairs"]:
        raise InvalidInput(
            f"the checkpoint in '{run}' was made with other texts, pictures or encoders.", hint=hint, field="output"
        )
