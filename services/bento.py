"""What a bento's image installs: the project's own dependencies, said once, in pyproject.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import bentoml
from packaging.requirements import Requirement

from shared.errors import InvalidInput

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_FROM_CPU_INDEX = ("torch", "torchvision")


def bento_image() -> bentoml.images.Image:
    """The image of a bento built in the project's folder, by the recipe in ``LIENZO_BENTO``: ``gpu`` or ``cpu``.

    The GPU recipe installs the builds of the package index, which bring CUDA. The CPU recipe installs PyTorch from
    PyTorch's own index of CPU builds and ONNX Runtime without CUDA: gigabytes less.

    Raises:
        InvalidInput: there is no such recipe.
    """
    recipe = os.environ.get("LIENZO_BENTO", "gpu")
    if recipe not in ("gpu", "cpu"):
        raise InvalidInput(f"the environment variable LIENZO_BENTO is '{recipe}', expected gpu or cpu.")
    image = bentoml.images.Image(python_version="3.11")
    if not PROJECT.is_file():  # installed, not run from the project's folder: no bento is built from there
        return image
    dependencies = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    if recipe == "gpu":
        return image.python_packages(*dependencies)
    requirements = {Requirement(dependency).name: Requirement(dependency) for dependency in dependencies}
    requirements["onnxruntime"].marker = None
    del requirements["onnxruntime-gpu"]
    torch = " ".join(f"'{requirements.pop(name)}'" for name in _FROM_CPU_INDEX)
    return image.python_packages(*map(str, requirements.values())).run(
        f"uv pip install --index-url {CPU_INDEX} {torch}"
    )
