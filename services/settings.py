"""What an operator sets, from ``LIENZO_*`` environment variables."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import InvalidInput
from shared.fast_models import SHIPPED


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
    device: str = Field(default="auto", description="`auto`, `cpu` or `cuda`")
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
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, description="largest request body")
    max_pixels: int = Field(default=64_000_000, ge=1024, description="largest uploaded picture, width × height")

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        import os

        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @property
    def optimize_timeout(self) -> float:
        """Seconds that an optimisation may take together with those that it waits for."""
        return 60 + self.optimize_seconds * self.optimize_queue

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The shipped models first, so that an added folder may replace one by its slug."""
        return (SHIPPED, *self.models)


@cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        InvalidInput: a variable is out of its limits.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"LIENZO_{str(first['loc'][0]).upper()}"
        raise InvalidInput(
            f"the environment variable {name} is {first['input']!r}: {first['msg']}.", field=name
        ) from error
