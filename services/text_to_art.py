"""The gateway: Lienzo's public face. ``bentoml serve`` starts this service and, through it, the others.

The endpoints are a FastAPI application inside the BentoML service rather than ``@bentoml.api`` methods. BentoML answers
its own form of error, loses the message of any failure, and knows no limit on a body; a public interface needs all
three in its own hands. Between the services BentoML's own calls are used.
"""

from __future__ import annotations

import logging

import anyio.to_thread
import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from services import engines, health, lifecycle, metrics
from services.bento import bento_image
from services.http import create_app
from services.jobs import JobStore
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


app = create_app(_current)


class Direct:
    """Hands every request to the application.

    BentoML's own routes would answer before it: its schema, a health that knows no reasons.
    """

    def __init__(self, app: ASGIApp):
        self.bentoml = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "http" else self.bentoml)(scope, receive, send)


@bentoml.service(traffic={"timeout": settings().request_seconds}, image=bento_image())
@bentoml.asgi_app(app, path="/")
class TextToArt:
    """Text to art over the Retriever, the Stylizer and the Optimizer.

    Optimisations go through the store of the jobs; the Optimizer is named here so that it is started.
    """

    retriever = bentoml.depends(Retriever)
    stylizer = bentoml.depends(Stylizer)
    optimizer = bentoml.depends(Optimizer)

    def __init__(self) -> None:
        self.jobs: JobStore | None = None
        self.optimize_device = str(pick_device(settings().device))
        metrics.provider.labels("optimize", self.optimize_device).set(1)
        log.info("engine optimize runs on %s", self.optimize_device)
        # The application is made before any instance; a process has one of each.
        _gateway[:] = [self]

    @bentoml.on_startup
    def open_jobs(self) -> None:
        """Open the store of the jobs; only a server calls this."""
        self.jobs = JobStore.of_settings()

    @bentoml.on_startup
    async def take_more_threads(self) -> None:
        """Threads for all that the engines' limits let in, and for the catalogue beside them."""
        most = sum(engines.limits().values()) + _CATALOGUE_THREADS
        anyio.to_thread.current_default_thread_limiter().total_tokens = most

    async def check(self) -> None:
        """Ask the services behind this one whether they are ready.

        Raises:
            Unreachable: one is not; the message says which, and why.
        """
        await health.check(_parts())

    async def counts(self) -> bytes:
        """What this service and those behind it have counted, in Prometheus's text format."""
        if self.jobs is not None:
            for state, count in self.jobs.counts().items():
                metrics.jobs.labels(state).set(count)
        return metrics.joined({TextToArt.name: metrics.exposition(), **await health.counts(_parts())})


def _parts() -> health.Parts:
    return {dependency.on.name: dependency.on for dependency in TextToArt.dependencies.values()}


def _check() -> None:
    """Refuse to start where no job can be kept, or where CUDA or an engine that was asked for by name does not run.

    Found by a service, the former would end its process, and the supervisor start it again without end.

    Raises:
        EngineUnavailable: the message names the library that is missing.
        InvalidInput: the state folder cannot be used.
    """
    config = settings()
    JobStore.of_settings()
    pick_device(config.device)
    if config.device == "cuda" or config.engine != "auto":
        library = ModelLibrary(config.model_folders, device=config.device, engine=config.engine)
        for model in list(library.models.values())[:1]:
            log.info("engine fast runs on %s", model.provider)


TextToArt.add_asgi_middleware(Direct)
lifecycle.equip(TextToArt, _check)
