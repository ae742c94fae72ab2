"""The Optimizer: VGG-19 and the reference optimiser, for styles that no network knows."""

from __future__ import annotations

from dataclasses import replace

import bentoml

from services.messages import CONNECTION, Answer, about, answers
from services.settings import settings
from shared import weights
from shared.adain import AdaINDecoder
from shared.devices import bound_gpu_memory, keep_freed_memory, pick_device, pick_dtype
from shared.encoders import Encoder
from shared.images import DecodeLimits
from shared.optimized_painting import paint_optimized
from shared.presets import preset

_CONFIG = settings()


# One optimisation at a time fills the device; what waits counts towards max_concurrency, and more is refused.
@bentoml.service(
    traffic={"timeout": _CONFIG.optimize_timeout, "max_concurrency": _CONFIG.optimize_queue},
    runner_connection=CONNECTION,
    threads=1,
)
class Optimizer:
    """Paints by optimising pixels, one picture at a time."""

    def __init__(self) -> None:
        keep_freed_memory()
        self._limits = DecodeLimits(max_pixels=_CONFIG.max_pixels, max_bytes=_CONFIG.max_body_bytes)
        device = pick_device(_CONFIG.device)
        bound_gpu_memory(device, _CONFIG.gpu_bytes)
        dtype = pick_dtype("auto", device)
        self._encoder = Encoder(weights.load("vgg19"), dtype=dtype, device=device)
        self._decoder = AdaINDecoder(weights.load("adain-decoder"), dtype=dtype, device=device)

    def __is_ready__(self) -> bool:
        return self._encoder is not None

    @bentoml.api
    @answers
    def paint(
        self,
        content: bytes,
        style: bytes,
        size: int,
        steps: int,
        seed: int,
        strength: float,
        preserve_color: bool,
        format: str,
        recipe: dict,
    ) -> Answer:
        """Paint ``content`` in the style of ``style``; see :func:`shared.optimized_painting.paint_optimized`."""
        # The style picture was decoded for its embedding before: what fails here is the content.
        with about("image"):
            painting = paint_optimized(
                self._encoder,
                content,
                style,
                replace(preset("lienzo").settings, steps=steps, seed=seed),
                decoder=self._decoder,
                size=size,
                strength=strength,
                preserve_color=preserve_color,
                format=format,
                recipe=recipe,
                max_seconds=_CONFIG.optimize_seconds,
                limits=self._limits,
            )
        return {
            "data": painting.data,
            "seconds": dict(painting.seconds),
            "steps": painting.steps,
            "losses": painting.losses,
            "device": str(self._encoder.device),
        }
