"""The Optimizer: VGG-19 and the reference optimiser, for styles that no network knows.

As a service it paints the jobs of the store; what asks for a painting talks to that store, never to this process, and
so neither waits for it nor falls with it. In a command's process :meth:`Optimizer.paint` is called directly.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from typing import Any

import bentoml

from services.health import TRY_AGAIN_SECONDS, revive
from services.jobs import JobStore
from services.messages import CONNECTION, Answer, Unreachable, about, answers
from services.painter import Painter
from services.settings import settings
from shared import weights
from shared.adain import AdaINDecoder
from shared.devices import bound_gpu_memory, keep_freed_memory, pick_device
from shared.encoders import load_encoder
from shared.images import DecodeLimits
from shared.optimized_painting import OptimizedPainting, paint_optimized
from shared.presets import preset


@bentoml.service(traffic={"timeout": 120}, runner_connection=CONNECTION, threads=1)
class Optimizer:
    """Paints by optimising pixels, one picture at a time."""

    keeps_freed_memory = True
    """Every step needs it again, see :func:`shared.devices.keep_freed_memory`."""
    _painter: Painter | None = None
    _takes_jobs = False

    def __init__(self) -> None:
        config = settings()
        keep_freed_memory()
        self._limits = DecodeLimits(max_pixels=config.max_pixels, max_bytes=config.max_body_bytes)
        self._most_seconds = config.optimize_seconds
        device = pick_device(config.device)
        bound_gpu_memory(device, config.gpu_bytes)
        self._encoder = load_encoder(device=config.device)
        self._decoder = AdaINDecoder(weights.load("adain-decoder"), dtype=self._encoder.dtype, device=device)
        if self._takes_jobs:  # it lacked something when its process began, and has it now
            self._begin()

    @bentoml.on_startup
    def take_jobs(self) -> None:
        """Begin with the jobs; only a server calls this."""
        self._takes_jobs = True
        if getattr(self, "failure", None) is None:
            self._begin()
        else:
            threading.Thread(target=self._until_it_works, name="revive", daemon=True).start()

    @bentoml.on_shutdown
    def hand_back(self, seconds: float | None = None) -> None:
        """Stop, and give the job that is being painted back to the queue; see :meth:`Painter.stop`."""
        if self._painter is not None:
            self._painter.stop(seconds)

    def __is_ready__(self) -> bool:
        return self._painter is not None and self._painter.alive

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
            painting = self._paint(
                content,
                style,
                steps=steps,
                seed=seed,
                size=size,
                strength=strength,
                preserve_color=preserve_color,
                format=format,
                recipe=recipe,
            )
        return {
            "data": painting.data,
            "seconds": dict(painting.seconds),
            "steps": painting.steps,
            "device": str(self._encoder.device),
        }

    def _begin(self) -> None:
        self._painter = Painter(JobStore.of_settings(), self._paint, {"device": str(self._encoder.device)})
        self._painter.start()

    def _until_it_works(self) -> None:
        """Nobody calls this service for a job, so nobody's call would make it try again."""
        while self.failure is not None:
            time.sleep(TRY_AGAIN_SECONDS)
            with contextlib.suppress(Unreachable):
                revive(self)

    def _paint(self, content: bytes, style: bytes, *, steps: int, seed: int, **request: Any) -> OptimizedPainting:
        """Paint with this service's networks and limits; the rest of the request is the painting's own business."""
        return paint_optimized(
            self._encoder,
            content,
            style,
            replace(preset("lienzo").settings, steps=steps, seed=seed),
            decoder=self._decoder,
            max_seconds=self._most_seconds,
            limits=self._limits,
            **request,
        )
