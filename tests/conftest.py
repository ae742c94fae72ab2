"""What several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import weights


@pytest.fixture(scope="session")
def vgg19_weights() -> Path:
    """The verified safetensors file of VGG-19, fetched once into the user's own cache and kept there between runs."""
    return weights.fetch("vgg19")
