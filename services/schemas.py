"""What the HTTP endpoints take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.jobs import MOST_LOSSES, State
from services.settings import settings
from shared.fast_models import Card
from shared.images import FORMATS
from shared.text_search import MAX_K

ID = r"^[A-Za-z0-9._-]+$"
EXAMPLE_PICTURE = "met-436947"
EXAMPLE_STYLE = "great-wave"
EXAMPLE_JOB = "aetUATqIxSZYnXFxCX6omQ"

_CONFIG = settings()

Engine = Literal["auto", "fast", "instant", "optimize"]
ENGINES = (
    "auto: fast where a network knows the style, else optimize; fast: one pass through the nearest network; "
    "instant: one pass in any style picture's manner (AdaIN), a preview of optimize"
)
Format = Literal[tuple(FORMATS)]
Id = Annotated[str, Field(min_length=1, max_length=200, pattern=ID)]
Title = Annotated[str, Field(max_length=_CONFIG.max_title, description="a few words, as a painting's title")]
Description = Annotated[str, Field(max_length=_CONFIG.max_description, description="what the picture shows")]
K = Annotated[int, Field(ge=1, le=MAX_K, description="how many pictures")]
Size = Annotated[
    int, Field(ge=64, le=max(_CONFIG.max_size, _CONFIG.max_optimize_size), description="longer side, pixels")
]
Strength = Annotated[float, Field(ge=0, le=1, description="0: the content as it is; 1: the painting")]
PreserveColor = Annotated[bool, Field(description="keep the content's colours")]
Steps = Annotated[int, Field(ge=1, le=_CONFIG.max_steps, description="steps of the optimiser, if it paints")]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="of the optimiser")]


def _example(**values: object) -> ConfigDict:
    """What a model looks like, for the documentation."""
    return ConfigDict(json_schema_extra={"examples": [values]})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ContentQuery(_Request):
    """Words to find content pictures by, in English or Spanish."""

    model_config = _example(title="A boat trip on a sunny day", k=3)

    title: Title = ""
    description: Description = ""
    k: K = 5

    @model_validator(mode="after")
    def _some_words(self) -> ContentQuery:
        if not (self.title.strip() or self.description.strip()):
            raise ValueError("title and description are both empty; one of them is needed")
        return self


class TextToArt(_Request):
    """Words, and how to paint what they find."""

    model_config = _example(
        title="A boat trip on a sunny day",
        description="From a boat accompanied by people you can see the city illuminated by a radiant sun.",
    )

    title: Title = ""
    description: Description = ""
    content_id: Id | None = Field(default=None, description="paint this gallery picture instead of looking for one")
    style_id: Id | None = Field(
        default=None, description="a gallery picture's id or a fast style's slug, instead of looking for a style"
    )
    size: Size = _CONFIG.size
    engine: Engine = Field(default="auto", description=ENGINES)
    strength: Strength = 1.0
    preserve_color: PreserveColor = False
    steps: Steps = _CONFIG.steps
    seed: Seed = 0
    format: Format = "png"

    @model_validator(mode="after")
    def _something_to_paint(self) -> TextToArt:
        if not (self.title.strip() or self.description.strip() or self.content_id):
            raise ValueError("title, description and content_id are all empty; one of them is needed")
        return self


class PictureMatch(BaseModel):
    """A gallery picture that was found."""

    model_config = _example(
        id=EXAMPLE_PICTURE,
        title="Boating",
        artist="Edouard Manet",
        date="1874",
        distance=0.625581,
        url=f"/v1/pictures/{EXAMPLE_PICTURE}",
        thumbnail=f"/v1/pictures/{EXAMPLE_PICTURE}?size=320",
    )

    id: str
    title: str
    artist: str
    date: str
    distance: float = Field(description="cosine distance, 0 is nearest")
    url: str = Field(description="where the picture is")
    thumbnail: str


class ErrorBody(BaseModel):
    """What went wrong, and what to do."""

    code: str
    message: str
    hint: str
    field: str | None = None


class ErrorAnswer(BaseModel):
    """Every refusal has this form."""

    model_config = _example(
        error={
            "code": "not_found",
            "message": "The gallery met has no picture 'met-436948'.",
            "hint": "Ids look like met-436947, met-436964, met-436944.",
            "field": "id",
        }
    )

    error: ErrorBody


class StyleCard(Card):
    """A fast style's card, and what the network weighs."""

    model_config = _example(
        slug=EXAMPLE_STYLE,
        name="The Great Wave",
        styles=[
            {
                "title": "The Great Wave off Kanagawa",
                "artist": "Katsushika Hokusai",
                "source": "public domain",
                "sha256": "311e6dad41945589324f8d043950ae64c03a2716f273ab598a31445f3d0fd99c",
            }
        ],
        cluster={
            "id": EXAMPLE_STYLE,
            "style_space": "aca687d6dbc01587",
            "centre": [-0.388739, 0.123766, 0.091024],
            "radius": 0.65,
        },
        width="half",
        parameters=424099,
        training={"steps": 145, "batch": 2, "crop": 192, "seconds": 155.1},
        data={"content": "public-domain paintings", "pictures": 841},
        created="2026-11-21",
        stride=4,
        min_side=32,
        opset=18,
        parity={"max_difference": 0.000635, "shapes": [[1, 64, 64], [2, 97, 131]]},
        sha256="12138d5e580de66a765ce798f385e6f627932d289f266be6ba50a6f9afa52816",
        licence="MIT (the network's weights)",
        bytes=871148,
    )

    bytes: int = Field(description="size of the network's file")


class Limits(BaseModel):
    """What requests may ask for, and how large uploads may be."""

    size: int = Field(description="largest longer side of a fast painting, pixels")
    optimize_size: int = Field(description="largest longer side of an optimised or instant painting, pixels")
    steps: int = Field(description="most steps of the optimiser")
    body_bytes: int = Field(description="largest request body")
    pixels: int = Field(description="largest uploaded picture, width × height")
    side: int = Field(description="least shorter side of an uploaded picture, pixels")


class LossPoint(BaseModel):
    """The terms of the loss at one step."""

    step: int
    content: float
    style: float
    tv: float
    total: float


class JobLinks(BaseModel):
    """Where a job is."""

    status: str
    events: str = Field(description="server-sent events until the job ends")
    result: str = Field(description="the painting, once the job is done")
    preview: str | None = Field(description="a small picture of how far it is, while it is painted")


class JobStatus(BaseModel):
    """An optimisation as it stands."""

    model_config = _example(
        id=EXAMPLE_JOB,
        state="running",
        position=0,
        step=12,
        steps=60,
        losses=[{"step": 12, "content": 12.8, "style": 389.0, "tv": 0.95, "total": 402.7}],
        created="2026-11-21T17:26:14Z",
        started="2026-11-21T17:26:15Z",
        ended=None,
        error=None,
        links={
            "status": f"/v1/jobs/{EXAMPLE_JOB}",
            "events": f"/v1/jobs/{EXAMPLE_JOB}/events",
            "result": f"/v1/jobs/{EXAMPLE_JOB}/result",
            "preview": f"/v1/jobs/{EXAMPLE_JOB}/preview?step=11",
        },
    )

    id: str
    state: State
    position: int | None = Field(description="1: the next to be painted; 0: being painted; null: it has ended")
    step: int = Field(description="steps made")
    steps: int = Field(description="steps asked for")
    losses: list[LossPoint] = Field(max_length=MOST_LOSSES)
    created: datetime
    started: datetime | None
    ended: datetime | None
    error: ErrorBody | None = Field(description="why it failed")
    links: JobLinks


class Health(BaseModel):
    """What runs, on what, and within which limits."""

    model_config = _example(
        version="0.1.0",
        provider="OpenVINO CPU bfloat16",
        engines={"fast": "OpenVINO CPU bfloat16", "instant": "cpu", "optimize": "cpu"},
        models=[EXAMPLE_STYLE, "impressionism"],
        refused=[],
        gallery="met",
        pictures=174,
        search=["words", "sentences"],
        limits={
            "size": 2048,
            "optimize_size": 1024,
            "steps": 500,
            "body_bytes": 33554432,
            "pixels": 64000000,
            "side": 16,
        },
    )

    version: str
    provider: str = Field(description="what runs the fast models, as in the header Lienzo-Provider")
    engines: dict[str, str] = Field(description="what runs each engine: an execution provider, or a device")
    models: list[str]
    refused: list[str] = Field(description="model folders that were refused; the log says why")
    gallery: str
    pictures: int
    search: list[str] = Field(description="what content is searched by: words, sentences, pictures")
    limits: Limits


class StyleQuery(_Request):
    """A picture to find similar styles for; an uploaded one travels beside this in the form."""

    model_config = _example(content_id=EXAMPLE_PICTURE, k=5)

    content_id: Id | None = None
    k: K = 5
