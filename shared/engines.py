"""What runs a fast model: ONNX Runtime on a GPU or any processor, OpenVINO on processors that compute in bfloat16."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from shared.errors import EngineUnavailable, InvalidInput, ModelRefused
from shared.onnx_runtime import available_cpus, gpu_present, open_session

log = logging.getLogger(__name__)

ENGINES = ("auto", "onnxruntime", "openvino", "cuda", "tensorrt")
"""What can be asked for; ``onnxruntime`` is ONNX Runtime on the processor, ``auto`` what is fastest here."""

_ON_GPU = ("cuda", "tensorrt")
_KEPT_PIXELS = 1100 * 1100
"""A run on more pixels gives its working memory back, or every model would keep its largest. Getting it anew takes half
as long again as the run, with ONNX Runtime."""


class Engine(Protocol):
    """A network, ready to run.

    Attributes:
        provider: what really runs it, as answers and logs name it.
        threads: of one run.
        bytes_per_pixel: working memory of a transform network of half width, measured at 2048 pixels.
    """

    provider: str
    threads: int
    bytes_per_pixel: int

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The network's outputs, in their order, for its inputs by name. May be called by several threads."""


def open_engine(
    model: Path | bytes,
    *,
    name: str = "",
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    gpu_memory: int | None = None,
) -> Engine:
    """The network in an ONNX file, or in its bytes, on the engine that is asked for.

    Args:
        name: what messages call the network.
        engine: one of :data:`ENGINES`.
        device: ``auto``, ``cpu`` or ``cuda``: what ``auto`` may choose from.
        threads: those of one run; by default as many as the process may use processors.
        gpu_memory: most bytes that the network takes of a GPU to work in; as many as it likes where not given.

    Raises:
        EngineUnavailable: the engine asked for does not run here. Nothing else takes its place.
        InvalidInput: there is no such engine, or it does not run on ``device``.
        ModelRefused: the engine cannot load the network.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine is '{engine}', expected one of {', '.join(ENGINES)}.", field="engine")
    if device not in ("auto", "cuda" if engine in _ON_GPU else "cpu") and engine != "auto":
        raise InvalidInput(f"engine '{engine}' does not run on device '{device}'.", field="engine")
    name = name or (model.name if isinstance(model, Path) else "the network")
    threads = threads or available_cpus()
    on_processor = device == "cpu" or (device == "auto" and not gpu_present())
    if engine == "openvino" or (engine == "auto" and on_processor and _openvino_pays()):
        opened: Engine = _OpenVino(model, name, threads)
    else:
        where = {"onnxruntime": "cpu", "auto": device}.get(engine, engine)
        opened = _OnnxRuntime(model, where, name, threads, gpu_memory)
    log.info("%s runs on %s, %d threads", name, opened.provider, opened.threads)
    return opened


class _OnnxRuntime:
    bytes_per_pixel = 700

    def __init__(self, model: Path | bytes, device: str, name: str, threads: int, gpu_memory: int | None):
        self._session = open_session(model, device=device, threads=threads, name=name, gpu_memory=gpu_memory)
        self.provider = self._session.get_providers()[0]
        self.threads = threads
        # A GPU has memory of its own: as large a picture as with OpenVINO.
        self.bytes_per_pixel = 700 if self.provider == "CPUExecutionProvider" else _OpenVino.bytes_per_pixel

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        options = onnxruntime.RunOptions()
        if _pixels(inputs) > _KEPT_PIXELS and self.provider == "CPUExecutionProvider":
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return self._session.run(None, dict(inputs), options)


class _OpenVino:
    bytes_per_pixel = 170

    def __init__(self, model: Path | bytes, name: str, threads: int):
        # Without it the processor would round to bfloat16 in software.
        hint, precision = ("bf16", "bfloat16") if processor_flags() & _BFLOAT16_FLAGS else ("f32", "float32")
        core = _openvino_core()
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Two processes that pin their threads pin them to the same processors.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            # Every failure of OpenVINO is a RuntimeError.
            self._compiled = core.compile_model(core.read_model(model), "CPU", options)
        except RuntimeError as error:
            raise ModelRefused(f"OpenVINO cannot load {name}: {error}", hint="Export the model again.") from error
        self.provider = f"OpenVINO CPU {precision}"
        self.threads = threads

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        request = self._compiled.create_infer_request()
        request.infer(dict(inputs), share_inputs=True)
        outputs = [request.get_output_tensor(i).data.copy() for i in range(len(self._compiled.outputs))]
        del request
        if _pixels(inputs) > _KEPT_PIXELS:
            self._compiled.release_memory()
        return outputs


def _pixels(inputs: Mapping[str, np.ndarray]) -> int:
    """Pixels or positions of the largest ``[N, C, H, W]`` among the inputs."""
    return max(array.size // array.shape[1] for array in inputs.values() if array.ndim == 4)


_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def _openvino_pays() -> bool:
    """Whether OpenVINO is installed and computes in bfloat16 here: twice as fast and a quarter of the memory."""
    return importlib.util.find_spec("openvino") is not None and bool(processor_flags() & _BFLOAT16_FLAGS)


@cache
def _openvino_core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise EngineUnavailable(
            "OpenVINO was asked for, but the package 'openvino' is not installed.",
            hint="Install it: pip install openvino; or use engine 'onnxruntime'.",
        ) from error
    return openvino.Core()


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can, as Linux names it (``avx512_bf16``, ``amx_bf16``, …); empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))
