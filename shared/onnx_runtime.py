"""ONNX Runtime sessions: which provider runs them, with how many threads."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path

import onnxruntime

from shared.errors import EngineUnavailable, InvalidInput, ModelRefused

log = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(path: Path, *, device: str = "auto", threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session for the network in ``path`` on ``device`` (``auto``, ``cpu`` or ``cuda``).

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
        # Finds cuDNN and CUDA among the installed Python packages where the system has none. It prints what it misses.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            onnxruntime.preload_dlls()
        if said.getvalue():
            log.warning("%s", said.getvalue().strip())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.log_severity_level = 3
    providers = [wanted] if wanted == _PROVIDERS["cpu"] else [wanted, _PROVIDERS["cpu"]]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception.
        raise ModelRefused(f"ONNX Runtime cannot load '{path}': {error}", hint="Export the model again.") from error
    running = session.get_providers()[0]
    if running != wanted:
        if device == "cuda":
            raise EngineUnavailable(
                f"{wanted} was asked for, but ONNX Runtime runs '{path.name}' on {running}.",
                hint="Its log names the CUDA or cuDNN library that is missing; install it, or use device 'cpu'.",
            )
        log.warning("%s is offered but does not start; '%s' runs on %s", wanted, path.name, running)
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
