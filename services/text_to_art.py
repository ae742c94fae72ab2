"""The gateway: Lienzo's public face. ``bentoml serve`` starts this service and, through it, the others.

The endpoints are a FastAPI application inside the BentoML service rather than ``@bentoml.api`` methods. BentoML answers
its own form of error, loses the message of any failure, and knows no limit on a body; a public interface needs all
three in its own hands. Between the services BentoML's own calls are used.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import bentoml

from services.http import create_app
from services.job_http import end_waiting_on_signals
from services.jobs import JobStore
from services.limits import AnswerAlways
from services.optimizer import Optimizer
from services.retriever import Retriever
from services.settings import settings
from services.stylizer import Stylizer

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


# Beyond the wait for an optimisation there are the other services' answers to wait for.
@bentoml.service(traffic={"timeout": settings().wait + 240}, image=_image())
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
        # The application is made before any instance; a process has one of each.
        _gateway[:] = [self]

    @bentoml.on_startup
    def serve(self) -> None:
        """Open the store of the jobs; only a server calls this."""
        self.jobs = JobStore.of_settings()
        end_waiting_on_signals()


TextToArt.add_asgi_middleware(AnswerAlways)
