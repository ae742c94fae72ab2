"""What the HTTP endpoints take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.jobs import MOST_LOSSES, State
from services.settings import settings
from shared.images import FORMATS
from shared.text_search import MAX_K

ID = r"^[A-Za-z0-9._-]+$"

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


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ContentQuery(_Request):
    """Words to find content pictures by, in English or Spanish."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"title": "A boat trip on a sunny day", "k": 3}]}
    )

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

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "title": "A boat trip on a sunny day",
                    "description": "From a boat accompanied by people you can see the city illuminated by "
                    "a radiant sun.",
                }
            ]
        },
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

    error: ErrorBody


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
    """What runs, and on what."""

    version: str
    provider: str = Field(description="execution provider of the fast models")
    engines: dict[str, str] = Field(description="what runs each engine: an execution provider, or a device")
    models: list[str]
    refused: list[str] = Field(description="model folders that were refused; the log says why")
    gallery: str
    pictures: int
    search: list[str] = Field(description="what content is searched by: words, sentences, pictures")


class StyleQuery(_Request):
    """A picture to find similar styles for; an uploaded one travels beside this in the form."""

    content_id: Id | None = None
    k: K = 5
