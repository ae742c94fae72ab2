"""What an operator sets, from ``LIENZO_*`` environment variables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_state_path
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.engines import ENGINES
from shared.errors import InvalidInput
from shared.fast_models import SHIPPED

ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


def _variable(field: str) -> str:
    return f"LIENZO_{field.upper()}"


class Settings(BaseSettings):
    """Every setting, its default and its meaning; the field ``size`` is the variable ``LIENZO_SIZE``."""

    model_config = SettingsConfigDict(env_prefix="LIENZO_", frozen=True)

    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="folders of fast models beside the shipped ones, separated by the platform's path separator",
    )
    gallery: str = Field(default="met", description="`met` or a folder of pictures")
    gallery_index: Path | None = Field(
        default=None, description="folder of the gallery's index; found or built where not given"
    )
    index_uri: str | None = Field(
        default=None,
        description="Milvus that holds the index's vectors: a `.db` file or `http(s)://…`; none where the folder does",
    )
    style_encoder: str = Field(
        default="style",
        description="what finds style pictures: `style`, `resnet152`, `resnet50`, `NETWORK.onnx`, or several by `+`",
    )
    embedding: Path | None = Field(
        default=None, description="joint embedding to find content by, see `lienzo-train embed`; the index must hold it"
    )
    sentences: str = Field(
        default="auto",
        description="search by meaning too: `auto` (where `minilm` is here), `off`, or a sentence transformer's folder",
    )
    device: str = Field(default="auto", description="`auto`, `cpu` or `cuda`")
    engine: Literal[ENGINES] = Field(
        default="auto",
        description="what runs the fast networks: `auto`, `onnxruntime` (on the processor), `openvino`, `cuda` or "
        "`tensorrt`",
    )
    size: int = Field(default=512, ge=64, description="longer side of a painting where the request names none, pixels")
    max_size: int = Field(default=2048, ge=64, description="largest longer side of a fast painting, pixels")
    max_optimize_size: int = Field(
        default=1024, ge=64, description="largest longer side of an optimised or instant painting, pixels"
    )
    steps: int = Field(default=60, ge=1, description="optimiser steps where the request names none")
    max_steps: int = Field(default=500, ge=1, description="most optimiser steps a request may ask for")
    optimize_seconds: float = Field(
        default=120, gt=0, description="an optimisation ends after this time with what it has"
    )
    optimize_queue: int = Field(
        default=4, ge=1, description="optimisations that run or wait at once; more are answered 429"
    )
    wait: float = Field(
        default=150,
        ge=0,
        le=3600,
        description="a request for a painting waits this long for its optimisation, then is answered 202, seconds",
    )
    job_ttl: float = Field(default=3600, gt=0, description="an optimisation that ended is kept this long, seconds")
    state: Path | None = Field(
        default=None, description="folder of the optimisations; the user's state folder where not given"
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, description="largest request body")
    max_pixels: int = Field(default=64_000_000, ge=1024, description="largest uploaded picture, width × height")
    body_seconds: float = Field(default=120, gt=0, description="a body that takes longer to arrive is refused")
    max_title: int = Field(default=500, ge=1, description="longest title, characters")
    max_description: int = Field(default=5000, ge=1, description="longest description, characters")
    fast_queue: int = Field(
        default=16, ge=1, description="fast paintings that run or wait at once; more are answered 429"
    )
    instant_queue: int = Field(default=4, ge=1, description="the same for instant paintings")
    retrieval_queue: int = Field(default=32, ge=1, description="the same for searches and uploaded styles")
    fast_seconds: float = Field(default=120, gt=0, description="a fast painting that takes longer is answered 503")
    retrieval_seconds: float = Field(
        default=120, gt=0, description="the same for a search, an uploaded style, an instant painting"
    )
    keys: Path | None = Field(
        default=None, description="file of API keys, see `lienzo keys`; where not given, nobody needs one"
    )
    key_rate: float = Field(default=120, gt=0, description="requests a minute that a key may make")
    key_burst: int = Field(default=30, ge=1, description="requests that a key may make at once")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins whose pages may ask from a browser, separated by commas"
    )
    metrics: Literal["local", "on", "off"] = Field(
        default="local", description="who may read `/metrics`: `local` this machine, `on` everyone, `off` nobody"
    )
    log: Literal["text", "json"] = Field(default="text", description="form of the log's lines: `text` or `json`")
    reload: float = Field(
        default=5, ge=0, description="look for changed model folders this often, seconds; 0 for never"
    )
    shutdown_seconds: float = Field(
        default=30, ge=0, description="on SIGTERM, what runs has this long to end; new requests are answered 503"
    )
    gpu_memory: float = Field(
        default=0,
        ge=0,
        description="most GPU memory that a service's PyTorch takes, and a fast network, GB; 0 for no bound",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        import os

        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is no origin; expected some like https://example.org")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        for what, limits in {"size": ("max_size", "max_optimize_size"), "steps": ("max_steps",)}.items():
            for limit in limits:
                if getattr(self, what) > getattr(self, limit):
                    raise ValueError(
                        f"{_variable(what)} is {getattr(self, what)}, more than {_variable(limit)}, "
                        f"which is {getattr(self, limit)}"
                    )
        return self

    @property
    def state_folder(self) -> Path:
        """Where the optimisations are kept."""
        return self.state or user_state_path("lienzo")

    @property
    def request_seconds(self) -> float:
        """What a request may take in all: its body, the search, the painting, each as long as it may."""
        return self.body_seconds + self.retrieval_seconds + max(self.wait, self.fast_seconds, self.retrieval_seconds)

    @property
    def gpu_bytes(self) -> int | None:
        """The bound on GPU memory in bytes; None for none."""
        return round(self.gpu_memory * 1e9) or None

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The shipped models first, so that an added folder may replace one by its slug."""
        return (SHIPPED, *self.models)


@cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        InvalidInput: a variable is out of its limits, or two contradict each other.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise InvalidInput(f"{first['msg'].removeprefix('Value error, ')}.", hint="Change one of them.") from error
        name = _variable(str(first["loc"][0]))
        raise InvalidInput(
            f"the environment variable {name} is {first['input']!r}: {first['msg']}.", field=name
        ) from error
