"""Which pictures of a gallery have a text that says something, and which are for training, validating and testing."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from shared.errors import InvalidInput
from shared.galleries import Gallery, Picture

_FORMULA = re.compile(r"an? (?:work|painting|print|drawing) made of [^.]*\.?", re.IGNORECASE)
"""A whole description that a museum's record fills in by itself; it names the medium and nothing that is to be seen."""

LEAST_PAIRS = 2


@dataclass(frozen=True)
class SplitPairs:
    """Pictures with their texts.

    Attributes:
        train: every picture that has a title or a description.
        validation, test: those with a description that says something; ``test`` may be empty.
        notes: what a person should know of how this came about, one sentence each.
    """

    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    test: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[Picture, ...]:
        return self.train + self.validation + self.test


def split_pairs(gallery: Gallery) -> SplitPairs:
    """The pairs of a gallery by its own split, or by a hash of the ids where it has none for training or validating.

    Raises:
        InvalidInput: too few pictures are described.
    """
    notes = []
    pictures = [replace(p, description="" if says_nothing(p.description) else p.description) for p in gallery.pictures]
    if formulas := sum(
        before.description != p.description for before, p in zip(gallery.pictures, pictures, strict=True)
    ):
        notes.append(f"{formulas:,} descriptions are left out: they name the medium alone.")
    described = [picture for picture in pictures if picture.description]
    if not described:
        raise InvalidInput(
            f"no picture of the gallery '{gallery.name}' has a description, so there is nothing to learn from.",
            hint="Use a gallery in SemArt's layout, or a metadata.csv with a column description.",
            field="gallery",
        )
    if not {"train", "val"} <= {picture.split for picture in described}:
        pictures = [replace(picture, split=_drawn_split(picture.id)) for picture in pictures]
        notes.append(
            "The gallery has no split of its own: a hash of the ids sends 80, 10 and 10 % to train, val, test."
        )
    parts = {
        split: tuple(p for p in pictures if p.split == split and (p.description or (split == "train" and p.title)))
        for split in ("train", "val", "test")
    }
    for split in ("train", "val"):
        if len(parts[split]) < LEAST_PAIRS:
            raise InvalidInput(
                f"the gallery '{gallery.name}' has {len(parts[split])} described pictures to {split} on, expected at "
                f"least {LEAST_PAIRS}.",
                hint="Describe more pictures.",
                field="gallery",
            )
    if titled := sum(not picture.description for picture in parts["train"]):
        notes.append(f"{titled:,} of {len(parts['train']):,} training pictures have a title alone.")
    if missing := sum(not p.description for p in pictures if p.split in ("val", "test")):
        notes.append(f"{missing:,} pictures without a description are not measured on.")
    return SplitPairs(parts["train"], parts["val"], parts["test"], tuple(notes))


def extra_text(picture: Picture) -> str:
    """Author, school, type, technique and time of a picture in one text."""
    return " ".join((picture.artist, picture.school, picture.type, picture.technique, picture.timeframe)).strip()


def says_nothing(description: str) -> bool:
    """Whether a description is empty or a formula such as "A work made of oil on canvas."."""
    return not description or _FORMULA.fullmatch(description.strip()) is not None


def _drawn_split(id: str) -> str:
    place = int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) % 10
    return {0: "test", 1: "val"}.get(place, "train")
