"""The Stylizer: fast models through OpenVINO or ONNX Runtime. It never imports PyTorch."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import bentoml
import numpy as np

from services import metrics
from services.messages import CONNECTION, Answer, about, answers
from services.settings import settings
from shared.errors import EngineUnavailable, ModelRefused
from shared.fast_models import Changes, FastModel, ModelLibrary
from shared.fast_painting import paint_fast
from shared.images import DecodeLimits

log = logging.getLogger(__name__)


# Two at a time: while one is decoded or encoded the other has the processors. Each takes up to a gigabyte.
@bentoml.service(traffic={"timeout": settings().fast_seconds}, runner_connection=CONNECTION, threads=2)
class Stylizer:
    """Paints with the fast models found in the shipped folder and those of ``LIENZO_MODELS``."""

    def __init__(self) -> None:
        config = settings()
        self._limits = DecodeLimits(max_pixels=config.max_pixels, max_bytes=config.max_body_bytes)
        self._library = ModelLibrary(
            config.model_folders,
            device=config.device,
            engine=config.engine,
            gpu_memory=config.gpu_bytes,
            prepare=_warm,
        )
        metrics.models.set(len(self._library))
        for model in list(self._library.models.values())[:1]:
            log.info("engine fast runs on %s", model.provider)

    def __is_ready__(self) -> bool:
        for folder in self._library.missing:
            raise ModelRefused(
                f"the folder of models '{folder.name}' is gone.", hint="Put it back; what it held goes on until then."
            )
        return len(self._library) > 0

    @bentoml.on_startup
    def keep_looking(self) -> None:
        """Take models that are added, replaced or removed while serving."""
        if seconds := settings().reload:
            threading.Thread(target=self._keep_looking, args=(seconds,), name="reload", daemon=True).start()

    def _keep_looking(self, seconds: float) -> None:
        while True:
            time.sleep(seconds)
            try:
                if hasattr(self, "_library"):  # it may lack what it needs to begin
                    self._tell(self._library.refresh())
            except Exception:  # whatever is wrong with a folder, the next look may find it right
                log.exception("the models could not be looked at")

    def _tell(self, changes: Changes) -> None:
        for what in ("added", "replaced", "removed", "refused"):
            found = getattr(changes, what)
            metrics.reloads.labels(what).inc(len(found))
            if found and what != "refused":
                log.info("models %s", what, extra={"models": ", ".join(found)})
        metrics.models.set(len(self._library))

    @bentoml.api
    @answers
    def styles(self) -> Answer:
        """The cards of all models with their files' sizes, the provider that runs them, and the folders refused."""
        models = [model for _, model in sorted(self._library.models.items())]
        return {
            "cards": [model.card.model_dump(mode="json") | {"bytes": len(model.network)} for model in models],
            "provider": models[0].provider if models else "",
            # The reason without its path: an answer may leave the house.
            "refused": [refusal.folder.name for refusal in self._library.refusals],
        }

    @bentoml.api
    @answers
    def slugs(self) -> Answer:
        """The names of all models that paint, see :attr:`shared.fast_models.ModelLibrary.slugs`."""
        return self._library.slugs

    @bentoml.api
    @answers
    def fingerprint(self, slug: str) -> Answer:
        """The SHA-256 of a model's file, which with the picture decides what it paints."""
        return self._library[slug].card.sha256

    @bentoml.api
    @answers
    def nearest(self, embedding: Any, style_space: str) -> Answer:
        """The model whose cluster's centre is nearest to a style embedding: slug, distance, radius; or None."""
        found = self._library.nearest(np.asarray(embedding, np.float32), style_space)
        return found and {"slug": found.model.card.slug, "distance": found.distance, "inside": found.inside}

    @bentoml.api
    @answers
    def paint(
        self, picture: bytes, slug: str, size: int, strength: float, preserve_color: bool, format: str, recipe: dict
    ) -> Answer:
        """Paint an encoded picture; see :func:`shared.fast_painting.paint_fast`."""
        model: FastModel = self._library[slug]
        with about("image"):
            painting = paint_fast(
                model,
                picture,
                size=size,
                strength=strength,
                preserve_color=preserve_color,
                format=format,
                recipe=recipe,
                limits=self._limits,
            )
        return {"data": painting.data, "seconds": painting.seconds, "provider": model.provider}


def _warm(model: FastModel) -> None:
    """Open a model's session and paint once: the first painting takes longer than those after it."""
    began = time.perf_counter()
    try:
        model.paint(np.zeros((1, 3, *[max(64, model.card.min_side)] * 2), np.float32))
    except (EngineUnavailable, ModelRefused):
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception.
        raise ModelRefused(f"model '{model.card.slug}' does not paint: {error}") from error
    metrics.session_load_seconds.labels(model.card.slug).set(time.perf_counter() - began)
    metrics.provider.labels("fast", model.provider).set(1)
