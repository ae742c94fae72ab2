"""The main job: words → content → style → engine → painting, over the three services."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.engines import RETRIEVAL, at_work
from services.messages import call
from services.request_facts import note
from services.schemas import TextToArt
from services.settings import settings
from shared.errors import InvalidInput, NotFound


class Services(Protocol):
    """The services that the pipeline calls, in this process or in others."""

    retriever: Any
    stylizer: Any
    optimizer: Any


@dataclass
class Outcome:
    """A painting, and how it came about.

    Attributes:
        data: the encoded picture.
        content, style: id of each; the style may be a fast model's slug.
        content_distance: cosine distance between the words and the content picture; None where it was named.
        style_distance: cosine distance between the styles of both pictures; None where one is not in the gallery.
        engine: ``fast``, ``instant`` or ``optimize``.
        model, model_distance: the fast model that painted, or with ``optimize`` the nearest one, and the cosine
            distance between the style and the centre of its cluster; none with ``instant``.
        steps: of the optimiser.
        seconds: by stage.
        order: the Optimizer's arguments, where its painting was left for later.
    """

    format: str
    data: bytes = b""
    content: str = ""
    content_title: str = ""
    style: str = ""
    style_title: str = ""
    content_distance: float | None = None
    style_distance: float | None = None
    engine: str = ""
    provider: str = ""
    model: str = ""
    model_distance: float | None = None
    steps: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    order: dict[str, Any] | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def recipe(self, brush: Brush) -> dict[str, str]:
        """What is written into the picture's metadata: enough to paint it again, where both pictures are at hand."""
        model = self.model if self.engine == "fast" else ""
        facts = {"Content": self.content, "Style": self.style, "Engine": self.engine, "Model": model}
        facts |= {"Size": f"{brush.size}", "Strength": f"{brush.strength:g}"}
        if brush.preserve_color:
            facts["Colors"] = "kept"
        if self.engine == "optimize":
            facts |= {"Steps": f"{brush.steps}", "Seed": f"{brush.seed}"}
        return {"Software": "Lienzo"} | {key: value for key, value in facts.items() if value}


@dataclass(frozen=True)
class Brush:
    """How to paint, whatever the pictures are."""

    size: int
    engine: str = "auto"
    strength: float = 1.0
    preserve_color: bool = False
    steps: int = 60
    seed: int = 0
    format: str = "png"


@dataclass(frozen=True)
class Style:
    """The style to paint in: a picture with its embedding, or a fast model by name."""

    id: str
    title: str = ""
    data: bytes | None = None
    embedding: Any = None
    style_space: str = ""
    slug: str = ""


def text_to_art(services: Services, request: TextToArt, *, defer: bool = False) -> Outcome:
    """Answer a text-to-art request; ``defer`` as in :func:`paint`."""
    outcome = Outcome(request.format)
    with at_work(RETRIEVAL), outcome.timed("retrieve"):
        content_id = request.content_id
        if content_id is None:
            (found,) = call(services.retriever.content, title=request.title, description=request.description, k=1)
            content_id, outcome.content_distance = found["id"], found["distance"]
        content = call(services.retriever.picture, picture_id=content_id)
        outcome.content, outcome.content_title = content["id"], content["title"]
        style_id = request.style_id
        if style_id is None:
            (found,) = call(services.retriever.style, content_id=content_id, picture=None, k=1)
            style_id, outcome.style_distance = found["id"], found["distance"]
        style = named_style(services, style_id)
        if outcome.style_distance is None and style.data is not None:
            outcome.style_distance = call(services.retriever.distance, content_id=content_id, style_id=style_id)
    brush = Brush(
        request.size,
        request.engine,
        request.strength,
        request.preserve_color,
        request.steps,
        request.seed,
        request.format,
    )
    paint(services, content["data"], style, brush, outcome, defer=defer)
    return outcome


def stylize(services: Services, picture: bytes, style: Style, brush: Brush, *, defer: bool = False) -> Outcome:
    """Paint an uploaded picture; ``defer`` as in :func:`paint`."""
    outcome = Outcome(brush.format, content="upload")
    paint(services, picture, style, brush, outcome, defer=defer)
    return outcome


@dataclass(frozen=True)
class Example:
    """What a fast style makes of a gallery picture, not painted yet.

    Attributes:
        fingerprint: of everything that decides how the painting looks.
    """

    services: Services
    slug: str
    content: dict[str, Any]
    size: int
    fingerprint: str

    def paint(self) -> bytes:
        """The painting as a JPEG."""
        outcome = Outcome("jpeg", content=self.content["id"])
        paint(
            self.services,
            self.content["data"],
            Style(self.slug, slug=self.slug),
            Brush(self.size, format="jpeg"),
            outcome,
        )
        return outcome.data


def example(services: Services, slug: str, content_id: str | None, size: int) -> Example:
    """The example of a fast style, by default of the gallery's first picture.

    Raises:
        NotFound: no fast style has that slug, or no gallery picture that id.
    """
    network = call(services.stylizer.fingerprint, slug=slug)
    content_id = content_id or call(services.retriever.about)["first"]
    content = call(services.retriever.picture, picture_id=content_id)
    picture = hashlib.sha256(content["data"]).hexdigest()
    return Example(services, slug, content, size, f"{network} {picture} {size}")


def named_style(services: Services, style_id: str) -> Style:
    """The style called ``style_id``: a fast model's slug, or a gallery picture's id.

    Raises:
        NotFound: it is neither.
    """
    slugs = call(services.stylizer.slugs)
    if style_id in slugs:
        return Style(style_id, slug=style_id)
    try:
        picture = call(services.retriever.picture, picture_id=style_id)
    except NotFound as error:
        raise NotFound(
            f"there is no style '{style_id[:80]}': no fast style has that slug, and no gallery picture that id.",
            hint=f"Fast styles are: {', '.join(slugs)}." if slugs else error.hint,
            field="style",
        ) from error
    return Style(style_id, picture["title"], picture["data"], picture["embedding"], picture["style_space"])


def uploaded_style(services: Services, picture: bytes) -> Style:
    """The style of an uploaded picture."""
    with at_work(RETRIEVAL):
        return Style("upload", data=picture, **call(services.retriever.embed, picture=picture))


def paint(
    services: Services, content: bytes, style: Style, brush: Brush, outcome: Outcome, *, defer: bool = False
) -> None:
    """Choose the engine and paint, noting everything in ``outcome``.

    Args:
        defer: leave what the optimiser would paint unpainted, as the outcome's ``order``.
    """
    outcome.style, outcome.style_title = style.id, style.title
    nearest = None
    if style.slug:
        if brush.engine in ("instant", "optimize"):
            raise InvalidInput(
                f"'{style.slug}' is a fast style without a picture, which engine '{brush.engine}' cannot paint from.",
                hint="Use engine auto or fast, or name a gallery picture as the style.",
                field="engine",
            )
        outcome.model = style.slug
    elif brush.engine != "instant":
        nearest = call(services.stylizer.nearest, embedding=style.embedding, style_space=style.style_space)
        if nearest is not None:
            outcome.model, outcome.model_distance = nearest["slug"], nearest["distance"]
    known = bool(style.slug) or (nearest is not None and nearest["inside"])
    if brush.engine == "fast" and not outcome.model:
        raise InvalidInput("no fast style is installed.", hint="Use engine optimize.", field="engine")
    outcome.engine = brush.engine if brush.engine != "auto" else "fast" if known else "optimize"
    limit = settings().max_size if outcome.engine == "fast" else settings().max_optimize_size
    if brush.size > limit:
        raise InvalidInput(
            f"size is {brush.size} pixels, but engine '{outcome.engine}' paints at most {limit}.",
            hint="Ask for a smaller size, or for a style that a fast network knows.",
            field="size",
        )
    order = None
    if outcome.engine == "optimize":
        order = {
            "content": content,
            "style": style.data,
            "size": brush.size,
            "steps": brush.steps,
            "seed": brush.seed,
            "strength": brush.strength,
            "preserve_color": brush.preserve_color,
            "format": brush.format,
            "recipe": outcome.recipe(brush),
        }
        if defer:
            note(engine=outcome.engine)
            outcome.order = order
            return
    with at_work(outcome.engine), outcome.timed("paint"):
        if outcome.engine == "fast":
            painted = call(
                services.stylizer.paint,
                picture=content,
                slug=outcome.model,
                size=brush.size,
                strength=brush.strength,
                preserve_color=brush.preserve_color,
                format=brush.format,
                recipe=outcome.recipe(brush),
            )
        elif outcome.engine == "instant":
            painted = call(
                services.retriever.paint,
                content=content,
                style=style.data,
                size=brush.size,
                strength=brush.strength,
                preserve_color=brush.preserve_color,
                format=brush.format,
                recipe=outcome.recipe(brush),
            )
        else:
            painted = call(services.optimizer.paint, **order)
            outcome.steps = painted["steps"]
    outcome.data = painted["data"]
    outcome.provider = painted.get("provider") or painted["device"]
    outcome.seconds |= painted["seconds"]
