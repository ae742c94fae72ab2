"""Trainings in processes of their own, forked from one that holds PyTorch and VGG-19: no start costs seconds.

A program, not a module of pytest's: ``python forked_training.py kill|workers CONTENT OUTPUT``. A process that has used
PyTorch's threads cannot be forked, and pytest's own has.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

torch.set_num_threads(1)

from scenes import strokes  # noqa: E402 - one thread, before anything could start more

from shared import weights  # noqa: E402
from shared.images import to_tensor  # noqa: E402
from training import checkpoints, style_trainer  # noqa: E402
from training.content_pictures import ContentPictures, list_pictures  # noqa: E402
from training.style_trainer import TrainingSettings, TrainingStep, train_style  # noqa: E402
from training.workers import Workers  # noqa: E402

CROP = 32
STEPS = 60
CHECKPOINT_EVERY = 2
KILLS = 20


def train(
    content: Path, run: Path, *, steps: int, batch: int = 1, accumulate: int = 1, on_step: Callable[[], object] = bool
) -> torch.nn.Module:
    """A training of the quarter width with everything on; its losses go to ``RUN.jsonl``, a line a step."""
    paths = list_pictures(content)
    settings = TrainingSettings(
        width="quarter", steps=steps, batch=batch, crop=CROP, accumulate=accumulate, learning_rate=0.01, ema=0.9,
        target="random", precision="float32",
    )  # fmt: skip
    trace = os.open(run.with_suffix(".jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record(step: TrainingStep) -> None:
        os.write(trace, f"{json.dumps([step.step, step.losses])}\n".encode())
        on_step()

    return train_style(
        [to_tensor(strokes(40, 40, seed=seed)) for seed in range(3)],
        ContentPictures(paths[:-1], crop=CROP, batch=batch),
        ContentPictures(paths[-1:], crop=CROP, batch=1),
        VGG19,
        settings,
        run,
        device="cpu",
        checkpoint_every=CHECKPOINT_EVERY,
        validate_every=5,
        on_step=record,
    ).network


def fork(function: Callable[[], object]) -> int:
    """The id of a process that runs ``function``."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(*processes: int) -> None:
    for process in processes:
        _, status = os.waitpid(process, 0)
        assert status == 0, f"a process ended with {status}"


# --- killed at any moment ------------------------------------------------------------------------------------------


def kill(content: Path, output: Path) -> None:
    """Kill a training :data:`KILLS` times, then let it end; and train the same without."""
    rng = random.Random(0)
    moments = ["any"] * 8 + ["writing"] * 6 + ["renamed"] * 6
    rng.shuffle(moments)
    found = []
    for moment in moments:
        found.append(live(content, output / "killed", moment, rng))
    finish(fork(lambda: train(content, output / "killed", steps=STEPS)))
    finish(fork(lambda: train(content, output / "whole", steps=STEPS)))
    (output / "kills.json").write_text(json.dumps(found))


def live(content: Path, run: Path, moment: str, rng: random.Random) -> dict[str, object]:
    """One life of a training, ended by SIGKILL, and what lies in its folder after.

    Args:
        moment: ``any``: some time after some step, by the clock; ``writing``: with a checkpoint's bytes in a file that
            has not its name yet; ``renamed``: with the latest checkpoint become the previous one, and no latest.
    """
    reader, writer = os.pipe()
    signs, delay = (rng.randrange(4), rng.uniform(0, 0.2)) if moment == "any" else (1, 0.0)
    until = rng.randrange(2)  # saves that go well before

    def give_sign() -> None:
        os.write(writer, b".")

    def stop(original: Callable[..., object]) -> Callable[..., object]:
        saves = []

        def stopped(*arguments: object) -> object:
            saves.append(moment)
            if len(saves) > until:
                give_sign()
                time.sleep(60)
            return original(*arguments)

        return stopped

    def body() -> None:
        if moment == "writing":
            os.fsync = stop(os.fsync)
        if moment == "renamed":
            checkpoints.write_atomically = stop(checkpoints.write_atomically)
        train(content, run, steps=STEPS, on_step=give_sign if moment == "any" else bool)

    process = fork(body)
    os.close(writer)
    for _ in range(signs):
        assert os.read(reader, 1), "the training ended before it could be killed"
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(reader)
    return {
        "moment": moment,
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "files": sorted(path.name for path in run.glob("*")) if run.is_dir() else [],
    }


# --- several at once -----------------------------------------------------------------------------------------------


def work(content: Path, output: Path) -> None:
    """Train by two processes, and by one that sees the batches of both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def worker(rank: int, accumulate: int, name: str) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        saved, original = [], style_trainer.save_checkpoint
        style_trainer.save_checkpoint = lambda *a: saved.append(a) or original(*a)
        network = train(content, output / f"{name}{rank}" / "run", steps=4, accumulate=accumulate)
        torch.save(network.state_dict(), output / f"{name}{rank}" / "network.pt")
        (output / f"{name}{rank}" / "saves.json").write_text(str(len(saved)))
        Workers.current().leave()

    def single(name: str, batch: int) -> None:
        network = train(content, output / name / "run", steps=4, batch=batch)
        torch.save(network.state_dict(), output / name / "network.pt")

    for name in ("two0", "two1", "four0", "four1", "single2", "single4", "single1"):
        (output / name).mkdir()
    for name, accumulate in (("two", 1), ("four", 2)):
        finish(*(fork(lambda r=rank, a=accumulate, n=name: worker(r, a, n)) for rank in range(2)))
    finish(*(fork(lambda b=batch: single(f"single{b}", b)) for batch in (1, 2, 4)))


if __name__ == "__main__":
    VGG19 = weights.load("vgg19")
    scenario, content, output = sys.argv[1], *map(Path, sys.argv[2:])
    {"kill": kill, "workers": work}[scenario](content, output)
