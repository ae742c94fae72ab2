"""The Stylizer: fast models through OpenVINO or ONNX Runtime. It never imports PyTorch."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np

from services.messages import CONNECTION, Answer, about, answers
from services.settings import settings
from shared.fast_models import FastModel, ModelLibrary
from shared.fast_painting import paint_fast
from shared.images import DecodeLimits


# Two at a time: while one is decoded or encoded the other has the processors. Each takes up to a gigabyte.
@bentoml.service(traffic={"timeout": 120}, runner_connection=CONNECTION, threads=2)
class Stylizer:
    """Paints with the fast models found in the shipped folder and those of ``LIENZO_MODELS``."""

    def __init__(self) -> None:
        config = settings()
        self._limits = DecodeLimits(max_pixels=config.max_pixels, max_bytes=config.max_body_bytes)
        self._library = ModelLibrary(config.model_folders, device=config.device, engine=config.engine)
        warm = np.zeros((1, 3, 64, 64), np.float32)
        for model in self._library.models.values():
            model.paint(warm)

    def __is_ready__(self) -> bool:
        return len(self._library) > 0

    @bentoml.api
    def styles(self) -> dict[str, Any]:
        """The cards of all models, the provider that runs them, and the folders that were refused."""
        models = [self._library.models[slug] for slug in sorted(self._library.models)]
        return {
            "ok": {
                "cards": [model.card.model_dump(mode="json") for model in models],
                "provider": models[0].provider if models else "",
                # The reason without its path: an answer may leave the house.
                "refused": [refusal.folder.name for refusal in self._library.refusals],
            }
        }

    @bentoml.api
    def slugs(self) -> dict[str, Any]:
        """The names of all models."""
        return {"ok": sorted(self._library.models)}

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
