"""One training from its options to its model folder, as ``lienzo-train style`` runs it."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
from torch import Tensor

from shared import fast_models, galleries, weights
from shared.console import bar, stages
from shared.devices import keep_freed_memory, pick_device, pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput, PictureError
from shared.fast_models import Card, ClusterCard, ParityCard, StylePicture
from shared.files import sha256, write_atomically
from shared.images import decode, resize, to_tensor
from shared.style_space import SHIPPED as SHIPPED_SPACE
from shared.style_space import StyleSpace, mean_embedding
from shared.transform_network import SharedNetwork, TransformNetwork
from training.checkpoints import load_checkpoint
from training.content_pictures import ContentPictures, list_pictures
from training.export import export_model, measure_parity, write_onnx
from training.record import TrainingRecord
from training.reference import compare_with_reference
from training.style_trainer import (
    TrainingResult,
    TrainingSettings,
    TrainingStep,
    network_of_body,
    train_style,
    trained_weights,
)
from training.workers import Workers

log = logging.getLogger(__name__)

HELD_OUT = 8
"""Content pictures that are kept for validation."""

SINGLE_PICTURE_RADIUS = 0.65
"""Cosine distance in style space within which a network trained on one picture stands in for another's style."""

REFERENCE_STEPS = 100

BODIES = fast_models.SHIPPED.parent / "bodies"
"""Where shared bodies that ship lie, for ``init``."""


@dataclass(frozen=True)
class StyleSource:
    """A style picture's file, and what the card says of it.

    Attributes:
        path: of the file.
        title, artist, date: read from the file's name where no title is given.
        source: where it comes from.
    """

    path: Path
    title: str = ""
    artist: str = ""
    date: str = ""
    source: str = ""


def style_sources(path: Path, source: str = "") -> tuple[StyleSource, ...]:
    """The picture at ``path``, or all pictures below it."""
    return tuple(StyleSource(file, source=source) for file in (list_pictures(path) if path.is_dir() else (path,)))


@dataclass(frozen=True)
class StyleJob:
    """What the command line asks for.

    Attributes:
        styles: the pictures to learn from.
        cluster: the part of style space that the network will serve; None: the surroundings of its style pictures.
    """

    styles: tuple[StyleSource, ...]
    content: Path
    slug: str
    output: Path
    title: str
    init: str
    time_budget: float | None
    settings: Mapping[str, Any]
    device: str
    reference_pairs: int
    content_credit: str
    licence: str
    commit: str
    created: str
    cluster: ClusterCard | None = None


def run_style_job(job: StyleJob) -> Card | None:
    """Train, compare with the reference, export.

    Returns:
        The card; None in all workers of ``torchrun`` but the first, which have nothing left to do.
    """
    if job.settings.get("target") == "each":
        raise InvalidInput(
            "target is 'each', expected mean or random.",
            hint="One body for several styles is trained by `lienzo-train body`.",
            field="target",
        )
    workers = Workers.current()
    try:
        training = _train(job, workers)
        return _export(job, training.result.network, training) if workers.first else None
    finally:
        workers.leave()


def run_body_job(job: StyleJob, styles: Sequence[StyleJob]) -> list[Card]:
    """Train one body for several styles, keep it as ``SLUG.safetensors``, and export its network for each of them.

    Args:
        job: how; its slug names the run, from which ``init`` can start a network of one style.
        styles: for each style its slug, title, style pictures (the first of which it is) and cluster.
    """
    names = [style.slug for style in styles]
    if len(set(names)) != len(names):
        raise InvalidInput("two styles have the same name.", hint="Rename one of the files.", field="style")
    job = replace(job, styles=tuple(style.styles[0] for style in styles))
    workers = Workers.current()
    try:
        training = _train(job, workers, names)
        if not workers.first:
            return []
        save_body(training.result.network, names, job.output / f"{job.slug}.safetensors")
        cards = []
        for i, style in enumerate(styles):
            mixture = torch.eye(len(styles), device=training.result.network.styles.device)[i]
            own = replace(training, styles=training.styles[i : i + 1])
            part = replace(job, slug=style.slug, title=style.title, styles=style.styles[:1], cluster=style.cluster)
            cards.append(_export(part, training.result.network.network_of(mixture), own, body=job.slug))
        return cards
    finally:
        workers.leave()


@dataclass(frozen=True)
class _Training:
    """A training that is done, and what its card needs."""

    result: TrainingResult
    settings: TrainingSettings
    styles: Sequence[Tensor]
    unseen: Tensor
    pictures: int
    vgg19: Mapping[str, Tensor]
    device: torch.device
    workers: int


def _train(job: StyleJob, workers: Workers, names: Sequence[str] = ()) -> _Training:
    keep_freed_memory()
    _check_names(job)
    if not 0 <= job.reference_pairs <= HELD_OUT:
        raise InvalidInput(f"reference_pairs is {job.reference_pairs}, expected 0 to {HELD_OUT}.")
    settings, device = TrainingSettings(**job.settings), pick_device(job.device)
    styles = [_read_style(source.path, settings.style_size) for source in job.styles]
    content_paths = list_pictures(job.content)
    if len(content_paths) < 2 * HELD_OUT:
        raise InvalidInput(
            f"'{job.content}' has {len(content_paths)} pictures, expected at least {2 * HELD_OUT}.", field="content"
        )
    # Every n-th, so that the held-out pictures come from the whole of a sorted folder.
    held_out = content_paths[:: len(content_paths) // HELD_OUT][:HELD_OUT]
    train_paths = tuple(path for path in content_paths if path not in held_out)
    content = ContentPictures(train_paths, crop=settings.crop, batch=settings.batch, seed=settings.seed)
    validation = ContentPictures(held_out, crop=256, batch=1)
    unseen = validation.centre_crops()

    with stages() as progress:
        vgg19 = weights.load("vgg19", progress=progress)
    run = job.output / ".training" / job.slug
    init = _initial_state(job) if job.init else None
    with (
        TrainingRecord(run) if workers.first else nullcontext() as record,
        bar("training", settings.steps) if workers.first else nullcontext() as update,
    ):

        def on_step(step: TrainingStep) -> None:
            record.add(step)
            # The bar counts what bounds the training, steps or time.
            note = f"content {step.losses['content']:.2f}  style {step.losses['style']:.2f}  step {step.step}"
            update(step.progress * settings.steps, note=note)

        result = train_style(
            styles,
            content,
            validation,
            vgg19,
            settings,
            run,
            init=init,
            names=names,
            time_budget=job.time_budget,
            device=job.device,
            on_step=on_step,
        )
        if workers.first:
            record.plot(result.history)
    return _Training(result, settings, styles, unseen, len(train_paths), vgg19, device, workers.count)


def _export(job: StyleJob, network: TransformNetwork, training: _Training, body: str = "") -> Card:
    """Compare with the reference, and write the model's folder."""
    settings, result, device = training.settings, training.result, training.device
    reference = None
    if job.reference_pairs:
        with bar("comparing with the reference", job.reference_pairs * REFERENCE_STEPS) as update:
            reference = compare_with_reference(
                network,
                training.unseen[: job.reference_pairs],
                training.styles,
                training.vgg19,
                settings.loss,
                steps=REFERENCE_STEPS,
                dtype=pick_dtype(settings.precision, device),
                device=device,
                on_step=lambda done, total: update(done, total),
            )
    pictures = [_style_picture(source) for source in job.styles]
    return export_model(
        network,
        job.output / job.slug,
        {
            "name": job.title or pictures[0].title[: fast_models.LONGEST_NAME],
            "styles": pictures,
            "cluster": job.cluster or _cluster(job.slug, [source.path for source in job.styles], training.vgg19),
            "training": {
                **settings.as_dict(),
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "stopped_early": result.stopped_early,
                "workers": training.workers,
                "init": Path(job.init).name,  # where it lay is nobody else's business
                "body": body,
                "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
                "torch": torch.__version__,
            },
            "data": {"content": job.content_credit or job.content.resolve().name, "pictures": training.pictures},
            "validation": {k: round(v, 4) for k, v in result.history[-1].items() if k != "step"},
            "reference": reference,
            "commit": job.commit,
            "created": job.created,
            "licence": job.licence,
        },
    )


def export_checkpoint(run: Path, output: Path) -> ParityCard:
    """Write the network of the last checkpoint in ``run`` to ``output`` as ONNX, compared with PyTorch."""
    width, state = _checkpoint_state(run)
    network = TransformNetwork(width)
    network.load_state_dict(state)
    temporary = output.with_name(f".{output.name}.part")
    try:
        write_onnx(network, temporary)
        parity = measure_parity(network, temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return parity


def _check_names(job: StyleJob) -> None:
    """What the card will demand, before the training rather than after it."""
    if not fast_models.SLUG.fullmatch(job.slug) or len(job.slug) > fast_models.LONGEST_SLUG:
        raise InvalidInput(
            f"'{job.slug}' is no slug.",
            hint=f"Use up to {fast_models.LONGEST_SLUG} lower-case letters, digits and single hyphens.",
            field="name",
        )
    if len(job.title) > fast_models.LONGEST_NAME:
        raise InvalidInput(
            f"the title has {len(job.title)} characters, expected at most {fast_models.LONGEST_NAME}.", field="title"
        )


def _read_style(path: Path, size: int) -> Tensor:
    try:
        return to_tensor(resize(decode(path), size))
    except PictureError as error:
        raise PictureError(
            f"the style picture '{path}' cannot be used: {error.message}",
            hint=error.hint,
            code=error.code,
            field="style",
        ) from error


def save_body(network: SharedNetwork, names: Sequence[str], path: Path) -> None:
    """Write a shared body to ``path``, its weights as float16: what networks of other styles can start from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().half().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"format": "1", "width": network.network.width, "names": json.dumps(list(names))}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load_body(path: Path, name: str = "") -> TransformNetwork:
    """The network that the body in ``path`` is for the style ``name``, or for the mean of its styles.

    Raises:
        InvalidInput: the file is no shared body.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - it is no mapping
        names = json.loads(metadata["names"])
        return network_of_body(state, metadata["width"], names, name)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, RuntimeError, InvalidInput) as error:
        raise InvalidInput(
            f"'{path}' is no shared body: {error}.", hint="Name one that `lienzo-train body` wrote.", field="init"
        ) from error


def _initial_state(job: StyleJob) -> dict[str, Tensor]:
    """The network to start from: a training beside this one, a run folder, a shared body, or a fast model."""
    folder = Path(job.init)
    for run in (job.output / ".training" / job.init, folder):
        if (checkpoint := load_checkpoint(run)) is not None:
            return trained_weights(checkpoint, job.slug)
    if body := next((file for file in (folder, BODIES / f"{job.init}.safetensors") if file.is_file()), None):
        return load_body(body, job.slug).state_dict()
    model = next((f for f in (folder, fast_models.SHIPPED / job.init) if (f / fast_models.CARD_FILE).is_file()), None)
    if model is None:
        shipped = [
            *(body.stem for body in sorted(BODIES.glob("*.safetensors"))),
            *sorted(fast_models.ModelLibrary().models),
        ]
        raise InvalidInput(
            f"'{job.init}' is neither a training, nor a shared body, nor a model's folder, nor a shipped style.",
            hint=f"Shipped are: {', '.join(shipped)}.",
            field="init",
        )
    fast_models.read_card(model)
    # The export keeps the names of the network's own tensors.
    graph = onnx.load(model / fast_models.MODEL_FILE).graph
    names = TransformNetwork("quarter").state_dict().keys()
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in names}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}


def _checkpoint_state(run: Path) -> tuple[str, dict[str, Tensor]]:
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise InvalidInput(
            f"there is no checkpoint in '{run}'.",
            hint="Name a training's run folder, OUTPUT/.training/NAME.",
            field="init",
        )
    return checkpoint["settings"]["width"], trained_weights(checkpoint)


def _style_picture(style: StyleSource) -> StylePicture:
    texts = galleries.texts_from_name(PurePath(style.path.name))
    if style.title:
        texts = {"title": style.title, "artist": style.artist, "date": style.date}
    return StylePicture(
        title=texts["title"] or style.path.stem,
        artist=texts["artist"],
        date=texts.get("date", ""),
        source=style.source,
        sha256=sha256(style.path),
    )


def _cluster(slug: str, paths: Sequence[Path], vgg19: Mapping[str, Tensor]) -> ClusterCard | None:
    """The part of the shipped style space around the style pictures."""
    if not SHIPPED_SPACE.is_file():
        log.warning("there is no style space, so the card names no cluster")
        return None
    space, encoder = StyleSpace.load(), Encoder(vgg19)
    embeddings = [space.embed(encoder, decode(path)) for path in paths]
    centre = mean_embedding(embeddings)
    spread = max(float(1 - embedding @ centre) for embedding in embeddings)
    return ClusterCard(
        id=slug,
        style_space=space.fingerprint,
        centre=tuple(round(float(x), 6) for x in centre),
        radius=max(SINGLE_PICTURE_RADIUS, round(spread, 4)),
    )
