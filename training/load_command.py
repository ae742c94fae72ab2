"""``lienzo-train bench http`` and ``bench steady``: a load on a started service, with progress and tables."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated

import httpx
import psutil
import torch
import typer
from rich.table import Table

from shared.console import bar, console, explain_errors
from shared.errors import InvalidInput
from training import load
from training.bench_command import JsonOption, parse_seconds, title, write_json

UrlOption = Annotated[str, typer.Option(help="Where the service is.")]
KeyOption = Annotated[str, typer.Option(help="API key, where the service wants one.", envvar="LIENZO_API_KEY")]
SizeOption = Annotated[int, typer.Option(help="Longer side of the paintings in pixels.", min=64, max=4096)]


@explain_errors
def http(
    url: UrlOption = "http://localhost:3000",
    clients: Annotated[int, typer.Option(help="Clients at once.", min=2, max=1000)] = 64,
    seconds: Annotated[float, typer.Option(help="How long each part lasts.", min=1)] = 60,
    few: Annotated[
        int, typer.Option(help="Clients that measure the fast path beside an empty and a full queue.", min=1)
    ] = 2,
    size: SizeOption = 256,
    steps: Annotated[int, typer.Option(help="Steps of each job.", min=1)] = 60,
    key: KeyOption = "",
    json_path: JsonOption = None,
) -> None:
    """Many clients at once on a started service: latencies, answers, and the fast path beside a full queue of jobs.

    Example: lienzo serve & lienzo-train bench http --clients 64 --seconds 60

    Every client sends its next request when the last one is answered. Jobs that are left at the end are cancelled.
    """
    from training.bench import machine

    facts, target = machine(torch.device("cpu")), _target(url, size, steps, key)
    with bar("load", int(3 * seconds + 5)) as update:
        beside, first = asyncio.run(_watched(load.beside_a_full_queue(target, few, seconds), update, 0))
        left = asyncio.run(load.cancel(target, first))
        mixed, second = asyncio.run(_watched(load.mixed(target, clients, seconds), update, int(2 * seconds + 5)))
        left += asyncio.run(load.cancel(target, second))
    table = Table(
        "requests", "served", "told to wait", "failed", "a second", "p50", "p95", "p99",
        title=f"{size} px, {title(facts)}",
    )  # fmt: skip
    names = {f"{name}, {few} clients": answers for name, answers in beside.items()}
    names |= {f"{name}, of {clients} clients": answers for name, answers in mixed.items()}
    for name, answers in names.items():
        _row(table, name, answers, seconds)
    console.print(table)
    ratio = beside["full queue"].percentile(95) / beside["empty queue"].percentile(95)
    console.print(f"p95 of the fast path with a full queue: {ratio:.2f} times that with an empty one")
    console.print("jobs: " + ", ".join(f"{count} {state}" for state, count in sorted(left.items())))
    write_json(
        json_path,
        {
            "machine": facts,
            "clients": clients,
            "seconds": seconds,
            "size": size,
            "answers": {name: answers.plain() for name, answers in names.items()},
            "full_to_empty_p95": ratio,
            "jobs": dict(left),
        },
    )


@explain_errors
def steady(
    url: UrlOption = "http://localhost:3000",
    duration: Annotated[str, typer.Option(help="Like 1h or 10m.")] = "1h",
    rate: Annotated[float, typer.Option(help="Requests a second.", min=0.01)] = 1.0,
    pid: Annotated[
        int | None, typer.Option(help="Process of the service: its memory and its children's is measured.")
    ] = None,
    size: SizeOption = 256,
    key: KeyOption = "",
    json_path: JsonOption = None,
) -> None:
    """A steady load of fast requests on a started service, and whether its memory stays flat.

    Example: lienzo-train bench steady --duration 1h --rate 1 --pid $(pgrep -of 'bentoml serve')
    """
    from training.bench import machine

    seconds = parse_seconds(duration)
    try:
        process = None if pid is None else psutil.Process(pid)
    except psutil.Error as error:
        raise InvalidInput(
            f"there is no process {pid}.", hint="Take the one of `lienzo serve`.", field="pid"
        ) from error
    target = _target(url, size, 1, key)
    answers, memory = load.Answers(), []
    with bar("load", int(seconds)) as update:
        asyncio.run(load.steady(target, seconds, rate, answers, memory, process, update))
    table = Table("requests", "served", "told to wait", "failed", "a second", "p50", "p95", "p99")
    _row(table, f"{rate:g} a second", answers, seconds)
    console.print(table)
    facts = {
        "machine": machine(torch.device("cpu")),
        "seconds": seconds,
        "rate": rate,
        "size": size,
        "answers": answers.plain(),
    }
    if process is not None:
        console.print(
            f"memory: {memory[0][1] / 1e6:.0f} MB at the start, {memory[-1][1] / 1e6:.0f} MB at the end; "
            f"{load.drift(memory):+.1%} from the second fifth of the time to the last"
        )
        facts |= {"memory": memory, "drift": load.drift(memory)}
    write_json(json_path, facts)


def _target(url: str, size: int, steps: int, key: str) -> load.Target:
    try:
        return asyncio.run(load.choose(url, size=size, steps=steps, key=key))
    except (httpx.HTTPError, httpx.InvalidURL, IndexError, KeyError, RuntimeError) as error:
        raise InvalidInput(
            f"no Lienzo service answers at {url}: {error}.", hint="Start one with `lienzo serve`.", field="url"
        ) from error


async def _watched(measured, update, before: int):
    """Move the progress bar on while something is measured."""
    began = time.monotonic()

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            update(before + int(time.monotonic() - began))

    ticking = asyncio.create_task(tick())
    try:
        return await measured
    finally:
        ticking.cancel()


def _row(table: Table, name: str, answers: load.Answers, seconds: float) -> None:
    counts: Mapping[int, int] = answers.statuses
    waits = (f"{1000 * answers.percentile(percent):.0f} ms" for percent in (50, 95, 99))
    served = len(answers.seconds)
    table.add_row(name, str(served), str(counts.get(429, 0)), str(answers.failed), f"{served / seconds:.1f}", *waits)
