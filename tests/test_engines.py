"""What runs a fast model is chosen by what the machine has, said as it is, and paints what PyTorch paints."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import write_negative
from onnx import numpy_helper
from scenes import strokes

from shared import engines
from shared.engines import ENGINES, open_engine, processor_flags
from shared.errors import EngineUnavailable, InvalidInput
from shared.fast_models import MODEL_FILE, SHIPPED, FastModel, read_card
from shared.graphs import quickened
from shared.images import from_array, to_array
from shared.onnx_runtime import available_cpus, gpu_present
from shared.transform_network import TransformNetwork

SLUGS = sorted(folder.name for folder in SHIPPED.iterdir())
ON_PROCESSOR = ["onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.setattr(engines, "gpu_present", lambda: False)


@pytest.fixture
def negative(tmp_path) -> Path:
    return write_negative(tmp_path, "negative") / MODEL_FILE


def network_of(slug: str) -> TransformNetwork:
    """What PyTorch makes of a shipped model's weights."""
    tensors = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
        for tensor in onnx.load(SHIPPED / slug / MODEL_FILE).graph.initializer
    }
    network = TransformNetwork(read_card(SHIPPED / slug).width).eval()
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network


def signal_to_noise(found: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB of two served pictures, 8 bits a channel."""
    levels = [np.asarray(from_array(picture), np.float64) for picture in (found, expected)]
    return float(10 * np.log10(255**2 / max(np.square(levels[0] - levels[1]).mean(), 1e-9)))


# --- what it paints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", SLUGS)
def test_every_shipped_model_paints_on_every_engine_what_pytorch_paints(slug):
    picture, card = to_array(strokes(181, 143)), read_card(SHIPPED / slug)
    with torch.no_grad():
        expected = network_of(slug)(torch.from_numpy(picture)).numpy()
    for engine in ON_PROCESSOR:
        painted = FastModel(SHIPPED / slug, card, engine=engine).paint(picture)
        assert painted.shape == expected.shape and painted.dtype == np.float32
        assert signal_to_noise(painted, expected) >= 50, engine
        frame = np.ones(expected.shape, bool)
        frame[..., 4:-4, 4:-4] = False
        assert np.abs(painted - expected)[frame].max() <= 12 / 255, f"{engine}: the border is another"


@pytest.mark.parametrize("size", [(64, 64), (65, 70), (70, 65), (33, 35)], ids=str)
def test_the_quick_graph_is_the_same_function(size):
    data = (SHIPPED / "udnie" / MODEL_FILE).read_bytes()
    quick = quickened(data)
    assert b"quick.kernel" in quick and b"quick.kernel" not in data
    picture = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    plain, quick = (
        open_engine(each, engine="onnxruntime", threads=1).run({"pictures": picture}) for each in (data, quick)
    )
    np.testing.assert_allclose(quick[0], plain[0], atol=2e-6)


def test_a_graph_without_that_convolution_stays_as_it_is(negative):
    for data in (negative.read_bytes(), b"", b"no network", b"\x08\x0a" * 50):
        assert quickened(data) == data


@pytest.mark.parametrize("engine", ON_PROCESSOR)
def test_runs_of_different_sizes_keep_their_pictures_apart(negative, engine):
    opened = open_engine(negative, engine=engine, threads=1)
    pictures = [np.random.default_rng(i).random((1, 3, 40 + i, 33), dtype=np.float32) for i in range(3)]
    painted = [opened.run({"pictures": picture})[0] for picture in pictures]
    for before, after in zip(pictures, painted, strict=True):
        np.testing.assert_allclose(after, 1 - before, atol=2**-8)


def test_a_large_run_gives_its_memory_back_and_the_next_still_runs(negative, monkeypatch):
    monkeypatch.setattr(engines, "_KEPT_PIXELS", 0)
    picture = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    for engine in ON_PROCESSOR:
        opened = open_engine(negative, engine=engine, threads=1)
        first, second = (opened.run({"pictures": picture})[0] for _ in range(2))
        np.testing.assert_array_equal(first, second)


# --- which one it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "provider"),
    [
        ({"avx512_bf16"}, "OpenVINO CPU bfloat16"),
        ({"amx_bf16", "avx2"}, "OpenVINO CPU bfloat16"),
        ({"avx512f"}, "CPUExecutionProvider"),
        (set(), "CPUExecutionProvider"),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else value,
)
def test_auto_takes_what_the_processor_is_good_at(negative, monkeypatch, caplog, flags, provider):
    monkeypatch.setattr(engines, "processor_flags", lambda: frozenset(flags))
    with caplog.at_level(logging.INFO):
        assert open_engine(negative, threads=3).provider == provider
    assert f"runs on {provider}, 3 threads" in caplog.text


def test_what_is_asked_for_is_what_runs(negative, monkeypatch):
    monkeypatch.setattr(engines, "processor_flags", frozenset)
    assert open_engine(negative, engine="openvino").provider == "OpenVINO CPU float32"
    assert open_engine(negative, engine="onnxruntime").provider == "CPUExecutionProvider"


@pytest.mark.skipif(gpu_present(), reason="there is a GPU here")
@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
def test_a_gpu_that_is_not_there_is_an_error(negative, engine):
    with pytest.raises(EngineUnavailable, match="was asked for"):
        open_engine(negative, engine=engine)


def test_openvino_that_is_not_installed_is_an_error_where_it_was_asked_for(negative, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    engines._openvino_core.cache_clear()
    with pytest.raises(EngineUnavailable, match="not installed") as refusal:
        open_engine(negative, engine="openvino")
    assert "pip install openvino" in refusal.value.hint
    assert open_engine(negative, engine="auto").provider == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("engine", "device"), [("openvino", "cuda"), ("onnxruntime", "cuda"), ("cuda", "cpu"), ("tensorrt", "cpu")]
)
def test_an_engine_does_not_run_elsewhere_than_asked(negative, engine, device):
    with pytest.raises(InvalidInput, match=f"'{engine}' does not run on device '{device}'"):
        open_engine(negative, engine=engine, device=device)


def test_an_unknown_engine_is_refused(negative):
    with pytest.raises(InvalidInput, match=", ".join(ENGINES)):
        open_engine(negative, engine="fpga")


def test_the_processor_says_what_it_can():
    assert not Path("/proc/cpuinfo").exists() or "fpu" in processor_flags() or "fp" in processor_flags()


# --- processors ----------------------------------------------------------------------------------------------------


def control_groups(root: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "membership").write_text(membership)
    return root, root / "membership"


V1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "max 100000"}, "0::/\n", 16),
        ({"cpu.max": "200000 100000"}, "0::/\n", 2),
        ({"cpu.max": "50000 100000"}, "0::/\n", 1),
        ({"cpu.max": "garbage"}, "0::/\n", 16),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b\n", 3),
        ({"a/cpu.max": "300000 100000"}, "0::/b\n", 16),
        ({"cpu.max": "400000 100000"}, "0::/on/the/host\n", 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 16),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"}, V1, 5),
        (
            {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "700000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"},
            V1,
            7,
        ),
        ({}, "", 16),
    ],
    ids=["none", "two", "half", "garbage", "above", "another's", "the host's path", "v1 none", "v1", "v1 own", "empty"],
)
def test_a_container_may_have_fewer_processors_than_the_machine(tmp_path, monkeypatch, files, membership, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert available_cpus(*control_groups(tmp_path, files, membership)) == expected
    assert available_cpus(tmp_path, tmp_path / "missing") == 16


# --- the command that paints one picture ---------------------------------------------------------------------------


def test_stylize_starts_without_what_it_does_not_need(tmp_path):
    """PyTorch alone would take longer than the painting."""
    strokes(96, 80).save(tmp_path / "photo.png")
    arguments = ["stylize", str(tmp_path / "photo.png"), "--style", "udnie", "-o", str(tmp_path / "out.png")]
    code = (
        f"import sys; from services.cli import app; app({arguments!r}, standalone_mode=False); "
        "print('loaded', *{module.partition('.')[0] for module in sys.modules})"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=SHIPPED.parents[2])
    loaded = set(result.stdout.partition("loaded ")[2].split())
    assert "onnxruntime" in loaded and (tmp_path / "out.png").stat().st_size > 1000
    assert not loaded & {"torch", "torchvision", "sklearn", "bentoml", "scipy"}
