"""Fast models: folders of ``model.onnx`` and ``card.json``, found by scanning, refused where they do not match."""

from __future__ import annotations

import logging
import re
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.engines import Engine, open_engine
from shared.errors import InvalidInput, ModelRefused, NotFound
from shared.files import sha256

if TYPE_CHECKING:
    from shared.large_painting import LargePainter

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
CARD_FILE = "card.json"
SHIPPED = Path(__file__).parent / "assets" / "models"
SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
LONGEST_SLUG = 64
LONGEST_NAME = 120
WHOLE_BYTES = 2**30
"""Working memory that one pass may take; larger pictures are painted in strips."""


def slugged(title: str, longest: int = LONGEST_SLUG) -> str:
    """A title as a slug, ``The great wave off Kanagawa`` as ``the-great-wave-off-kanagawa``; empty if nothing fits."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:longest].strip("-")


class _CardPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StylePicture(_CardPart):
    """One picture that a network learned its style from."""

    title: str
    artist: str = ""
    date: str = ""
    source: str = ""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the picture's file")


class ClusterCard(_CardPart):
    """The part of style space that a network serves."""

    id: str
    style_space: str = Field(description="fingerprint of the style space that the centre lies in")
    centre: tuple[float, ...]
    radius: float = Field(gt=0, description="cosine distance within which a style counts as this one")


class InputCard(_CardPart):
    """What the network's input (and output) tensor is."""

    name: str = "pictures"
    layout: Literal["NCHW"] = "NCHW"
    colour: Literal["RGB"] = "RGB"
    minimum: float = 0.0
    maximum: float = 1.0


class ParityCard(_CardPart):
    """Largest difference between PyTorch's output and ONNX Runtime's, on [0, 1]."""

    max_difference: float
    shapes: tuple[tuple[int, int, int], ...] = Field(description="batch, height, width of each comparison")


class ReferenceCard(_CardPart):
    """How the network's loss compares with the reference optimiser's on held-out pictures."""

    pairs: int
    size: int
    network_total: float = Field(description="median total loss of the network's paintings")
    optimizer_total: dict[str, float] = Field(
        description="median total loss of the reference, started from noise, by number of steps"
    )
    equals_steps: int | None = Field(
        description="after how many steps from noise the reference is as good (median); None: not within those tried"
    )


class Card(_CardPart):
    """``card.json``: what a fast model is, where it comes from and how good it is."""

    format: Literal[1] = 1
    slug: str = Field(pattern=rf"^{SLUG.pattern}$", max_length=LONGEST_SLUG)
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    styles: tuple[StylePicture, ...]
    cluster: ClusterCard | None = None
    width: str
    parameters: int
    training: dict[str, Any] = Field(description="settings, steps, seconds, device")
    data: dict[str, Any] = Field(description="what the content pictures were, and how many")
    validation: dict[str, float] = Field(default_factory=dict, description="losses on held-out crops at the end")
    reference: ReferenceCard | None = None
    commit: str = ""
    created: str
    input: InputCard = InputCard()
    stride: int
    min_side: int
    opset: int
    parity: ParityCard
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of model.onnx")
    licence: str = ""


def read_card(folder: Path) -> Card:
    """The card of the model in ``folder``, its file's hash checked.

    Raises:
        ModelRefused: a file is missing, the card is malformed, or the network is not the one it describes.
    """
    for name in (MODEL_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise ModelRefused(
                f"the model folder '{folder}' has no {name}.", hint=f"It needs {MODEL_FILE} and {CARD_FILE}."
            )
    try:
        card = Card.model_validate_json((folder / CARD_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelRefused(
            f"the card of model '{folder.name}' is malformed: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            hint="Export the model again with `lienzo-train export`.",
        ) from error
    actual = sha256(folder / MODEL_FILE)
    if actual != card.sha256:
        raise ModelRefused(
            f"model '{card.slug}' in '{folder}' does not match its card: "
            f"{MODEL_FILE} has SHA-256 {actual[:12]}…, the card says {card.sha256[:12]}….",
            hint="The file was changed or copied incompletely; copy or export the folder again.",
        )
    return card


@dataclass(frozen=True)
class FastModel:
    """A fast model on disk; its engine opens at first use.

    Attributes:
        device, engine, gpu_memory: see :func:`shared.engines.open_engine`.
    """

    folder: Path
    card: Card
    device: str = "auto"
    engine: str = "auto"
    gpu_memory: int | None = None

    @cached_property
    def network(self) -> bytes:
        """The network's file, read once and kept: the folder may be removed, or filled with another network."""
        return (self.folder / MODEL_FILE).read_bytes()

    @cached_property
    def running(self) -> Engine:
        """The network on the engine that runs it."""
        from shared.graphs import quickened  # a tenth of a second that reading cards needs not

        return self._open(quickened(self.network))

    @cached_property
    def large(self) -> LargePainter:
        """What paints pictures that are too large for one pass.

        Raises:
            ModelRefused: the network is of another kind than those that Lienzo trains.
        """
        from shared.large_painting import LargePainter

        return LargePainter(self.network, self._open)

    def fits(self, pixels: int) -> bool:
        """Whether a picture of so many pixels is painted in one pass, within :data:`WHOLE_BYTES`."""
        return pixels * self.running.bytes_per_pixel <= WHOLE_BYTES

    def _open(self, graph: bytes) -> Engine:
        name = f"'{self.folder / MODEL_FILE}'"
        return open_engine(graph, name=name, engine=self.engine, device=self.device, gpu_memory=self.gpu_memory)

    @property
    def provider(self) -> str:
        """What really runs the network."""
        return self.running.provider

    def paint(self, pictures: np.ndarray) -> np.ndarray:
        """Paint ``[N, 3, H, W]`` float32 RGB in [0, 1]; the result has the same shape and range.

        Raises:
            InvalidInput: the pictures have another layout, or a side below the card's ``min_side``.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InvalidInput(f"pictures have shape {pictures.shape}, expected (N, 3, height, width).")
        self.check_size(*pictures.shape[-2:])
        (painted,) = self.running.run({self.card.input.name: np.ascontiguousarray(pictures, np.float32)})
        return painted

    def check_size(self, height: int, width: int) -> None:
        """Raise :class:`InvalidInput` where a side is below the card's ``min_side``."""
        if min(height, width) < self.card.min_side:
            raise InvalidInput(
                f"the picture is {width}×{height} pixels, but style '{self.card.slug}' needs both sides to have at "
                f"least {self.card.min_side}.",
                hint="Ask for a larger size, or use a picture that is less elongated.",
                field="size",
            )


@dataclass(frozen=True)
class Refusal:
    """A folder that looked like a model and was not taken."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Changes:
    """What looking at the folders again has changed: slugs, and the folders that are refused now and were not."""

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.replaced, self.removed, self.refused))


@dataclass(frozen=True)
class _Look:
    """What a model's folder was when it was looked at last: its files' stamps, and what became of them."""

    stamp: tuple[object, ...]
    model: FastModel | None = None
    refusal: Refusal | None = None
    missed: bool = False


class ModelLibrary:
    """The fast models found in some folders, by slug.

    Args:
        folders: each is scanned for sub-folders with a ``card.json``; a later folder's model replaces an earlier one
            of the same slug.
        device, engine: what runs them; see :func:`shared.engines.open_engine`.
        gpu_memory: most bytes that each session's arena takes of a GPU.
        prepare: called with every model before it is taken, such as to open its session; a
            :class:`ModelRefused` that it raises refuses the model.

    Raises:
        InvalidInput: a folder does not exist.
    """

    RETIREMENT_SECONDS = 120.0
    """For so long a model that was removed still paints for those who have chosen it, though nobody else finds it."""

    def __init__(
        self,
        folders: Iterable[Path] = (SHIPPED,),
        *,
        device: str = "auto",
        engine: str = "auto",
        gpu_memory: int | None = None,
        prepare: Callable[[FastModel], object] | None = None,
    ):
        self.models: dict[str, FastModel] = {}
        self.refusals: list[Refusal] = []
        self._folders = tuple(folders)
        self._device = device
        self._engine = engine
        self._gpu_memory = gpu_memory
        self._prepare = prepare
        self._looks: dict[Path, _Look] = {}
        self._retired: dict[str, tuple[FastModel, float]] = {}
        for root in self.missing:
            raise InvalidInput(
                f"the model folder '{root}' does not exist.", hint="Name a folder of models.", field="models"
            )
        self.refresh()

    @property
    def missing(self) -> tuple[Path, ...]:
        """The folders that do not exist now."""
        return tuple(root for root in self._folders if not root.is_dir())

    @property
    def slugs(self) -> list[str]:
        """Of all models that paint: those that are served, and those that were removed a moment ago."""
        return sorted({**self.models, **self._retired})

    def refresh(self) -> Changes:
        """Look at the folders again and take what is new.

        Models are exchanged all at once, and those that are painting finish. A folder that is being copied is refused
        until network and card agree; where it held a model, that one goes on until then. A model is removed when its
        folder was gone twice in a row, since replacing a folder may take it away first; those of a whole folder of
        models that is gone, as when a disk is not mounted, go on.
        """
        looks: dict[Path, _Look] = {}
        for root in self._folders:
            known = {folder: look for folder, look in self._looks.items() if folder.parent == root}
            if not root.is_dir():
                looks |= known
                continue
            for folder in sorted(path.parent for path in root.glob(f"*/{CARD_FILE}")):
                looks[folder] = self._look(folder, known.pop(folder, None))
            looks |= {folder: replace(look, missed=True) for folder, look in known.items() if not look.missed}
        found = {look.model.card.slug: look.model for look in looks.values() if look.model is not None}
        changes = Changes(
            tuple(slug for slug in found if slug not in self.models),
            tuple(slug for slug in found if self.models.get(slug, found[slug]) is not found[slug]),
            tuple(slug for slug in self.models if slug not in found),
            tuple(
                look.refusal
                for folder, look in looks.items()
                if look.refusal is not None and look.refusal != getattr(self._looks.get(folder), "refusal", None)
            ),
        )
        now = time.monotonic()
        self._retired = {slug: entry for slug, entry in self._retired.items() if entry[1] > now} | {
            slug: (self.models[slug], now + self.RETIREMENT_SECONDS) for slug in changes.removed
        }
        for refusal in changes.refused:
            log.error("refused: %s", refusal.reason)
        self._looks = looks
        self.models = found
        self.refusals = [look.refusal for look in looks.values() if look.refusal is not None]
        return changes

    def _look(self, folder: Path, before: _Look | None) -> _Look:
        stamp = _stamp(folder)
        if before is not None and before.stamp == stamp:
            return replace(before, missed=False)
        try:
            model = FastModel(folder, read_card(folder), self._device, self._engine, self._gpu_memory)
            if self._prepare is not None:
                self._prepare(model)
            if _stamp(folder) != stamp:
                raise ModelRefused(f"the model folder '{folder}' changed while it was read.")
        except (ModelRefused, OSError) as error:
            return _Look(stamp, before and before.model, Refusal(folder, str(error)))
        return _Look(stamp, model)

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, slug: str) -> FastModel:
        models = self.models
        if slug in models:
            return models[slug]
        if slug in (retired := self._retired):
            return retired[slug][0]
        raise NotFound(
            f"there is no fast style '{slug[:80]}'.",
            hint=f"Styles are: {', '.join(sorted(models)) or 'none'}.",
            field="style",
        )

    def nearest(self, embedding: np.ndarray, style_space: str) -> ServingModel | None:
        """The model whose cluster's centre is nearest to a style embedding; None where no model has a cluster there.

        Clusters that hold the style come before those that do not: the nearest centre may be that of a narrow cluster
        beside a wide one.

        Models of another style space are left out: distances between spaces mean nothing.

        Args:
            embedding: ``[K]``.
            style_space: fingerprint of the space that the embedding lies in.
        """
        found = [
            ServingModel(model, cosine_distance(np.asarray(cluster.centre, np.float32), embedding))
            for model in self.models.values()
            if (cluster := model.card.cluster) is not None and cluster.style_space == style_space
        ]
        return min(found, key=lambda candidate: (not candidate.inside, candidate.distance), default=None)


@dataclass(frozen=True)
class ServingModel:
    """A model as the answer to a style: how far its cluster's centre is (cosine distance)."""

    model: FastModel
    distance: float

    @property
    def inside(self) -> bool:
        """Whether the style lies within the cluster, so that the network knows it."""
        return self.distance <= self.model.card.cluster.radius


def _stamp(folder: Path) -> tuple[object, ...]:
    """What changes when one of a model's files does."""
    stamps: list[object] = []
    for name in (MODEL_FILE, CARD_FILE):
        try:
            state = (folder / name).stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(stamps)


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """1 − cos of the angle between two vectors: 0 for one direction, 2 for opposite ones."""
    return float(np.clip(1 - a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12), 0, 2))
