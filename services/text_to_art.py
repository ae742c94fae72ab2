"""The gateway: Lienzo's public face. ``bentoml serve`` starts this service and, through it, the others.

The endpoints are a FastAPI application inside the BentoML service rather than ``@bentoml.api`` methods. BentoML answers
its own form of error, loses the message of any failure, and knows no limit on a body; a public interface needs all
three in its own hands. Between the services BentoML's own calls are used.
"""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path

import anyio.to_thread
import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from services import engines, health, lifecycle, metrics
from services.http import create_app
from services.optimizer import Optimizer
from services.retriever import Retriever
from services.settings import settings
from services.stylizer import Stylizer
from shared.devices import pick_device
from shared.fast_models import ModelLibrary

log = logging.getLogger(__name__)

_CATALOGUE_THREADS = 16
_gateway: list[TextToArt] = []


def _current() -> TextToArt:
    return _gateway[0]


def _image() -> bentoml.images.Image:
    """What a bento's container installs: the project's own dependencies, said once, in pyproject.toml."""
    image, project = bentoml.images.Image(python_version="3.11"), Path(__file__).parents[1] / "pyproject.toml"
    if not project.is_file():  # installed, not run from the project's folder: no bento is built from there
        return image
    return image.python_packages(*tomllib.loads(project.read_text())["project"]["dependencies"])


app = create_app(_current)


class Direct:
    """Hands every request to the application.

    BentoML's own routes would answer before it: its schema, a health that knows no reasons.
    """

    def __init__(self, app: ASGIApp):
        self.bentoml = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "http" else self.bentoml)(scope, receive, send)


@bentoml.service(traffic={"timeout": settings().optimize_timeout + 120}, image=_image())
@bentoml.asgi_app(app, path="/")
class TextToArt:
    """Text to art over the Retriever, the Stylizer and the Optimizer."""

    retriever = bentoml.depends(Retriever)
    stylizer = bentoml.depends(Stylizer)
    optimizer = bentoml.depends(Optimizer)

    def __init__(self) -> None:
        self.optimize_device = str(pick_device(settings().device))
        metrics.provider.labels("optimize", self.optimize_device).set(1)
        log.info("engine optimize runs on %s", self.optimize_device)
        # The application is made before any instance; a process has one of each.
        _gateway[:] = [self]

    @bentoml.on_startup
    async def take_more_threads(self) -> None:
        """Threads for all that the engines' limits let in, and for the catalogue beside them."""
        most = sum(engines.limits().values()) + settings().optimize_queue + _CATALOGUE_THREADS
        anyio.to_thread.current_default_thread_limiter().total_tokens = most

    async def check(self) -> None:
        """Ask the services behind this one whether they are ready.

        Raises:
            Unreachable: one is not; the message says which, and why.
        """
        await health.check(_parts())

    async def counts(self) -> bytes:
        """What this service and those behind it have counted, in Prometheus's text format."""
        return metrics.joined({TextToArt.name: metrics.exposition(), **await health.counts(_parts())})


def _parts() -> health.Parts:
    return {dependency.on.name: dependency.on for dependency in TextToArt.dependencies.values()}


def _check_device() -> None:
    """Refuse to start where CUDA was asked for and one of the two that paint with it has none.

    Raises:
        EngineUnavailable: the message names the library that is missing.
    """
    config = settings()
    pick_device(config.device)
    if config.device == "cuda":
        for model in list(ModelLibrary(config.model_folders, device="cuda").models.values())[:1]:
            log.info("engine fast runs on %s", model.provider)


TextToArt.add_asgi_middleware(Direct)
lifecycle.equip(TextToArt, _check_device)
