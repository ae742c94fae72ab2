"""Fitting the style space and indexing galleries, as the command line does them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from shared.console import bar, stages
from shared.encoders import Encoder, load_encoder
from shared.errors import GalleryError, InvalidInput, LienzoError
from shared.galleries import Gallery, Picture, open_gallery
from shared.gallery_index import Changes, Embedded, ImageEncoder, embed_here, embed_pictures, update_index
from shared.image_encoders import absolute_spec, open_encoder
from shared.images import decode
from shared.joint_embedding import JointEmbedding, JointEncoder
from shared.retrieval import open_sentences
from shared.style_space import StyleSpace, style_statistics
from training.ray_tasks import check_engine, run_on_ray

log = logging.getLogger(__name__)

_JOINT = re.compile(r"joint:([^@]+)(?:@(.+))?", re.DOTALL)


def fit_space(galleries: list[str], output: Path, *, dimensions: int, whitening: float) -> StyleSpace:
    """Fit a style space on all pictures of ``galleries`` and write it to ``output``."""
    opened = [open_gallery(spec) for spec in galleries]
    pictures = [(gallery.name, picture) for gallery in opened for picture in gallery.pictures]
    encoder = vgg19_encoder()
    rows, used = [], Counter()
    with bar("reading styles", len(pictures)) as update:
        for done, (name, picture) in enumerate(pictures, start=1):
            try:
                rows.append(style_statistics(encoder, decode(picture.path)))
                used[name] += 1
            except (InvalidInput, OSError) as error:
                log.warning("skipping %s: %s", picture.path, error)
            update(done)
    if len(rows) < 2:
        raise InvalidInput(
            f"{len(rows)} of {len(pictures)} pictures could be read, but a style space is fitted on at least 2.",
            field="gallery",
        )
    fitted_on = ", ".join(f"{name} ({count})" for name, count in used.items())
    fitted = StyleSpace.fit(np.stack(rows), dimensions=dimensions, whitening=whitening, fitted_on=fitted_on)
    fitted.save(output)
    return fitted


def build_index(
    spec: str,
    output: Path,
    *,
    encoders: Sequence[str],
    uri: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    device: str = "auto",
) -> tuple[Gallery, Changes]:
    """Index the gallery ``spec`` in the spaces of ``encoders``, or bring its index up to date.

    Args:
        encoders: specs, see :mod:`shared.image_encoders`.
        uri: of Milvus, for vectors that are to lie there.
        engine: ``local``: embed in this process; ``ray``: on the workers of a Ray cluster that sees the same folders.
        workers: tasks at a time under Ray; as many as it has room for where not given.

    Raises:
        InvalidInput: there is no such encoder or engine, or it is not installed.
        GalleryError: the gallery cannot be used.
    """
    check_engine(engine, workers)
    gallery = open_gallery(spec)
    made = {spec: image_encoder(spec, device) for spec in map(_absolute, encoders)}
    specs = {encoder.fingerprint: spec for spec, encoder in made.items()}
    embed = embed_here if engine == "local" else partial(_embed_on_ray, specs=specs, workers=workers, device=device)
    with stages() as progress:
        changes = update_index(output, gallery, tuple(made.values()), uri=uri, embed=embed, progress=progress)
    return gallery, changes


def _absolute(spec: str) -> str:
    """``spec`` as another process takes it, which may run in another folder."""
    if joint := _JOINT.fullmatch(spec):
        return f"joint:{Path(joint[1]).absolute()}" + (f"@{absolute_spec(joint[2])}" if joint[2] else "")
    return absolute_spec(spec)


@cache
def image_encoder(spec: str, device: str = "auto") -> ImageEncoder:
    """The encoder that ``spec`` names; one for each process and device, since each holds a network.

    Beside the specs of :mod:`shared.image_encoders` there is ``joint:FOLDER[@ENCODER]``: the space of a joint
    embedding, with the encoder that it was trained with where its name alone does not find it.
    """
    if joint := _JOINT.fullmatch(spec):
        embedding = JointEmbedding.load(Path(joint[1]), sentences=open_sentences("auto"))
        return JointEncoder(embedding, lambda: image_encoder(joint[2] or embedding.image_encoder.name, device))
    with stages() as progress:
        return open_encoder(spec, device=device, vgg19=lambda: vgg19_encoder(device), progress=progress)


@dataclass(frozen=True)
class _Portion:
    """A shard for a worker, which makes the encoders itself, from their specs: networks are no message."""

    number: int
    pictures: Sequence[Picture]
    encoders: tuple[str, ...]
    device: str


def _embed_on_ray(
    shards: Sequence[Sequence[Picture]],
    encoders: Sequence[ImageEncoder],
    on_pictures: Callable[[int], None],
    *,
    specs: Mapping[str, str],
    workers: int | None,
    device: str,
) -> Iterator[Embedded]:
    """Embed shards on Ray; they come in their order whichever is done first, so that the index keeps the gallery's.

    Args:
        specs: of the encoders, by fingerprint.
    """
    chosen = tuple(specs[encoder.fingerprint] for encoder in encoders)
    portions = [_Portion(i, shard, chosen, device) for i, shard in enumerate(shards)]
    done: dict[int, Embedded] = {}
    following = 0
    for portion, result in run_on_ray(_embed_portion, portions, workers):
        if isinstance(result, Exception):
            raise (
                result
                if isinstance(result, LienzoError)
                else GalleryError(
                    f"embedding failed on a worker: {result}.",
                    hint="Run the same command again: what is embedded is kept.",
                )
            ) from result
        on_pictures(len(portion.pictures))
        done[portion.number] = result
        while following in done:
            yield done.pop(following)
            following += 1


def _embed_portion(portion: _Portion, threads: int, _: Path) -> Embedded:
    """On a Ray worker, which sets OMP_NUM_THREADS to 1; the task was given ``threads`` cores."""
    torch.set_num_threads(threads)
    return embed_pictures(portion.pictures, [image_encoder(spec, portion.device) for spec in portion.encoders])


def vgg19_encoder(device: str = "auto") -> Encoder:
    """VGG-19 on ``device``, fetched with a progress bar where it is not here."""
    with stages() as progress:
        return load_encoder(device=device, progress=progress)
