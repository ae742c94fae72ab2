"""Which device runs the tensors, and whether reduced precision pays on it."""

from __future__ import annotations

import ctypes
import os

import torch

from shared.errors import EngineUnavailable, InvalidInput

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` takes a GPU where there is one.

    Raises:
        InvalidInput: ``name`` is not one of :data:`DEVICES`.
        EngineUnavailable: ``cuda`` was asked for and PyTorch sees no GPU. There is no silent fallback.
    """
    if name not in DEVICES:
        raise InvalidInput(f"device is '{name}', expected one of {', '.join(DEVICES)}.", field="device")
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable(
            f"device 'cuda' was asked for, but PyTorch sees no CUDA GPU: {_why_no_cuda()}.",
            hint="Install a CUDA build of torch and the GPU's driver, or use device 'cpu'.",
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def bound_gpu_memory(device: torch.device, most: int | None) -> None:
    """Let PyTorch's allocator in this process take at most ``most`` bytes of a GPU.

    On a CPU, and with None, nothing happens.
    """
    if device.type == "cuda" and most is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)


def pick_dtype(precision: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """The floating-point type for convolutions; ``auto`` takes bfloat16 exactly where the hardware multiplies it.

    Raises:
        InvalidInput: ``precision`` is not one of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision is '{precision}', expected one of {', '.join(PRECISIONS)}.", field="precision")
    if precision == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(torch.device(device)) else torch.float32
    return getattr(torch, precision)


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"the driver's library cannot be loaded: {error}"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty and hides every GPU"
    return f"its driver has none that torch {torch.__version__}, made for CUDA {torch.version.cuda}, can use"


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # These two probes are private in PyTorch; without them fp32 is the safe answer.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory instead of handing it back to the system at once.

    Every step of an optimisation or a training frees and asks for the same large tensors. With glibc's defaults each
    is mapped and zeroed anew by the kernel: a fifth of the step's time on a two-core machine. Does nothing elsewhere
    than on glibc. For processes that optimise or train; called by programs, never on import.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1)):
        libc.mallopt(option, value)
