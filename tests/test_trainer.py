"""Training learns, survives interruptions bit for bit, and refuses what it cannot go on with."""

from __future__ import annotations

import copy
import dataclasses
import errno
import logging
import os
import pickle
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scenes import strokes, write_hills
from torch import nn

from shared.encoders import Encoder
from shared.errors import InvalidInput
from shared.images import decode, to_tensor
from shared.losses import grid_energy
from shared.optimizer import OptimizerSettings, optimize
from shared.perceptual_loss import LossSettings, PerceptualLoss
from shared.transform_network import TransformNetwork
from training import style_trainer
from training.checkpoints import LATEST, PREVIOUS, load_checkpoint, save_checkpoint
from training.content_pictures import ContentPictures, list_pictures
from training.record import TrainingRecord, contact_sheet
from training.reference import compare_with_reference
from training.style_trainer import (
    TrainingFailed,
    TrainingSettings,
    TrainingStep,
    learning_rate_at,
    train_style,
    trained_weights,
)

CROP = 64


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> tuple[Path, ...]:
    return write_hills(tmp_path_factory.mktemp("content"), 6)


@pytest.fixture(scope="module")
def style() -> torch.Tensor:
    return to_tensor(strokes(80, 64))


@pytest.fixture(scope="module")
def train_in(paths, style, vgg19):
    """``train_style`` on small pictures in a folder; every argument and every setting can be replaced."""

    def run(folder: Path, **changes):
        arguments = {
            "styles": [style],
            "content": ContentPictures(paths[:-1], crop=CROP, batch=1),
            "validation": ContentPictures(paths[-1:], crop=CROP, batch=1),
            "weights": vgg19,
            "run": folder,
            "device": "cpu",
            "validate_every": 1000,
        }
        options = {"width": "quarter", "steps": 6, "batch": 1, "crop": CROP, "precision": "float32"}
        if "batch" in changes:
            arguments["content"] = ContentPictures(paths[:-1], crop=CROP, batch=changes["batch"])
        for name, value in changes.items():
            (arguments if name in style_trainer.train_style.__annotations__ else options)[name] = value
        return train_style(settings=TrainingSettings(**options), **arguments)

    return run


@pytest.fixture
def train(train_in, tmp_path):
    """The same in a folder of the test's own, where it names no other."""
    return partial(train_in, tmp_path / "run")


class Trace(list):
    """Collects steps; raises ``failure`` at step ``fail_at``."""

    def __init__(self, fail_at: int | None = None, failure: type[BaseException] = KeyboardInterrupt):
        super().__init__()
        self.fail_at, self.failure = fail_at, failure

    def __call__(self, step: TrainingStep) -> None:
        self.append(step)
        if step.step == self.fail_at:
            raise self.failure


def same(left: TransformNetwork, right: TransformNetwork) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loss_falls(train):
    trace = Trace()
    result = train(steps=40, validate_every=10, learning_rate=3e-3, on_step=trace)
    totals = [step.losses["total"] for step in trace[:40]]
    assert np.mean(totals[-10:]) < 0.85 * np.mean(totals[:10])
    assert [row["step"] for row in result.history] == [10, 20, 30, 40]
    assert result.history[-1]["total"] < result.history[0]["total"], "also on pictures that it never saw"
    assert result.steps == 40 and result.seconds > 0


def test_a_validation_is_the_loss_on_the_held_out_pictures(train, paths, style, encoder):
    trace = Trace()
    result = train(steps=2, on_step=trace)
    held_out = ContentPictures(paths[-1:], crop=CROP, batch=1).centre_crops()
    loss = PerceptualLoss(encoder)
    with torch.no_grad():
        painted = result.network(held_out)
        expected = loss(painted, loss.content_target(held_out), loss.style_target(style)).values()
    assert result.history == [{"step": 2, **result.history[0]}]
    assert {key: result.history[0][key] for key in expected} == pytest.approx(expected, rel=1e-3)
    last = trace[-1]
    assert result.history[0]["grid"] == pytest.approx(grid_energy(painted).item(), rel=1e-3)
    assert last.progress == 1 and result.history[0] == {"step": 2, **last.validation}
    assert last.samples.shape == (2, 3, CROP, CROP)
    torch.testing.assert_close(last.samples, torch.cat([held_out, painted]), rtol=0, atol=1e-4)


def test_the_weight_of_the_grid_flattens_the_raster(train, tmp_path):
    rasters = [
        train(steps=12, run=tmp_path / str(weight), grid_weight=weight).history[-1]["grid"] for weight in (0, 1e7)
    ]
    assert rasters[1] < 0.7 * rasters[0]


def test_steps_tell_where_the_training_is(train):
    trace = Trace()
    train(steps=4, on_step=trace)
    during = trace[:-1]
    assert [step.step for step in during] == [1, 2, 3, 4]
    assert [step.progress for step in during] == [0, 0.25, 0.5, 0.75]
    assert all(step.steps == 4 and step.validation is None and step.samples is None for step in during)
    for step in during:
        assert step.losses["total"] == pytest.approx(sum(step.losses[term] for term in ("content", "style", "tv")))


def test_the_style_pictures_are_averaged(train, style, encoder, paths):
    """The first step's loss, against the mean of the Gram matrices of two pictures of different sizes."""
    other, trace = to_tensor(strokes(48, 96, seed=9)), Trace()
    train(steps=1, styles=[style, other], on_step=trace)
    loss = PerceptualLoss(encoder)
    mean, left = loss.style_target([style, other]), loss.style_target(style)
    torch.manual_seed(0)
    content = ContentPictures(paths[:-1], crop=CROP, batch=1).batch_at(0)
    with torch.no_grad():
        painted = TransformNetwork("quarter")(content)
        expected = loss(painted, loss.content_target(content), mean).values()
        of_the_first = loss(painted, loss.content_target(content), left).values()
    assert {term: trace[0].losses[term] for term in expected} == pytest.approx(expected, rel=1e-3)
    assert trace[0].losses["style"] != pytest.approx(of_the_first["style"], rel=1e-2)


# --- steps ---------------------------------------------------------------------------------------------------------


class Recorded:
    """Keeps every network's weights after each step, by wrapping what averages them."""

    def __init__(self, monkeypatch):
        self.weights: list[dict[str, torch.Tensor]] = []
        update = style_trainer.AveragedModel.update_parameters

        def recorded(average, network):
            self.weights.append(copy.deepcopy(network.state_dict()))
            update(average, network)

        monkeypatch.setattr(style_trainer.AveragedModel, "update_parameters", recorded)


def test_the_mean_of_the_weights_is_what_is_validated_returned_and_kept(
    train, tmp_path, encoder, paths, style, monkeypatch
):
    recorded = Recorded(monkeypatch)
    result = train(steps=5, ema=0.25, learning_rate=0.02)
    first, *later = recorded.weights
    assert len(later) == 4
    mean = {name: tensor.double() for name, tensor in first.items()}
    for n, weights in enumerate(later, start=1):
        decay = min(0.25, (1 + n) / (10 + n))  # 2/11, 3/12, then 0.25 holds
        mean = {name: decay * tensor + (1 - decay) * weights[name].double() for name, tensor in mean.items()}
    found = result.network.state_dict()
    for name, tensor in mean.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=0, atol=1e-6)
    assert not same(result.network, loaded(later[-1])), "the last weights are others"

    checkpoint = load_checkpoint(tmp_path / "run")
    assert same(loaded(trained_weights(checkpoint)), result.network)
    assert same(loaded(checkpoint["network"]), loaded(later[-1]))

    held_out, loss = ContentPictures(paths[-1:], crop=CROP, batch=1).centre_crops(), PerceptualLoss(encoder)
    with torch.no_grad():
        painted = loaded(found)(held_out)
        total = loss(painted, loss.content_target(held_out), loss.style_target(style)).values()["total"]
    assert result.history[-1]["total"] == pytest.approx(total, rel=1e-4)


def loaded(state: dict[str, torch.Tensor]) -> TransformNetwork:
    network = TransformNetwork("quarter")
    network.load_state_dict(state)
    return network


def test_without_a_mean_the_weights_themselves_are_returned(train, monkeypatch):
    recorded = Recorded(monkeypatch)
    result = train(steps=3, ema=0.0, learning_rate=0.02)
    assert same(result.network, loaded(recorded.weights[-1]))


def test_a_mean_needs_no_memory_of_the_first_weights(train, monkeypatch):
    """After a few steps the weights that training began with count for little, however long the memory is."""
    recorded = Recorded(monkeypatch)
    found = train(steps=6, ema=0.999, learning_rate=0.02).network.state_dict()["enter.conv.weight"]
    first, last = recorded.weights[0]["enter.conv.weight"], recorded.weights[-1]["enter.conv.weight"]
    assert (found - last).norm() < 0.5 * (first - last).norm()


def test_convolutions_are_with_muon_and_the_last_layer_and_vectors_with_adam(train, monkeypatch):
    def members(**settings: object) -> dict[str, set[str]]:
        network = TransformNetwork("quarter")
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        found = style_trainer._optimizers(network, TrainingSettings(width="quarter", **settings))
        return {
            type(optimizer).__name__: {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
            for optimizer in found
        }

    everything = {name for name, _ in TransformNetwork("quarter").named_parameters()}
    both = members()
    convolutions = {name for name in everything if name.endswith("conv.weight")}
    assert both == {"Muon": convolutions, "Adam": everything - convolutions}
    assert len(convolutions) == 15 and {"leave.weight", "leave.bias", "enter.norm.weight"} <= both["Adam"]
    assert members(optimizer="adam") == {"Adam": everything}
    assert members(only_scales=True) == {"Adam": {name for name in everything if ".norm." in name}}

    rates = []
    step = style_trainer.Muon.step
    monkeypatch.setattr(style_trainer.Muon, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    trace = Trace()
    train(steps=3, on_step=trace)
    assert rates == [style_trainer.MUON_RATE * each.learning_rate for each in trace[:3]]


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"only_scales": True}], ids=str)
def test_what_is_not_trained_stays(train, options):
    start = TransformNetwork("quarter").state_dict()
    result = train(steps=2, init=start, **options).network.state_dict()
    moved = {name for name in start if not torch.equal(start[name], result[name])}
    scales = {name for name in start if ".norm." in name}
    assert moved == (scales if "only_scales" in options else start.keys())


def test_gradients_that_are_accumulated_are_those_of_one_batch(train, tmp_path, monkeypatch):
    def gradient_and_losses(name: str, **options: int) -> tuple[torch.Tensor, dict[str, float]]:
        found, step = [], torch.optim.Adam.step

        def recorded(optimizer):
            found.append(torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]))
            return step(optimizer)

        trace = Trace()
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", recorded)
            train(steps=1, run=tmp_path / name, optimizer="adam", on_step=trace, **options)
        (gradient,) = found
        return gradient, trace[0].losses

    whole, losses = gradient_and_losses("whole", batch=2)
    parts, mean = gradient_and_losses("parts", batch=1, accumulate=2)
    single, _ = gradient_and_losses("single", batch=1)
    assert (parts - whole).norm() < 1e-4 * whole.norm()
    assert (single - whole).norm() > 0.1 * whole.norm(), "the second picture counts"
    assert mean == pytest.approx(losses, rel=1e-4)


def test_accumulated_steps_see_crops_that_follow_one_another(train, monkeypatch):
    asked, batches = [], ContentPictures.batches
    monkeypatch.setattr(
        ContentPictures,
        "batches",
        lambda self, first, **options: asked.append(first) or batches(self, first, **options),
    )
    with pytest.raises(RuntimeError):
        train(steps=4, accumulate=3, checkpoint_every=2, on_step=Trace(2, RuntimeError))
    train(steps=4, accumulate=3, checkpoint_every=2)
    assert asked == [0, 6]


def test_a_random_target_is_a_function_of_seed_and_step_and_every_style_is_drawn():
    settings = TrainingSettings(target="random", seed=3, batch=2)

    def drawn(settings: TrainingSettings, part: int = 0) -> list[list[int]]:
        return [style_trainer._draw(settings, 4, step, part) for step in range(60)]

    found = drawn(settings)
    assert found == drawn(settings) == drawn(settings, part=5), "one style for all parts of a step"
    assert all(len(step) == 2 and step[0] == step[1] for step in found)
    counts = np.bincount([step[0] for step in found], minlength=4)
    assert counts.min() > 5, counts
    assert drawn(dataclasses.replace(settings, seed=4)) != found
    assert drawn(dataclasses.replace(settings, target="mean")) is not None


def test_each_step_is_held_against_the_style_that_was_drawn(train, several, encoder, paths, monkeypatch):
    drawn = [2, 0, 1]
    monkeypatch.setattr(style_trainer, "_draw", lambda settings, count, step, part: [drawn[step]] * settings.batch)
    recorded, trace = Recorded(monkeypatch), Trace()
    train(steps=3, styles=several, target="random", on_step=trace)
    loss = PerceptualLoss(encoder)
    torch.manual_seed(0)
    networks = [TransformNetwork("quarter"), *(loaded(weights) for weights in recorded.weights)]
    for step, network in zip(trace[:3], networks, strict=False):
        content = ContentPictures(paths[:-1], crop=CROP, batch=1).batch_at(step.step - 1)
        with torch.no_grad():
            expected = [
                loss(network(content), loss.content_target(content), loss.style_target(each)).values()["style"]
                for each in several
            ]
        assert step.losses["style"] == pytest.approx(expected[drawn[step.step - 1]], rel=1e-3)
        assert len({round(value, 2) for value in expected}) == 3, "or nothing could be told"


def test_a_training_ends_when_validations_bring_nothing_new(train, monkeypatch):
    totals = iter([5.0, 4.0, 4.5, 3.9999, 4.2, 4.1, 1.0])

    def validated(*arguments):
        return {"content": 0.0, "style": 0.0, "tv": 0.0, "total": next(totals), "grid": 0.0}, torch.zeros(2, 3, 8, 8)

    monkeypatch.setattr(style_trainer, "_validate", validated)
    result = train(steps=20, validate_every=1, patience=3)
    # 3.9999 is not lower than 4.0 by a thousandth: the third validation in vain is that of step 5.
    assert result.stopped_early and result.steps == 5
    assert [row["total"] for row in result.history] == [5.0, 4.0, 4.5, 3.9999, 4.2]
    again = train(steps=20, validate_every=1, patience=3)
    assert again.stopped_early and again.steps == 5 and again.history == result.history, "it is not taken up again"


def test_without_patience_a_training_goes_on(train, monkeypatch):
    rising = iter(range(1, 100))
    monkeypatch.setattr(
        style_trainer, "_validate", lambda *a: ({"total": float(next(rising)), "grid": 0.0}, torch.zeros(2, 3, 8, 8))
    )
    result = train(steps=5, validate_every=1, patience=0)
    assert result.steps == 5 and not result.stopped_early
    # A training that comes to its end was not stopped early.
    assert not train(steps=5, validate_every=1, patience=0).stopped_early


# --- interruptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "checkpoint_every", "resumed_at"),
    [(KeyboardInterrupt, 100, 3), (RuntimeError, 2, 2), (RuntimeError, 100, 0)],
    ids=["interrupted", "killed after a checkpoint", "killed before any"],
)
def test_resumed_training_equals_uninterrupted_training(train, tmp_path, failure, checkpoint_every, resumed_at):
    options = {"steps": 6, "validate_every": 2, "checkpoint_every": checkpoint_every, "batch": 2}
    whole, broken, resumed = Trace(), Trace(3, failure), Trace()
    expected = train(run=tmp_path / "whole", on_step=whole, **options)
    with pytest.raises(failure):
        train(run=tmp_path / "broken", on_step=broken, **options)
    result = train(run=tmp_path / "broken", on_step=resumed, **options)
    assert [step.step for step in resumed] == [*range(resumed_at + 1, 7), 6]
    assert same(result.network, expected.network)
    assert result.history == expected.history
    assert result.steps == expected.steps == 6
    for ours, theirs in zip(resumed, whole[resumed_at:], strict=True):
        assert (ours.step, ours.losses, ours.learning_rate) == (theirs.step, theirs.losses, theirs.learning_rate)


EVERYTHING = {
    "optimizer": "muon", "ema": 0.9, "accumulate": 2, "target": "random", "learning_rate": 0.01,
    "validate_every": 2, "checkpoint_every": 100, "steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def several(style) -> list[torch.Tensor]:
    return [style, to_tensor(strokes(48, 96, seed=9)), to_tensor(strokes(64, 64, seed=5))]


@pytest.fixture(scope="module")
def uninterrupted(train_in, several, tmp_path_factory):
    """The result, the steps and the last checkpoint of a training with everything on."""
    folder, trace = tmp_path_factory.mktemp("whole"), Trace()
    result = train_in(folder, styles=several, on_step=trace, **EVERYTHING)
    return result, trace, load_checkpoint(folder)


def test_resumed_with_everything_on_it_goes_on_bit_for_bit(train, several, tmp_path, uninterrupted):
    expected, whole, checkpoint = uninterrupted
    broken, resumed = Trace(3), Trace()
    with pytest.raises(KeyboardInterrupt):
        train(styles=several, on_step=broken, **EVERYTHING)
    result = train(styles=several, on_step=resumed, **EVERYTHING)
    assert [(step.step, step.losses) for step in [*broken, *resumed]] == [(step.step, step.losses) for step in whole]
    assert same(result.network, expected.network) and result.history == expected.history
    last = load_checkpoint(tmp_path / "run")["network"]
    assert same(loaded(last), loaded(checkpoint["network"])), "the weights under the mean too"


@pytest.mark.parametrize("place", ["Muon.step", "_validate", "AveragedModel.update_parameters", "_paint"])
def test_ctrl_c_at_any_moment_of_a_step_leaves_a_whole_step(
    train, several, tmp_path, uninterrupted, monkeypatch, request, place
):
    """The signal comes in the middle of what changes the state; what is saved is a state between two steps."""
    expected, *_ = uninterrupted
    owner = style_trainer
    *path, name = place.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(place)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    # A shell starts what it runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(styles=several, **EVERYTHING)
    assert signal.getsignal(signal.SIGINT) is handler
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == {"_paint": 0, "_validate": 4}.get(place, 2)
    assert [row["step"] for row in state["history"]] == list(range(2, state["step"] + 1, 2))
    result = train(styles=several, **EVERYTHING)
    assert same(result.network, expected.network) and result.history == expected.history


def test_ctrl_c_in_the_last_validation_loses_nothing(train, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(style_trainer, "_validate", interrupted)
        train(steps=3)
    assert load_checkpoint(tmp_path / "run")["step"] == 3


def test_a_finished_training_is_not_trained_again(train):
    first = train(steps=2)
    trace = Trace()
    again = train(steps=2, on_step=trace)
    assert same(first.network, again.network)
    assert [step.step for step in trace] == [2] and again.history == first.history


def test_the_time_before_an_interruption_counts(train, monkeypatch):
    """By a clock that goes on by one second whenever it is read."""
    clock = iter(range(10**9))
    monkeypatch.setattr(style_trainer.time, "monotonic", lambda: float(next(clock)))
    trace = Trace()
    first = train(steps=10_000, time_budget=8.0, on_step=trace)
    assert 1 < first.steps < 10
    shares = [step.progress for step in trace[:-1]]
    assert shares == sorted(shares) and shares[-1] < 1, "time bounds the progress"
    assert first.seconds >= 8
    again = train(steps=10_000, time_budget=8.0)
    assert again.steps == first.steps, "nothing is left of the budget"
    longer = train(steps=10_000, time_budget=16.0)
    assert first.steps < longer.steps < 2 * first.steps + 4


def test_the_learning_rate_follows_the_time_where_time_is_short(train, monkeypatch):
    clock = iter(range(10**9))
    monkeypatch.setattr(style_trainer.time, "monotonic", lambda: float(next(clock)))
    trace = Trace()
    train(steps=10_000, time_budget=20.0, on_step=trace, learning_rate=0.01)
    rates = [step.learning_rate for step in trace[:-1]]
    assert max(rates) <= 0.01
    assert rates[-1] < 0.1 * max(rates), "it ends low, though 10,000 steps are far away"


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 7}, "steps: 2 then, 7 now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"width": "half"}, "width: quarter then, half now"),
        ({"learning_rate": 0.5}, "learning_rate: 0.001 then, 0.5 now"),
        ({"loss": LossSettings(style_weight=6)}, "'style_weight': 6"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_with_the_difference(train, tmp_path, change, named):
    first = train(steps=2)
    with pytest.raises(InvalidInput, match="made with other settings") as refusal:
        train(**{"steps": 2} | change)
    assert named in refusal.value.message
    assert str(tmp_path / "run") in refusal.value.message
    assert "delete the folder" in refusal.value.hint
    assert same(train(steps=2).network, first.network), "the checkpoint is as it was"


def test_another_style_picture_is_refused(train):
    """Or the network of one picture would be exported under the name of another."""
    train(steps=1)
    with pytest.raises(InvalidInput, match="made with other style pictures") as refusal:
        train(steps=1, styles=[to_tensor(strokes(80, 64, seed=5))])
    assert refusal.value.field == "style"


def test_there_is_always_a_whole_checkpoint(train, tmp_path):
    run = tmp_path / "run"
    expected = train(steps=3, checkpoint_every=1)
    assert {path.name for path in run.iterdir()} == {LATEST, PREVIOUS}
    whole = (run / LATEST).read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (run / LATEST).write_bytes(whole[:length])
        state = load_checkpoint(run)
        assert state["step"] == 3, "the previous one, saved after the last step and before the end"
    (run / LATEST).write_bytes(whole[: len(whole) // 2])
    assert same(train(steps=3, checkpoint_every=1).network, expected.network)


def test_a_truncated_checkpoint_costs_only_the_steps_since_the_previous(train, tmp_path, caplog):
    run = tmp_path / "run"
    expected = train(steps=4, run=tmp_path / "whole")
    with pytest.raises(RuntimeError):
        train(steps=4, checkpoint_every=1, on_step=Trace(3, RuntimeError))
    data = (run / LATEST).read_bytes()
    (run / LATEST).write_bytes(data[: len(data) // 3])
    trace = Trace()
    with caplog.at_level(logging.WARNING):
        result = train(steps=4, on_step=trace)
    assert [step.step for step in trace] == [3, 4, 4]
    assert same(result.network, expected.network)
    assert LATEST in caplog.text


def test_dying_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    """The latest has become the previous, and the disk is full before the new one is written."""
    save_checkpoint(tmp_path, {"step": 1})

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoints.write_atomically", full)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path, {"step": 2})
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_a_full_disk_leaves_the_checkpoint_before(train, tmp_path, monkeypatch):
    expected = train(steps=4, run=tmp_path / "whole")
    calls, fsync = [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):  # the second attempt finds the disk full at once
            with pytest.raises(OSError, match="No space left on device"):
                train(steps=4, checkpoint_every=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [PREVIOUS]
    assert load_checkpoint(tmp_path / "run")["step"] == 1
    assert same(train(steps=4).network, expected.network)


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / ".0123.part").write_bytes(b"half")
    (tmp_path / "losses.png").write_bytes(b"a picture")
    save_checkpoint(tmp_path, {"step": 2})
    assert {path.name for path in tmp_path.iterdir()} == {LATEST, PREVIOUS, "losses.png"}


@pytest.mark.parametrize("part", ["network", "average"])
def test_a_checkpoint_of_another_architecture_is_refused(train, tmp_path, part):
    """The settings agree, the network does not: the file was altered, or the architecture since it was written."""
    train(steps=1)
    state = load_checkpoint(tmp_path / "run")
    del state[part][next(name for name in state[part] if name.endswith("up2.conv.weight"))]
    save_checkpoint(tmp_path / "run", state)
    with pytest.raises(InvalidInput, match="checkpoint has another architecture than a 'quarter'"):
        train(steps=1)


def test_a_checkpoint_of_an_older_version_is_refused(train, tmp_path):
    train(steps=1)
    state = load_checkpoint(tmp_path / "run")
    del state["average"], state["settings"]["accumulate"]
    save_checkpoint(tmp_path / "run", state)
    with pytest.raises(InvalidInput, match="accumulate: None then, 1 now"):
        train(steps=1)
    with pytest.raises(InvalidInput, match="made by an older version") as refusal:
        trained_weights(state)
    assert refusal.value.field == "init"


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "missing") is None


class Payload:
    """Writes a file when it is unpickled without care."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "ran"))


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, saved_by):
    target, run = tmp_path / "ran", tmp_path / "run"
    run.mkdir()
    if saved_by == "torch":
        torch.save({"step": 1, "network": Payload(target)}, run / LATEST)
    else:
        (run / LATEST).write_bytes(pickle.dumps({"step": 1, "network": Payload(target)}, protocol=2))
    with pytest.raises(InvalidInput, match="no checkpoint in") as refusal:
        load_checkpoint(run)
    assert not target.exists()
    assert "Delete the folder" in refusal.value.hint
    torch.load(run / LATEST, weights_only=False) if saved_by == "torch" else pickle.loads((run / LATEST).read_bytes())  # noqa: S301
    assert target.read_text() == "ran", "the payload would have run"


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00", b"(lp0\n"]))
def test_garbage_is_refused_and_nothing_else_happens(tmp_path_factory, data, beginning):
    run = tmp_path_factory.mktemp("run")
    (run / LATEST).write_bytes(beginning + data)
    with pytest.raises(InvalidInput, match="no checkpoint in"):
        load_checkpoint(run)


# --- failures ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_checkpoint(train, tmp_path):
    with pytest.raises(TrainingFailed, match="not a number at step 1") as failure:
        train(loss=LossSettings(style_weight=3e38), checkpoint_every=1)
    assert failure.value.code == "training_failed" and "--learning-rate" in failure.value.hint
    assert load_checkpoint(tmp_path / "run") is None, "a broken network is not kept"


def test_the_network_starts_from_init(train, tmp_path):
    first = train(steps=3, run=tmp_path / "first")
    trace, fresh = Trace(), Trace()
    train(steps=1, run=tmp_path / "second", init=first.network.state_dict(), on_step=trace)
    train(steps=1, run=tmp_path / "third", on_step=fresh)
    # Step 1 of either sees the same crop.
    assert trace[0].losses["total"] < fresh[0].losses["total"]


def test_an_init_of_another_width_is_refused(train):
    with pytest.raises(InvalidInput, match="--init has another architecture than a 'quarter'") as refusal:
        train(init=TransformNetwork("half").state_dict())
    assert refusal.value.field == "width"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("crop", 31),
        ("style_size", 31),
        ("learning_rate", 0.0),
        ("learning_rate", 1.0),
        ("learning_rate", float("nan")),
        ("grid_weight", -1.0),
        ("grid_weight", float("nan")),
        ("width", "double"),
        ("precision", "float16"),
        ("accumulate", 0),
        ("patience", -1),
        ("seed", -1),
        ("ema", -0.1),
        ("ema", 1.0),
        ("ema", float("nan")),
        ("optimizer", "sgd"),
        ("target", "median"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InvalidInput, match=f"^{field} is ") as refusal:
        TrainingSettings(**{field: value})
    assert refusal.value.field == field and "expected" in refusal.value.message


@given(st.floats(0, 1), st.integers(0, 10_000))
def test_the_learning_rate_is_a_share_that_falls_after_the_middle(progress, step):
    share = learning_rate_at(progress, step)
    assert 0 <= share <= 1
    assert learning_rate_at(progress, step + 1) >= share, "the warm-up rises"
    assert learning_rate_at(min(1, progress + 0.1), step) <= share, "the decay falls"


def test_the_learning_rate_at_known_places():
    assert learning_rate_at(0, 0) == 1 / 20
    assert learning_rate_at(0.5, 100) == 1
    assert learning_rate_at(0.75, 100) == pytest.approx(0.5)
    assert learning_rate_at(1, 100) == pytest.approx(0)


# --- content pictures ----------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(paths):
    def batch(step: int, seed: int = 3) -> torch.Tensor:
        return ContentPictures(paths, crop=32, batch=2, seed=seed).batch_at(step)

    pictures = ContentPictures(paths, crop=32, batch=2, seed=3)
    in_order = [pictures.batch_at(step) for step in range(8)]
    for step in (7, 0, 3):
        assert torch.equal(batch(step), in_order[step]), "whatever was asked for before"
    assert not torch.equal(batch(0, seed=4), in_order[0])
    assert not any(torch.equal(left, right) for left, right in pairwise(in_order))
    for crops in in_order:
        assert crops.shape == (2, 3, 32, 32) and crops.dtype == torch.float32
        assert crops.min() >= 0 and crops.max() <= 1


@pytest.mark.parametrize(("stride", "offset"), [(1, 0), (2, 0), (2, 1)])
def test_batches_read_ahead_are_those_of_the_steps(paths, stride, offset):
    batches = ContentPictures(paths, crop=32, batch=1).batches(5, stride=stride, offset=offset)
    for step in range(5, 15):
        expected = ContentPictures(paths, crop=32, batch=1).batch_at(step * stride + offset)
        assert torch.equal(next(batches), expected)
    batches.close()


def flat_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 50)) -> tuple[Path, ...]:
    """Pictures of one shade each: a crop tells which picture it is from."""
    paths = tuple(folder / f"{i}.png" for i in range(count))
    for i, path in enumerate(paths):
        Image.new("RGB", size, (20 * i, 20 * i, 20 * i)).save(path)
    return paths


def shades(pictures: ContentPictures, steps: range) -> list[int]:
    return [round(float(crop.mean()) * 255) // 20 for step in steps for crop in pictures.batch_at(step)]


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(tmp_path):
    pictures = ContentPictures(flat_pictures(tmp_path, 9), crop=32, batch=3)
    epochs = [shades(pictures, range(first, first + 3)) for first in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_crops_vary_in_place_size_and_side(tmp_path):
    """A ramp from left to right: its values tell where a crop lies, how wide it is, and whether it is flipped."""
    ramp = np.broadcast_to(np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    Image.fromarray(ramp.copy()).save(tmp_path / "ramp.png")
    pictures = ContentPictures((tmp_path / "ramp.png",), crop=32, batch=1)
    rows = [pictures.batch_at(step)[0, 0, 0] for step in range(60)]
    flipped = [bool(row[0] > row[-1]) for row in rows]
    widths = [float((row[0] - row[-1]).abs()) for row in rows]
    lefts = [float(min(row[0], row[-1])) for row in rows]
    assert 15 < sum(flipped) < 45
    assert 0.35 < min(widths) < 0.5 and 0.9 < max(widths) <= 1
    assert max(lefts) - min(lefts) > 0.3


@pytest.mark.parametrize("size", [(20, 24), (32, 32), (33, 400), (400, 33)], ids=str)
def test_pictures_smaller_than_the_crop_are_enlarged(tmp_path, size):
    pictures = ContentPictures(flat_pictures(tmp_path, 2, size), crop=32, batch=2)
    assert pictures.batch_at(0).shape == (2, 3, 32, 32)
    assert pictures.centre_crops().shape == (2, 3, 32, 32)
    assert sorted(shades(pictures, range(1))) == [0, 1]


def test_the_centre_crop_is_the_middle(tmp_path):
    array = np.zeros((64, 128, 3), np.uint8)
    array[:, 32:96] = 255
    Image.fromarray(array).save(tmp_path / "middle.png")
    crop = ContentPictures((tmp_path / "middle.png",), crop=64, batch=1).centre_crops()
    assert torch.equal(crop, torch.ones(1, 3, 64, 64))


def test_unreadable_pictures_are_reported_once_and_replaced(tmp_path, caplog):
    paths = flat_pictures(tmp_path, 6)
    paths[2].write_bytes(b"no picture")
    paths[4].write_bytes(paths[4].read_bytes()[:60])
    pictures = ContentPictures(paths, crop=32, batch=2)
    with caplog.at_level(logging.WARNING):
        seen = shades(pictures, range(9))
    assert set(seen) == {0, 1, 3, 5} and len(seen) == 18
    assert sorted(record.args[0].name for record in caplog.records) == ["2.png", "4.png"]
    assert shades(ContentPictures(paths, crop=32, batch=2), range(9)) == seen
    assert ContentPictures(paths, crop=32, batch=1).centre_crops().shape[0] == 4


def test_nothing_but_unreadable_pictures_is_refused(tmp_path, train):
    paths = flat_pictures(tmp_path, 2)
    for path in paths:
        path.write_bytes(b"no picture")
    pictures = ContentPictures(paths, crop=32, batch=1)
    with pytest.raises(InvalidInput, match="none of the content pictures can be read") as refusal:
        pictures.batch_at(0)
    assert refusal.value.field == "content"
    with pytest.raises(InvalidInput, match="none of the validation pictures can be read"):
        pictures.centre_crops()
    with pytest.raises(InvalidInput, match="none of the content pictures can be read"):
        train(content=pictures)


def test_pictures_are_listed_by_name_from_every_folder_below(tmp_path):
    for name in ("b/2.JPG", "a/1.png", "c.webp", "a/deep/er/3.tif", "notes.txt", "d.png/inside.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # A run below the content folder leaves sample sheets; macOS leaves twins of pictures that are none.
    for name in (".training/wave/samples.jpg", "a/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path)]
    assert found == ["a/1.png", "a/deep/er/3.tif", "b/2.JPG", "c.webp", "d.png/inside.jpeg"]


def test_a_hidden_folder_that_was_named_is_read(tmp_path):
    folder = tmp_path / ".cache"
    paths = write_hills(folder, 2)
    assert list_pictures(folder) == paths


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "file.png").touch()
    with pytest.raises(InvalidInput, match="is not a folder"):
        list_pictures(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="has no picture in it or below it") as refusal:
        list_pictures(tmp_path / "empty")
    assert ".jpg" in refusal.value.hint and refusal.value.field == "content"


# --- the record ----------------------------------------------------------------------------------------------------


def test_a_record_holds_curves_a_sheet_and_a_plot(tmp_path):
    losses = {"content": 2.0, "style": 3.0, "tv": 0.5, "total": 5.5, "grid": 1e-4}
    samples = torch.cat([torch.zeros(3, 3, 8, 10), torch.ones(3, 3, 8, 10)])
    with TrainingRecord(tmp_path / "run") as record:
        record.add(TrainingStep(1, 2, losses, 1e-3, 0.5))
        record.add(TrainingStep(2, 2, losses, 1e-3, 1.0, losses, samples))
        plot = record.plot([{"step": 1, **losses}, {"step": 2, **losses}])
    sheet = decode(tmp_path / "run" / "samples.jpg")
    assert sheet.size == (30, 16)
    assert max(sheet.getpixel((15, 3))) < 10 and min(sheet.getpixel((15, 12))) > 245, "pictures above, paintings below"
    assert min(decode(plot).size) > 100

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/total")] == [(1, 5.5), (2, 5.5)]
    assert [(event.step, event.value) for event in events.Scalars("validation/style")] == [(2, 3.0)]
    assert [event.step for event in events.Images("validation")] == [2]


def test_a_record_of_no_step_writes_nothing(tmp_path):
    with TrainingRecord(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_contact_sheet_keeps_pictures_over_their_paintings():
    samples = torch.stack([torch.full((3, 4, 4), shade) for shade in (0.0, 0.2, 0.4, 1.0, 0.8, 0.6)])
    sheet = np.asarray(contact_sheet(samples))
    assert sheet.shape == (8, 12, 3)
    assert sheet[1, [1, 5, 9], 0].tolist() == [0, 51, 102]
    assert sheet[5, [1, 5, 9], 0].tolist() == [255, 204, 153]


# --- the comparison with the reference -----------------------------------------------------------------------------


class Unchanged(nn.Module):
    """A network that paints nothing: its loss is the content picture's own."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures


@pytest.mark.parametrize(("style_weight", "equals"), [(2, 3), (0, None)])
def test_the_comparison_is_with_the_optimiser_from_noise(vgg19, style, paths, style_weight, equals):
    """Where only the content counts, no number of steps is as good as the content picture itself."""
    contents = torch.cat([ContentPictures(paths[i : i + 1], crop=CROP, batch=1).centre_crops() for i in range(2)])
    calls = []
    loss = LossSettings(style_weight=style_weight)
    card = compare_with_reference(
        Unchanged(), contents, [style], vgg19, loss, steps=3, on_step=lambda done, total: calls.append((done, total))
    )
    encoder = Encoder(vgg19)
    judge = PerceptualLoss(encoder, loss)
    target = judge.style_target(style)
    unchanged, optimised = [], []
    for i, content in enumerate(contents.split(1)):
        painting = optimize(
            content,
            style,
            encoder,
            OptimizerSettings(
                steps=3, start="uniform", scales=1, learning_rate=0.02, final_rate=1.0, seed=i, loss=loss
            ),
        )
        for picture, totals in ((content, unchanged), (painting.picture, optimised)):
            with torch.no_grad():
                totals.append(judge(picture, judge.content_target(content), target).values()["total"])
    assert card.pairs == 2 and card.size == CROP
    assert card.network_total == pytest.approx(np.median(unchanged), rel=1e-3)
    assert card.optimizer_total == {"3": pytest.approx(np.median(optimised), rel=1e-3)}
    assert card.equals_steps == equals
    assert calls == [(done, 6) for done in range(1, 7)]


class Noise(nn.Module):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.rand(pictures.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_a_bad_network_equals_few_steps(vgg19, style, paths):
    contents = ContentPictures(paths[:1], crop=CROP, batch=1).centre_crops()
    card = compare_with_reference(Noise(), contents, [style], vgg19, LossSettings(), steps=30)
    assert list(card.optimizer_total) == ["25", "30"]
    assert card.equals_steps == 25
