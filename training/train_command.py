"""One training from its options to its model folder, as ``lienzo-train style`` runs it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import onnx
import torch
from torch import Tensor

from shared import fast_models, galleries, weights
from shared.console import bar, stages
from shared.devices import keep_freed_memory, pick_device, pick_dtype
from shared.encoders import Encoder
from shared.errors import InvalidInput, PictureError
from shared.fast_models import Card, ClusterCard, ParityCard, StylePicture
from shared.files import sha256
from shared.images import decode, resize, to_tensor
from shared.style_space import SHIPPED as SHIPPED_SPACE
from shared.style_space import StyleSpace, mean_embedding
from shared.transform_network import TransformNetwork
from training.checkpoints import load_checkpoint
from training.content_pictures import ContentPictures, list_pictures
from training.export import export_model, measure_parity, write_onnx
from training.record import TrainingRecord
from training.reference import compare_with_reference
from training.style_trainer import TrainingSettings, TrainingStep, train_style

log = logging.getLogger(__name__)

HELD_OUT = 8
"""Content pictures that are kept for validation."""

SINGLE_PICTURE_RADIUS = 0.65
"""Cosine distance in style space within which a network trained on one picture stands in for another's style."""

REFERENCE_STEPS = 100


@dataclass(frozen=True)
class StyleJob:
    """What the command line asks for."""

    style: Path
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
    source: str
    licence: str
    commit: str
    created: str


def run_style_job(job: StyleJob) -> Card:
    """Train, compare with the reference, export."""
    keep_freed_memory()
    _check_names(job)
    if not 0 <= job.reference_pairs <= HELD_OUT:
        raise InvalidInput(f"reference_pairs is {job.reference_pairs}, expected 0 to {HELD_OUT}.")
    settings, device = TrainingSettings(**job.settings), pick_device(job.device)
    style_paths = list_pictures(job.style) if job.style.is_dir() else (job.style,)
    styles = [_read_style(path, settings.style_size) for path in style_paths]
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
    with TrainingRecord(run) as record, bar("training", settings.steps) as update:

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
            time_budget=job.time_budget,
            device=job.device,
            on_step=on_step,
        )
        record.plot(result.history)

    reference = None
    if job.reference_pairs:
        with bar("comparing with the reference", job.reference_pairs * REFERENCE_STEPS) as update:
            reference = compare_with_reference(
                result.network,
                unseen[: job.reference_pairs],
                styles[0],
                vgg19,
                settings.loss,
                steps=REFERENCE_STEPS,
                dtype=pick_dtype(settings.precision, device),
                device=device,
                on_step=lambda done, total: update(done, total),
            )
    pictures = [_style_picture(path, job.source) for path in style_paths]
    return export_model(
        result.network,
        job.output / job.slug,
        {
            "name": job.title or pictures[0].title[: fast_models.LONGEST_NAME],
            "styles": pictures,
            "cluster": _cluster(job.slug, style_paths, vgg19),
            "training": {
                **settings.as_dict(),
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "init": job.init,
                "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
                "torch": torch.__version__,
            },
            "data": {"content": job.content_credit or job.content.resolve().name, "pictures": len(train_paths)},
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


def _initial_state(job: StyleJob) -> dict[str, Tensor]:
    """The network to start from: a training beside this one, any run folder, or a fast model by folder or slug."""
    folder = Path(job.init)
    for run in (job.output / ".training" / job.init, folder):
        if (checkpoint := load_checkpoint(run)) is not None:
            return checkpoint["network"]
    model = next((f for f in (folder, fast_models.SHIPPED / job.init) if (f / fast_models.CARD_FILE).is_file()), None)
    if model is None:
        raise InvalidInput(
            f"'{job.init}' is neither a training, nor a model's folder, nor a shipped style.",
            hint=f"Shipped styles are: {', '.join(sorted(fast_models.ModelLibrary().models))}.",
            field="init",
        )
    fast_models.read_card(model)
    # The export keeps the names of the network's own tensors.
    graph = onnx.load(model / fast_models.MODEL_FILE).graph
    names = TransformNetwork("quarter").state_dict().keys()
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in names}
    return {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def _checkpoint_state(run: Path) -> tuple[str, dict[str, Tensor]]:
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise InvalidInput(
            f"there is no checkpoint in '{run}'.",
            hint="Name a training's run folder, OUTPUT/.training/NAME.",
            field="init",
        )
    return checkpoint["settings"]["width"], checkpoint["network"]


def _style_picture(path: Path, source: str) -> StylePicture:
    texts = galleries.texts_from_name(PurePath(path.name))
    return StylePicture(
        title=texts["title"] or path.stem,
        artist=texts["artist"],
        date=texts.get("date", ""),
        source=source,
        sha256=sha256(path),
    )


def _cluster(slug: str, paths: tuple[Path, ...], vgg19: Mapping[str, Tensor]) -> ClusterCard | None:
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
