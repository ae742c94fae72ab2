"""ONNX Runtime sessions: which provider runs them, with how many threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import onnxruntime

from shared.errors import EngineUnavailable, InvalidInput, ModelRefused

log = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(
    path: Path, *, device: str = "auto", threads: int | None = None, gpu_memory: int | None = None
) -> onnxruntime.InferenceSession:
    """A session for the network in ``path`` on ``device`` (``auto``, ``cpu`` or ``cuda``).

    Args:
        threads: of one operator; every processor that there is where not given.
        gpu_memory: most bytes that the session's arena takes of a GPU; as many as it likes where not given.

    Raises:
        EngineUnavailable: ``cuda`` was asked for and ONNX Runtime does not run the session there. ONNX Runtime itself
            would fall back to the CPU without a word.
        ModelRefused: the file is not a network that ONNX Runtime can load.
    """
    if device not in ("auto", *_PROVIDERS):
        raise InvalidInput(f"device is '{device}', expected auto, cpu or cuda.", field="device")
    available = onnxruntime.get_available_providers()
    wanted = _PROVIDERS["cuda" if device == "auto" and _gpu_present() else device if device != "auto" else "cpu"]
    if wanted not in available:
        raise EngineUnavailable(
            f"{wanted} was asked for, but this ONNX Runtime offers only {', '.join(available)}.",
            hint="Install onnxruntime-gpu, or use device 'cpu'.",
        )
    if wanted == _PROVIDERS["cuda"]:
        _preload_cuda()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.log_severity_level = 3
    providers: list[Any] = [_PROVIDERS["cpu"]]
    if wanted == _PROVIDERS["cuda"]:
        # Growing by what is asked for, not by doubling, lets the bound be used to its end.
        bound = {"gpu_mem_limit": gpu_memory, "arena_extend_strategy": "kSameAsRequested"} if gpu_memory else {}
        providers.insert(0, (wanted, bound))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception.
        raise ModelRefused(f"ONNX Runtime cannot load '{path}': {error}", hint="Export the model again.") from error
    running = session.get_providers()[0]
    if running != wanted:
        missing = _missing_cuda_libraries() if wanted == _PROVIDERS["cuda"] else ()
        named = f": {', '.join(missing)} cannot be loaded" if missing else ""
        if device == "cuda":
            raise EngineUnavailable(
                f"{wanted} was asked for, but ONNX Runtime runs '{path.name}' on {running}{named}.",
                hint="Install what is missing (CUDA, cuDNN, the driver), or use device 'cpu'.",
            )
        log.warning("%s is offered but does not start; '%s' runs on %s%s", wanted, path.name, running, named)
    return session


def available_cpus() -> int:
    """Processors that this process may use: its affinity, cut by the control group's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cpus


def _gpu_present() -> bool:
    """Whether an NVIDIA device is there, so that ``auto`` asks for CUDA only where it can work."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and (
        Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() or os.name == "nt"
    )


@functools.cache
def _preload_cuda() -> str:
    """Load CUDA and cuDNN from the installed Python packages where the system has none; what was said of it."""
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints what it misses
        onnxruntime.preload_dlls()
    return said.getvalue()


def _missing_cuda_libraries() -> tuple[str, ...]:
    """Names of the libraries that kept ONNX Runtime's CUDA provider from starting.

    Only for after ONNX Runtime has tried: its provider's library must not be loaded by anybody else before.
    """
    told = [_preload_cuda()]
    for library in ("libcuda.so.1", str(Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so")):
        try:
            ctypes.CDLL(library)
        except OSError as error:  # it names the first library that is not found
            told.append(str(error))
    return tuple(dict.fromkeys(re.findall(r"lib[\w+-]+\.so(?:\.\d+)*(?=: cannot open)", "\n".join(told))))
