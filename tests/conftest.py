"""What several test modules share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from serving import Server, served

from services.settings import settings
from shared import weights
from shared.encoders import Encoder
from shared.fast_models import CARD_FILE, MODEL_FILE, ClusterCard, FastModel, ModelLibrary
from shared.galleries import read_met
from shared.gallery_index import open_index
from shared.style_space import StyleEncoder, StyleSpace


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, metavar="DIR", help="write the README's pictures of the page to DIR")
    parser.addoption("--fuzz-cases", type=int, default=400, metavar="N", help="requests that test_fuzz.py generates")


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """The networks here are small; more threads only wait for one another."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def vgg19_weights() -> Path:
    """The verified safetensors file of VGG-19, fetched once into the user's own cache and kept there between runs."""
    return weights.fetch("vgg19")


@pytest.fixture(scope="session")
def minilm() -> Path:
    return weights.fetch("minilm")


@pytest.fixture(scope="session")
def vgg19(vgg19_weights) -> Mapping[str, torch.Tensor]:
    """The tensors of VGG-19 by layer name."""
    return weights.load("vgg19", path=vgg19_weights)


@pytest.fixture(scope="session")
def encoder(vgg19) -> Encoder:
    """VGG-19 in fp32 on the CPU."""
    return Encoder(vgg19)


@pytest.fixture(scope="session")
def fast_model() -> FastModel:
    """One of the fast models that ship."""
    library = ModelLibrary(settings().model_folders)
    assert library.models, f"no fast model ships, and LIENZO_MODELS names none: {library.refusals}"
    return next(iter(library.models.values()))


@dataclass(frozen=True)
class Twin:
    """A fast model that a user dropped in: a shipped network whose cluster is around one gallery picture.

    Attributes:
        folder: of the models; it also holds one that must be refused.
        picture_id, picture_title: of the picture in the middle of the cluster.
        refused: name of the folder that must be refused.
    """

    folder: Path
    slug: str
    picture_id: str
    picture_title: str
    refused: str


@pytest.fixture(scope="session")
def twin(fast_model, tmp_path_factory) -> Twin:
    folder, gallery, space = tmp_path_factory.mktemp("models"), read_met(), StyleSpace.load()
    picture = gallery.pictures[0]
    centre = open_index(gallery, [StyleEncoder(space, lambda: pytest.fail("the shipped index is enough"))]).embedding(
        picture.id
    )
    cluster = ClusterCard(id="twin", style_space=space.fingerprint, centre=tuple(map(float, centre)), radius=0.05)
    card = fast_model.card.model_copy(update={"slug": "the-twin", "name": "The Twin", "cluster": cluster})
    for name in ("the-twin", "altered"):
        (folder / name).mkdir()
        shutil.copy(fast_model.folder / MODEL_FILE, folder / name)
        (folder / name / CARD_FILE).write_text(card.model_dump_json())
    with (folder / "altered" / MODEL_FILE).open("ab") as file:
        file.write(b"one byte more")
    return Twin(folder, card.slug, picture.id, picture.title, "altered")


@pytest.fixture(scope="session")
def server_process(twin, vgg19_weights, tmp_path_factory) -> Iterator[Server]:
    """`lienzo serve` with the shipped models and the twin, started once for all tests that ask for it."""
    with served(tmp_path_factory.mktemp("server"), ["--models", str(twin.folder)]) as server:
        yield server


@pytest.fixture(scope="session")
def server_url(server_process) -> str:
    """Where the server listens, as ``http://127.0.0.1:PORT``."""
    return server_process.url


@pytest.fixture(scope="session")
def small_server(vgg19_weights, tmp_path_factory) -> Iterator[Server]:
    """`lienzo serve` with small limits, for very many requests: nothing that it paints takes long."""
    limits = {
        "SIZE": 64, "MAX_SIZE": 96, "MAX_OPTIMIZE_SIZE": 64, "STEPS": 2, "MAX_STEPS": 200, "OPTIMIZE_SECONDS": 3,
        "WAIT": 0.2,
    }  # fmt: skip
    environment = {f"LIENZO_{name}": str(limit) for name, limit in limits.items()}
    with served(tmp_path_factory.mktemp("small"), environment=environment) as server:
        yield server
