"""The gateway: Lienzo's public face. ``bentoml serve`` starts this service and, through it, the others.

The endpoints are a FastAPI application inside the BentoML service rather than ``@bentoml.api`` methods. BentoML answers
its own form of error, loses the message of any failure, and knows no limit on a body; a public interface needs all
three in its own hands. Between the services BentoML's own calls are used.
"""

from __future__ import annotations

import bentoml

from services.bento import bento_image
from services.http import create_app
from services.optimizer import Optimizer
from services.retriever import Retriever
from services.settings import settings
from services.stylizer import Stylizer

_gateway: list[TextToArt] = []


def _current() -> TextToArt:
    return _gateway[0]


app = create_app(_current)


@bentoml.service(traffic={"timeout": settings().optimize_timeout + 120}, image=bento_image())
@bentoml.asgi_app(app, path="/")
class TextToArt:
    """Text to art over the Retriever, the Stylizer and the Optimizer."""

    retriever = bentoml.depends(Retriever)
    stylizer = bentoml.depends(Stylizer)
    optimizer = bentoml.depends(Optimizer)

    def __init__(self) -> None:
        # The application is made before any instance; a process has one of each.
        _gateway[:] = [self]
