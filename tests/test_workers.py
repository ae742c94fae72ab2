"""Trainings in several processes: killed ones go on as if nothing had happened, two at once are one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from scenes import strokes, write_hills
from torch import nn

from shared.fast_models import read_card
from training.checkpoints import LATEST, PREVIOUS, load_checkpoint
from training.workers import Workers

ROOT = Path(__file__).parent.parent
# One thread: what is compared bit for bit is computed in one order.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}


def run(*command: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def forked_training(scenario: str, folder: Path) -> Path:
    write_hills(folder / "content", 7, width=48, height=40)
    (folder / "output").mkdir()
    run(Path(__file__).with_name("forked_training.py"), scenario, folder / "content", folder / "output")
    return folder / "output"


def losses(trace: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and losses in the order in which they were made."""
    return [tuple(json.loads(line)) for line in trace.read_text().splitlines()]


# --- one process ---------------------------------------------------------------------------------------------------


def test_alone_there_is_nothing_to_agree_on(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    workers = Workers.current()
    assert (workers.rank, workers.count, workers.first) == (0, 1, True)
    assert workers.mean(3.25, torch.device("cpu")) == 3.25
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad = torch.arange(3.0)
    workers.average_gradients(parameters)
    assert torch.equal(parameters[0].grad, torch.arange(3.0)) and parameters[1].grad is None
    assert workers.device(torch.device("cuda")) == torch.device("cuda")
    workers.leave()


def test_the_only_worker_of_torchrun_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Workers.current() == Workers()


def test_each_worker_has_its_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    workers = Workers(rank=7, count=8)
    assert not workers.first
    assert workers.device(torch.device("cuda")) == torch.device("cuda", 3)
    assert workers.device(torch.device("cpu")) == torch.device("cpu")


# --- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_twenty_times_a_training_ends_as_if_it_had_not_been(tmp_path, vgg19_weights):
    output = forked_training("kill", tmp_path)
    kills = json.loads((output / "kills.json").read_text())
    assert Counter(kill["moment"] for kill in kills) == {"any": 8, "writing": 6, "renamed": 6}
    assert all(kill["killed"] for kill in kills)
    for kill in kills:
        # What the moments are named after was seen on the disk.
        if kill["moment"] == "writing":
            assert any(name.endswith(".part") for name in kill["files"]), kill
        if kill["moment"] == "renamed":
            assert LATEST not in kill["files"], kill

    whole, killed = losses(output / "whole.jsonl"), losses(output / "killed.jsonl")
    *steps, last = whole  # after the steps, the last validation
    expected = dict(steps)
    assert list(expected) == list(range(1, 61)) and killed[-1] == last
    assert all(measured == expected[step] for step, measured in killed[:-1]), "no life saw another loss"
    assert {step for step, _ in killed} == set(expected) and len(killed) > len(whole), "some steps were made twice"

    ours, theirs = load_checkpoint(output / "killed"), load_checkpoint(output / "whole")
    assert ours["step"] == theirs["step"] == 60 and ours["history"] == theirs["history"]
    for part in ("network", "average"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])
    assert sorted(path.name for path in (output / "killed").iterdir()) == [PREVIOUS, LATEST], "and no litter"


# --- two at once ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_train_what_one_trains_that_sees_the_batches_of_both(tmp_path, vgg19_weights):
    output = forked_training("workers", tmp_path)

    def vector(name: str) -> torch.Tensor:
        state = torch.load(output / name / "network.pt", weights_only=True)
        return torch.cat([tensor.flatten().double() for tensor in state.values()])

    for workers, single in (("two", "single2"), ("four", "single4")):
        ours, theirs = vector(f"{workers}0"), vector(single)
        assert torch.equal(ours, vector(f"{workers}1")), "the same weights in both, to the bit"
        # Adam's first steps have the sign of the gradient, so rounding shows where that is nearly zero.
        assert (ours - theirs).norm() < 0.15 * (vector("single1") - theirs).norm()
        # Only the first tells and writes.
        assert (output / f"{workers}0" / "run" / LATEST).is_file() and not (output / f"{workers}1" / "run").exists()
        assert len(losses(output / f"{workers}0" / "run.jsonl")) == 5
        assert losses(output / f"{workers}1" / "run.jsonl") == []
        assert (output / f"{workers}0" / "saves.json").read_text() == "3"
        assert (output / f"{workers}1" / "saves.json").read_text() == "0"


@pytest.mark.slow
def test_torchrun_trains_and_exports_one_model(tmp_path, vgg19_weights):
    write_hills(tmp_path / "content", 16)
    strokes(64, 64).save(tmp_path / "style.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = run(
        "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-addr", "127.0.0.1", "--master-port", port,
        "-m", "training", "style", "--style", tmp_path / "style.png", "--content", tmp_path / "content",
        "--name", "strokes", "--output", tmp_path / "models", "--steps", 2, "--crop", 32, "--batch", 1,
        "--width", "quarter", "--style-size", 64, "--device", "cpu", "--precision", "float32",
        "--reference-pairs", 0,
    )  # fmt: skip
    assert result.stdout.count("lienzo serve --models") == 1, "the first one tells"
    card = read_card(tmp_path / "models" / "strokes")
    assert card.training["workers"] == 2 and card.training["steps"] == 2
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".training", "strokes"]
