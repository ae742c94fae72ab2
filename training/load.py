"""A load on a started service: many clients at once, what they wait, what they are answered, what memory it costs.

A closed loop: each client sends its next request when the last one is answered, so the service sets the pace
(Schroeder, Wierman and Harchol-Balter, "Open versus closed", NSDI 2006). Latencies are the clients'.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import psutil

WORDS = (
    "a boat trip on a sunny day", "a woman with a fan", "flowers in a vase", "a stormy sea", "horses at a fair",
    "an old man reading", "a dance in a garden", "the crucifixion", "a wheat field with cypresses", "two cats",
)  # fmt: skip
"""What the clients ask for, in turns, as far as the gallery has it."""

_PERCENTILES = (50, 95, 99)


@dataclass
class Answers:
    """What the requests of one kind were answered.

    Attributes:
        statuses: how many of each status; 0 is a connection that broke.
        seconds: of the requests that were answered with 2xx, in the order of their ends.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Requests that were neither served nor told to come later (429)."""
        return sum(count for status, count in self.statuses.items() if not 200 <= status < 300 and status != 429)

    def percentile(self, percent: float) -> float:
        """Seconds that this share of the served requests took at most; NaN where none was served."""
        return _percentile(self.seconds, percent)

    def plain(self) -> dict[str, object]:
        """As JSON takes it."""
        waits = {f"p{percent}": self.percentile(percent) for percent in _PERCENTILES}
        return {"statuses": {str(k): v for k, v in sorted(self.statuses.items())}, "failed": self.failed} | waits


@dataclass(frozen=True)
class Target:
    """The service that is put under load.

    Attributes:
        slug: of a fast style, for the requests that the fast path serves.
        style: id of a gallery picture, for the jobs.
        size: longer side of the paintings in pixels.
        steps: of each job's optimiser.
        words: what is asked for.
    """

    url: str
    slug: str
    style: str
    size: int = 256
    steps: int = 60
    key: str = ""
    words: tuple[str, ...] = WORDS

    def client(self, connections: int) -> httpx.AsyncClient:
        """A client for so many requests at once."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, timeout=300)


async def fast_requests(target: Target, clients: int, seconds: float, answers: Answers) -> None:
    """So many clients that have the fast path paint, for so long."""
    words = itertools.cycle(target.words)

    async def once(http: httpx.AsyncClient) -> httpx.Response:
        body = {"title": next(words), "style_id": target.slug, "engine": "fast", "size": target.size}
        return await http.post("/v1/text_to_art", json=body)

    await _loop(target, clients, seconds, answers, once)


async def job_requests(target: Target, clients: int, seconds: float, answers: Answers) -> list[str]:
    """So many clients that submit jobs and come back when they are told to; the ids of the accepted ones."""
    accepted: list[str] = []
    words = itertools.cycle(target.words)

    async def once(http: httpx.AsyncClient) -> httpx.Response:
        body = {"title": next(words), "style_id": target.style, "engine": "optimize"}
        body |= {"size": target.size, "steps": target.steps, "seed": random.randrange(2**31)}
        answer = await http.post("/v1/text_to_art", json=body, headers={"Prefer": "respond-async"})
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
        return answer

    await _loop(target, clients, seconds, answers, once)
    return accepted


async def mixed(target: Target, clients: int, seconds: float) -> tuple[dict[str, Answers], list[str]]:
    """Three clients of the fast path to one that submits jobs, for so long; the answers, and the accepted jobs."""
    fast, jobs = Answers(), Answers()
    submitting = max(1, clients // 4)
    _, accepted = await asyncio.gather(
        fast_requests(target, clients - submitting, seconds, fast), job_requests(target, submitting, seconds, jobs)
    )
    return {"fast": fast, "jobs": jobs}, accepted


async def beside_a_full_queue(target: Target, clients: int, seconds: float) -> tuple[dict[str, Answers], list[str]]:
    """The fast path with an empty queue of jobs, and then with one that is kept full."""
    empty, full, jobs = Answers(), Answers(), Answers()
    await fast_requests(target, clients, seconds, empty)
    filling = asyncio.create_task(job_requests(target, 1, seconds + 5, jobs))
    await asyncio.sleep(5)
    await fast_requests(target, clients, seconds, full)
    return {"empty queue": empty, "full queue": full}, await filling


async def cancel(target: Target, jobs: Sequence[str]) -> Counter[str]:
    """Cancel jobs, and say how they stand: how many of each state."""
    async with target.client(8) as http:
        answers = await asyncio.gather(*(http.delete(f"/v1/jobs/{id}") for id in jobs))
    return Counter(answer.json().get("state", str(answer.status_code)) for answer in answers)


async def choose(url: str, *, size: int, steps: int, key: str = "") -> Target:
    """A target with the service's first fast style, its first find as the jobs' style, and words that find something.

    Raises:
        RuntimeError: none of :data:`WORDS` finds anything.
    """
    async with Target(url, "", "", key=key).client(1) as http:
        styles = (await http.get("/v1/styles")).raise_for_status().json()
        found = {words: await http.post("/v1/retrieve/content", json={"title": words, "k": 1}) for words in WORDS}
    found = {words: answer.json()[0]["id"] for words, answer in found.items() if answer.is_success}
    if not found:
        raise RuntimeError("its gallery has nothing of what would be asked for")
    return Target(url, styles[0]["slug"], next(iter(found.values())), size, steps, key, tuple(found))


async def steady(
    target: Target,
    seconds: float,
    per_second: float,
    answers: Answers,
    memory: list[tuple[float, int]],
    process: psutil.Process | None,
    on_second: Callable[[int], None],
) -> None:
    """An open load of so many fast requests a second, with the resident memory of a process and its children.

    Args:
        memory: seconds since the start and bytes are appended, about every ten seconds.
        on_second: called with the seconds that have passed.
    """
    words, began, running = itertools.cycle(target.words), time.monotonic(), set()
    async with target.client(64) as http:

        async def once() -> None:
            body = {"title": next(words), "style_id": target.slug, "engine": "fast", "size": target.size}
            await _timed(lambda: http.post("/v1/text_to_art", json=body), answers)

        for number in range(math.ceil(seconds * per_second)):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            running.add(task := asyncio.create_task(once()))
            task.add_done_callback(running.discard)
            passed = time.monotonic() - began
            on_second(int(passed))
            if process is not None and (not memory or passed - memory[-1][0] >= 10):
                memory.append((passed, resident(process)))
        await asyncio.gather(*running)


def resident(process: psutil.Process) -> int:
    """Bytes of memory that a process and its children hold and share with nobody, as far as they can be read."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().uss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def drift(memory: Sequence[tuple[float, int]]) -> float:
    """Growth of memory: the median of the last fifth over that of the second one, less 1. The first warms up."""
    fifth = max(1, len(memory) // 5)
    before = _percentile([size for _, size in memory[fifth : 2 * fifth] or memory[:1]], 50)
    return _percentile([size for _, size in memory[-fifth:]], 50) / before - 1


async def _loop(
    target: Target,
    clients: int,
    seconds: float,
    answers: Answers,
    once: Callable[[httpx.AsyncClient], object],
) -> None:
    until = time.monotonic() + seconds
    async with target.client(clients) as http:

        async def client() -> None:
            while time.monotonic() < until:
                answer = await _timed(lambda: once(http), answers)
                if answer is None:
                    await asyncio.sleep(0.5)
                elif answer.status_code == 429:
                    # As it is told, but not longer than the measurement lasts.
                    pause = float(answer.headers.get("retry-after", 1))
                    await asyncio.sleep(max(0.0, min(pause, until - time.monotonic())))

        await asyncio.gather(*(client() for _ in range(clients)))


async def _timed(request: Callable[[], object], answers: Answers) -> httpx.Response | None:
    began = time.monotonic()
    try:
        answer = await request()
    except httpx.HTTPError:
        answers.statuses[0] += 1
        return None
    answers.statuses[answer.status_code] += 1
    if answer.is_success:
        answers.seconds.append(time.monotonic() - began)
    return answer


def _percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan
