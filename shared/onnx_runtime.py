"""ONNX Runtime sessions: which provider runs them, with how many threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnxruntime

from shared.errors import EngineUnavailable, InvalidInput, ModelRefused

log = logging.getLogger(__name__)

_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
"""The first is the one that is wanted; the others run the operators that it lacks."""


def open_session(
    model: Path | bytes,
    *,
    device: str = "auto",
    threads: int | None = None,
    name: str = "",
    gpu_memory: int | None = None,
) -> onnxruntime.InferenceSession:
    """A session for the network in a file, or in its bytes, on ``device``: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.

    Args:
        threads: of one operator; every processor that there is where not given.
        gpu_memory: most bytes that the session's arena takes of a GPU; as many as it likes where not given.

    Raises:
        EngineUnavailable: a GPU was asked for and ONNX Runtime does not run the session there. ONNX Runtime itself
            would fall back to the CPU without a word.
        ModelRefused: the file is not a network that ONNX Runtime can load.
    """
    if device not in ("auto", *_PROVIDERS):
        raise InvalidInput(f"device is '{device}', expected auto, cpu or cuda.", field="device")
    name = name or (f"'{model.name}'" if isinstance(model, Path) else "the network")
    available = onnxruntime.get_available_providers()
    wanted, *others = _PROVIDERS[device if device != "auto" else "cuda" if gpu_present() else "cpu"]
    on_gpu = wanted != "CPUExecutionProvider"
    if wanted not in available:
        raise EngineUnavailable(
            f"{wanted} was asked for, but this ONNX Runtime offers only {', '.join(available)}.",
            hint="Install onnxruntime-gpu, or use device 'cpu'.",
        )
    if on_gpu:
        _preload_cuda()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.log_severity_level = 3
    # Growing by what is asked for, not by doubling, lets the bound be used to its end.
    bound = {"gpu_mem_limit": gpu_memory, "arena_extend_strategy": "kSameAsRequested"} if gpu_memory else {}
    providers = [(each, bound if each == "CUDAExecutionProvider" else {}) for each in (wanted, *others)]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception.
        raise ModelRefused(f"ONNX Runtime cannot load {name}: {error}", hint="Export the model again.") from error
    running = session.get_providers()[0]
    if running != wanted:
        missing = _missing_cuda_libraries() if on_gpu else ()
        named = f": {', '.join(missing)} cannot be loaded" if missing else ""
        if device != "auto":
            raise EngineUnavailable(
                f"{wanted} was asked for, but ONNX Runtime runs {name} on {running}{named}.",
                hint="Install what is missing (CUDA, cuDNN, the driver), or use device 'cpu'.",
            )
        log.warning("%s is offered but does not start; %s runs on %s%s", wanted, name, running, named)
    return session


def available_cpus(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use: its affinity, cut by the quotas of its control groups (version 1 or 2).

    Args:
        root: where control groups are mounted.
        membership: the file that names those of this process.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, membership):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                cpus = min(cpus, max(1, round(int(quota) / int(period))))
    return cpus


def _control_groups(root: Path, membership: Path) -> Iterator[Path]:
    """The folders of the process's control group for processors and of all above it: the tightest quota holds.

    A container may see its own group as the root while the kernel names it by its path on the host, so some of them
    may not exist.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in {root / controllers, root / "cpu"} if controllers else {root}:
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def gpu_present() -> bool:
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
