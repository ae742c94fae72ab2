"""The record of an optimisation: history, snapshots, figures, and the checkpoints that it goes on from."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scenes import hills, strokes

from shared import run_record
from shared.errors import InvalidInput, NotFound
from shared.images import decode, to_tensor
from shared.optimizer import Checkpoint, Iteration, OptimizerSettings, StylePicture, optimize
from shared.perceptual_loss import LossSettings, LossTerms
from shared.run_record import RunRecord, fingerprint, load_checkpoint, plot_available, save_checkpoint
from shared.sheets import Panel

RUN = "a" * 64
ROW = ["step", "height", "width", "seconds", "content", "style", "tv", "total"]


def iteration(step: int, *, width: int = 48, height: int = 32, losses=(1.0, 2.0, 0.5), colour=(0.5, 0.5, 0.5)):
    pixels = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, height, width)
    terms = LossTerms(*(torch.tensor(float(loss)) for loss in losses))
    return Iteration(step, 1000, height, width, step / 10, terms, pixels)


def record(folder: Path, *, every: int = 10, facts=None, styles=None, **options) -> RunRecord:
    styles = [strokes(48, 48)] if styles is None else styles
    return RunRecord(
        folder, facts={"run": RUN, **(facts or {})}, every=every, content=hills(48, 32), styles=styles, **options
    )


def checkpoint(done: int = 20, **numbers: float) -> Checkpoint:
    tensors = {"pixels": torch.rand(1, 3, 32, 48), "optimizer.step": torch.tensor(float(done))}
    return Checkpoint(done, 1, done // 2, tensors, {"best": math.inf, "averaged": 0, "left": 7} | numbers)


def strictly(path: Path) -> dict:
    """JSON as every reader knows it, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="ascii"), parse_constant=refuse)


def history(folder: Path) -> list[dict]:
    return strictly(folder / "history.json")["steps"]


# History


def test_the_history_has_a_row_for_every_evaluation(tmp_path):
    kept = record(tmp_path, facts={"preset": "müde", "settings": OptimizerSettings().as_dict()})
    for step in range(1, 34):
        kept.on_iteration(iteration(step, height=32 if step < 20 else 64, losses=(step / 3, 1e6 / 3, 0)))
    kept.finish(hills(48, 32))
    found = strictly(tmp_path / "history.json")
    assert list(found) == ["facts", "steps"]
    assert found["facts"] == {"run": RUN, "preset": "müde", "settings": OptimizerSettings().as_dict()}
    assert [list(row) for row in found["steps"]] == [ROW] * 33
    assert [row["step"] for row in found["steps"]] == [*range(1, 34)]
    assert [row["height"] for row in found["steps"]] == [32] * 19 + [64] * 14
    assert {row["width"] for row in found["steps"]} == {48}
    assert [row["seconds"] for row in found["steps"]] == pytest.approx([step / 10 for step in range(1, 34)])
    assert found["steps"][1]["content"] == pytest.approx(2 / 3, abs=1e-7)
    for row in found["steps"]:
        assert row["style"] == pytest.approx(1e6 / 3, rel=1e-7) and row["tv"] == 0
        assert row["total"] == pytest.approx(row["content"] + row["style"], rel=1e-6)
        for name in ROW[3:]:
            assert row[name] == float(f"{row[name]:.7g}"), "no more digits than there is truth in"


def test_losses_that_are_no_numbers_leave_the_history_readable(tmp_path):
    kept = record(tmp_path)
    kept.on_iteration(iteration(1, losses=(1, math.nan, math.inf)))
    kept.finish(hills(48, 32))
    (row,) = history(tmp_path)
    assert row["content"] == 1 and row["style"] is row["tv"] is row["total"] is None


def test_the_device_is_read_in_batches(tmp_path, monkeypatch):
    kept, reads = record(tmp_path, every=60), []
    read = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self.numel()) or read(self))
    for step in range(1, 71):
        kept.on_iteration(iteration(step))
    assert reads == [75, 75, 30], "every 25 steps, and at the snapshot"
    kept.finish(hills(48, 32))
    assert reads == [75, 75, 30, 30]
    assert [row["step"] for row in history(tmp_path)] == [*range(1, 71)]


def test_between_batches_nothing_waits_for_the_device(tmp_path):
    kept = record(tmp_path, every=1000)

    def unreadable(step: int) -> Iteration:
        return replace(iteration(step), terms=LossTerms(*torch.empty(3, device="meta")))

    for step in range(1, 25):
        kept.on_iteration(unreadable(step))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        kept.on_iteration(unreadable(25))


def test_a_killed_run_leaves_its_history_up_to_the_last_snapshot(tmp_path):
    kept = record(tmp_path)
    for step in range(1, 26):
        kept.on_iteration(iteration(step))
    assert [row["step"] for row in history(tmp_path)] == [*range(1, 21)]
    assert {path.name for path in tmp_path.iterdir()} == {"history.json", "snapshots"}


def test_a_failed_write_leaves_the_history_as_it_was(tmp_path, monkeypatch):
    kept = record(tmp_path)
    for step in range(1, 11):
        kept.on_iteration(iteration(step))
    before = (tmp_path / "history.json").read_bytes()
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="full"):
        kept.save_history()
    assert (tmp_path / "history.json").read_bytes() == before


def full_disk(monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("shared.files.os.fsync", fail)


# Snapshots


def test_snapshots_show_the_picture_at_its_own_size(tmp_path):
    kept = record(tmp_path, every=3)
    for step in range(1, 8):
        width, height = (24, 16) if step < 5 else (48, 32)
        kept.on_iteration(iteration(step, width=width, height=height, colour=(step / 10, 0.5, 0.25)))
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["step-00003.jpg", "step-00006.jpg"]
    for step, size in ((3, (24, 16)), (6, (48, 32))):
        with Image.open(tmp_path / "snapshots" / f"step-{step:05}.jpg") as snapshot:
            assert snapshot.size == size and snapshot.format == "JPEG"
            assert np.asarray(snapshot).mean((0, 1)) == pytest.approx([25.5 * step, 127.5, 63.75], abs=4)


def test_a_new_run_in_an_old_folder_starts_without_its_snapshots(tmp_path):
    first = record(tmp_path)
    for step in range(1, 41):
        first.on_iteration(iteration(step))
    first.on_checkpoint(checkpoint(40))
    for path in (tmp_path / "notes.txt", tmp_path / "snapshots" / "step-mine.jpg"):
        path.write_text("of someone else")
    second = record(tmp_path)
    second.on_iteration(iteration(1))
    second.finish(hills(48, 32))
    assert [row["step"] for row in history(tmp_path)] == [1]
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-mine.jpg"]
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "checkpoint.safetensors").exists()


# Resuming


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(encoder, tmp_path, optimizer):
    shallow = LossSettings({"relu2_1": 1.0}, {"relu1_1": 0.5, "relu2_1": 0.5})
    settings = OptimizerSettings(
        steps=24, scales=2, optimizer=optimizer, search_iterations=3, patience=50, loss=shallow
    )
    content, style = hills(96, 92), strokes(64, 64)
    run = fingerprint(settings, b"content", b"style")

    def paint(folder: Path, *, dies_at: int = 0, resume: Checkpoint | None = None):
        kept = RunRecord(folder, facts={"run": run}, every=5, content=content, styles=[style], resume=resume)

        def on_iteration(iteration: Iteration) -> None:
            kept.on_iteration(iteration)
            if iteration.step == dies_at:
                raise KeyboardInterrupt

        painting = optimize(
            to_tensor(content),
            [StylePicture(to_tensor(style))],
            encoder,
            settings,
            resume=resume,
            on_iteration=on_iteration,
            on_checkpoint=kept.on_checkpoint,
            checkpoint_every=7,
        )
        kept.finish(content)
        return painting.picture

    whole = paint(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        paint(tmp_path / "killed", dies_at=22)
    assert [row["step"] for row in history(tmp_path / "killed")] == [*range(1, len(history(tmp_path / "killed")) + 1)]
    found = load_checkpoint(tmp_path / "killed" / "checkpoint.safetensors", run)
    assert 14 <= found.done < 22 and found.scale == 1
    again = paint(tmp_path / "killed", resume=found)
    assert torch.equal(again, whole)
    rows, expected = history(tmp_path / "killed"), history(tmp_path / "whole")
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in expected]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and seconds[-1] > 0, "time goes on from where it was"
    for folder in ("killed", "whole"):
        names = sorted(path.name for path in (tmp_path / folder / "snapshots").iterdir())
        assert names == [f"step-{step:05}.jpg" for step in (5, 10, 15, 20)]


def interrupted(folder: Path, *, steps: int = 38, at: int = 24, **options) -> Checkpoint:
    """A run that made ``steps`` evaluations with its last checkpoint after ``at``."""
    kept, saved = record(folder, **options), checkpoint(at)
    for step in range(1, steps + 1):
        kept.on_iteration(iteration(step))
        if step == at:
            kept.on_checkpoint(saved)
    return saved


def test_what_lies_behind_the_checkpoint_is_made_again(tmp_path):
    saved = interrupted(tmp_path)
    assert len(history(tmp_path)) == 30
    kept = record(tmp_path, resume=saved)
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["step-00010.jpg", "step-00020.jpg"]
    for step in range(25, 32):
        kept.on_iteration(replace(iteration(step, losses=(9, 9, 9)), seconds=(step - 24) / 10))
    kept.finish(hills(48, 32))
    rows = history(tmp_path)
    assert [row["step"] for row in rows] == [*range(1, 32)]
    assert [row["content"] for row in rows] == [1.0] * 24 + [9.0] * 7
    assert [row["seconds"] for row in rows] == pytest.approx([step / 10 for step in range(1, 32)])


def test_the_history_is_never_behind_the_checkpoint(tmp_path):
    saved = interrupted(tmp_path, steps=24, at=24, every=1000)
    assert [row["step"] for row in history(tmp_path)] == [*range(1, 25)]
    record(tmp_path, resume=saved).save_history()
    assert len(history(tmp_path)) == 24


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"steps": []}'),
        lambda path: path.write_text(json.dumps({"facts": {"run": RUN}, "steps": [{"step": 1}]})),
        lambda path: path.write_text(json.dumps({"facts": {"run": RUN}, "steps": [1, 2]})),
        lambda path: path.write_text(path.read_text().replace(RUN, "b" * 64)),
    ],
    ids=["missing", "truncated", "a list", "without facts", "without losses", "numbers", "of another run"],
)
def test_a_history_that_cannot_be_continued_begins_anew(tmp_path, damage, caplog):
    saved = interrupted(tmp_path)
    damage(tmp_path / "history.json")
    with caplog.at_level(logging.WARNING, "shared.run_record"):
        kept = record(tmp_path, resume=saved)
    assert "history" in caplog.text
    assert not list((tmp_path / "snapshots").iterdir()), "they are of that run too"
    kept.on_iteration(iteration(25))
    kept.finish(hills(48, 32))
    assert [row["step"] for row in history(tmp_path)] == [25]


# Checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    tensors = {
        "pixels": torch.rand(1, 3, 5, 7).to(memory_format=torch.channels_last),
        "turned": torch.arange(12.0).view(3, 4).T,
        "optimizer.step": torch.tensor(3.0),
        "optimizer.old_dirs.000": torch.rand(11, dtype=torch.float64),
    }
    numbers = {"best": math.inf, "averaged": 0, "left": 17, "third": 1 / 3, "tiny": 5e-324, "low": -math.inf}
    saved = Checkpoint(120, 2, 20, tensors, numbers)
    save_checkpoint(tmp_path / "c.safetensors", saved, RUN)
    found = load_checkpoint(tmp_path / "c.safetensors", RUN)
    assert (found.done, found.scale, found.done_in_scale) == (120, 2, 20)
    assert found.numbers == numbers
    assert [type(found.numbers[name]) for name in numbers] == [float, int, int, float, float, float]
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype


def test_a_loaded_checkpoint_does_not_live_in_its_file(tmp_path):
    path = tmp_path / "c.safetensors"
    saved = checkpoint()
    save_checkpoint(path, saved, RUN)
    found = load_checkpoint(path, RUN)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found.tensors["pixels"], saved.tensors["pixels"])


def test_a_checkpoint_holds_nothing_that_could_run(tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", checkpoint(), RUN)
    with safe_open(tmp_path / "c.safetensors", framework="np") as file:
        state = json.loads(file.metadata()["state"])
    assert state["done"] == 20 and state["numbers"]["best"] == math.inf


def test_a_failed_write_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    kept = record(tmp_path)
    kept.on_checkpoint(checkpoint(20))
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="full"):
        save_checkpoint(tmp_path / "checkpoint.safetensors", checkpoint(40), RUN)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors", RUN).done == 20
    assert not list(tmp_path.glob(".*.part"))


def refused(path: Path, run: str = RUN) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        load_checkpoint(path, run)
    assert "\n" not in caught.value.message and str(path) in caught.value.message
    assert caught.value.hint and caught.value.field == "resume"
    return caught.value


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", checkpoint(), RUN)
    assert "of another run" in refused(tmp_path / "c", "b" * 64).message


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    assert isinstance(refused(tmp_path / "c"), NotFound)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "c"
    save_checkpoint(path, checkpoint(), RUN)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "cannot be read" in refused(path).message


def altered(path: Path, *, drop: str = "", without: str = "", **changes: str) -> Path:
    """A checkpoint, written again with other contents."""
    save_checkpoint(path, checkpoint(), RUN)
    with safe_open(path, framework="pt") as file:
        metadata = {k: v for k, v in (file.metadata() | changes).items() if k != without}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys() if name != drop}  # noqa: SIM118
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize("name", ["pixels", "optimizer.step"])
def test_a_checkpoint_without_one_of_its_tensors_is_refused(tmp_path, name):
    assert f"has no {name}" in refused(altered(tmp_path / "c", drop=name)).message


def test_a_checkpoint_without_pixels_is_refused_even_if_it_names_none(tmp_path):
    save_checkpoint(tmp_path / "c", replace(checkpoint(), tensors={"average": torch.zeros(3)}), RUN)
    assert "has no pixels" in refused(tmp_path / "c").message


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "another"},
        {"state": "{"},
        {"state": "[]"},
        {"state": "{}"},
        {"state": json.dumps({"done": None, "scale": 0, "done_in_scale": 0, "numbers": {}, "tensors": []})},
        {"state": json.dumps({"done": 1, "scale": 0, "done_in_scale": 0, "numbers": 5, "tensors": []})},
        {"without": "format"},
        {"without": "run"},
        {"without": "state"},
    ],
    ids=str,
)
def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path, changes):
    assert "cannot be read" in refused(altered(tmp_path / "c", **changes)).message


@pytest.mark.parametrize("name", ["run", "state"])
def test_what_a_checkpoint_lacks_is_named(tmp_path, name):
    assert f"it has no '{name}'" in refused(altered(tmp_path / "c", without=name)).message


def test_the_alteration_alone_is_not_refused(tmp_path):
    assert load_checkpoint(altered(tmp_path / "c"), RUN).done == 20


# Fingerprints


def test_a_fingerprint_is_of_all_that_a_run_depends_on():
    settings = OptimizerSettings()
    runs = [
        (settings, (b"content", b"style"), {}),
        (replace(settings, seed=1), (b"content", b"style"), {}),
        (replace(settings, seed=2**60), (b"content", b"style"), {}),
        (replace(settings, seed=2**60 + 1), (b"content", b"style"), {}),
        (replace(settings, loss=replace(settings.loss, tv_weight=1e-9)), (b"content", b"style"), {}),
        (settings, (b"content", b"stylf"), {}),
        (settings, (b"style", b"content"), {}),
        (settings, (b"contents", b"tyle"), {}),
        (settings, (b"contentstyle",), {}),
        (settings, (b"content", b"style", b""), {}),
        (settings, (b"content", b"style", None), {}),
        (settings, (b"content", None, b"style"), {}),
        (settings, (b"content", b"style"), {"size": 512}),
        (settings, (b"content", b"style"), {"size": 513}),
        (settings, (b"content", b"style"), {"weights": [2, 1]}),
        (settings, (b"content", b"style"), {"weights": [1, 2]}),
    ]
    found = [fingerprint(settings, *pictures, **more) for settings, pictures, more in runs]
    assert len(set(found)) == len(runs)
    assert all(len(run) == 64 and set(run) <= set("0123456789abcdef") for run in found)


def test_a_fingerprint_does_not_depend_on_how_numbers_are_written():
    whole = OptimizerSettings(loss=LossSettings(style_weight=20), learning_rate=1)
    broken = OptimizerSettings(loss=LossSettings(style_weight=20.0), learning_rate=1.0)
    assert fingerprint(whole, b"a", size=512, encoder="vgg19") == fingerprint(broken, b"a", encoder="vgg19", size=512.0)


# Figures


def test_what_a_run_leaves(tmp_path):
    kept = record(tmp_path)
    for step in range(1, 25):
        kept.on_iteration(iteration(step))
    files = kept.finish(hills(48, 32))
    assert files == {
        "history": tmp_path / "history.json",
        "losses": tmp_path / "losses.png",
        "sheet": tmp_path / "sheet.jpg",
    }
    with Image.open(files["losses"]) as plot, Image.open(files["sheet"]) as sheet:
        assert plot.format == "PNG" and sheet.format == "JPEG"
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture
def drawn(monkeypatch) -> SimpleNamespace:
    """Rows of panels of the sheet, and the sheet before it is encoded, once there is one."""
    found, draw = SimpleNamespace(), run_record.draw_sheet

    def spy(rows, **options):
        found.rows, found.sheet = rows, draw(rows, **options)
        return found.sheet

    monkeypatch.setattr(run_record, "draw_sheet", spy)
    return found


def box(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all that is nearly of this colour."""
    ys, xs = np.nonzero(np.abs(sheet.astype(int) - colour).max(-1) < 24)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_the_sheet_shows_what_was_given_the_way_and_the_result(tmp_path, drawn):
    given = {"content": (200, 30, 30), "style 1": (30, 200, 30), "style 2": (30, 30, 200)}
    way = [(250, 160, 20), (160, 20, 250), (20, 250, 160), (120, 120, 0)]
    result = (240, 20, 130)
    content = Image.new("RGB", (96, 64), given["content"])
    styles = [Image.new("RGB", (64, 96), given["style 1"]), Image.new("RGB", (640, 160), given["style 2"])]
    kept = RunRecord(tmp_path, facts={"run": RUN}, every=2, content=content, styles=styles)
    for step in range(1, 10):
        width, height = (67, 45) if step < 5 else (96, 64)
        colour = tuple(level / 255 for level in way[max(0, step // 2 - 1)])
        kept.on_iteration(iteration(step, width=width, height=height, colour=colour))
    written = decode(kept.finish(Image.new("RGB", (96, 64), result))["sheet"])
    sheet = np.asarray(drawn.sheet)
    assert np.abs(np.asarray(written).astype(int) - sheet).mean() < 3

    height, width = sheet.shape[:2]
    for edge in (sheet[:32], sheet[-32:], sheet[:, :32], sheet[:, -32:]):
        assert edge.min() > 240, "a white margin"
    first, steps = [box(sheet, colour) for colour in given.values()], [box(sheet, colour) for colour in way]
    last = box(sheet, result)
    for boxes in (first, steps):
        assert len({bottom for *_, bottom in boxes}) == 1, "on one line"
        assert all(left[2] + 10 < right[0] for left, right in pairwise(boxes)), "in this order"
    assert max(b[3] for b in first) < min(b[1] for b in steps) < max(b[3] for b in steps) < last[1]

    def shape(found: tuple[int, int, int, int]) -> float:
        return (found[2] - found[0]) / (found[3] - found[1])

    assert [shape(found) for found in first] == pytest.approx([1.5, 2 / 3, 4], rel=0.05)
    assert [shape(found) for found in (*steps, last)] == pytest.approx([1.5] * 5, rel=0.05)
    assert {panel.picture.size for panel in drawn.rows[1]} == {(256, 171)}, "one size, whatever the scale"
    assert last[2] - last[0] > 1.9 * (steps[0][2] - steps[0][0]), "the result is larger"
    assert (last[0] + last[2]) / 2 == pytest.approx(width / 2, abs=2)
    for left, _, right, bottom in (*first, *steps, last):
        assert (sheet[bottom + 2 : bottom + 32, left:right] < 100).any(), "a caption"


def captions(rows: list[list[Panel]]) -> list[list[str | None]]:
    """By row; None for empty places."""
    return [[panel.caption if panel.picture else None for panel in row] for row in rows]


def filled(folder: Path, steps: int, every: int, **options) -> RunRecord:
    kept = record(folder, every=every, **options)
    for step in range(1, steps + 1):
        kept.on_iteration(iteration(step, width=24, height=16))
    return kept


@pytest.mark.parametrize(
    ("steps", "every", "styles", "expected"),
    [
        (9, 10, 1, [["content", "style"], ["result"]]),
        (30, 10, 1, [["content", "style"], ["step 10", "step 20", "step 30"], ["result"]]),
        (
            7,
            1,
            2,
            [
                ["content", "style 1", "style 2"],
                ["step 1", "step 2", "step 3", "step 4"],
                ["step 5", "step 6", "step 7", None],
                ["result"],
            ],
        ),
        (2, 2, 5, [["content", "style 1", "style 2"], ["style 3", "style 4", "style 5"], ["step 2"], ["result"]]),
    ],
)
def test_the_sheet_is_laid_out_in_even_rows(tmp_path, drawn, steps, every, styles, expected):
    filled(tmp_path, steps, every, styles=[strokes(48, 48)] * styles).finish(hills(24, 16))
    assert captions(drawn.rows) == expected


def test_a_sheet_of_very_many_snapshots_shows_some_of_them(tmp_path, drawn):
    filled(tmp_path, 150, 1).finish(hills(24, 16))
    found = [caption for row in captions(drawn.rows)[1:-1] for caption in row if caption]
    steps = [int(caption.removeprefix("step ")) for caption in found]
    assert len(steps) == 60 and steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] == 150
    assert max(np.diff(steps)) <= 3


def test_a_snapshot_that_is_gone_or_damaged_is_left_out(tmp_path, drawn):
    kept = filled(tmp_path, 40, 10)
    (tmp_path / "snapshots" / "step-00020.jpg").unlink()
    (tmp_path / "snapshots" / "step-00030.jpg").write_bytes(b"no picture")
    kept.finish(hills(24, 16))
    assert captions(drawn.rows)[1] == ["step 10", "step 40"]


def test_snapshots_of_the_first_part_are_on_the_sheet_of_a_resumed_run(tmp_path, drawn):
    saved = interrupted(tmp_path)
    kept = record(tmp_path, resume=saved)
    for step in range(25, 34):
        kept.on_iteration(iteration(step))
    kept.finish(hills(48, 32))
    assert captions(drawn.rows)[1] == ["step 10", "step 20", "step 30"]


@pytest.mark.parametrize(
    ("content", "style", "expected"),
    [
        ((96, 64), (50, 100), (86, 171)),
        ((96, 64), (100, 25), (256, 64)),
        ((64, 96), (50, 100), (128, 256)),
        ((400, 100), (100, 100), (128, 128)),
    ],
    ids=["as high as the content", "no wider than a column", "beside a portrait", "not as low as a panorama"],
)
def test_styles_stand_beside_the_content(tmp_path, drawn, content, style, expected):
    kept = RunRecord(tmp_path, facts={"run": RUN}, content=hills(*content), styles=[strokes(*style)])
    kept.finish(hills(*content))
    assert drawn.rows[0][1].picture.size == expected


@pytest.mark.parametrize(("width", "height"), [(1200, 32), (32, 1200)])
def test_elongated_pictures_fit(tmp_path, width, height):
    picture = hills(width, height)
    kept = RunRecord(tmp_path, facts={"run": RUN}, every=1, content=picture, styles=[strokes(height, width)])
    kept.on_iteration(iteration(1, width=width, height=height))
    sheet = decode(kept.finish(picture)["sheet"])
    assert max(sheet.size) < 1600


@pytest.fixture
def plotted(monkeypatch) -> SimpleNamespace:
    """The axes of the plot, once there is one."""
    from matplotlib.figure import Figure

    found, save = SimpleNamespace(), Figure.savefig

    def spy(self, *arguments, **options):
        (found.axes,) = self.axes
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def test_the_plot_shows_every_term_and_where_scales_begin(tmp_path, plotted):
    kept = record(tmp_path)
    for step in range(1, 13):
        height = 16 if step < 5 else 24 if step < 9 else 32
        kept.on_iteration(iteration(step, height=height, losses=(step - 1, 100 / step, 0.25)))
    kept.finish(hills(48, 32))
    axes = plotted.axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    steps = np.arange(1, 13)
    for name, expected in (
        ("content", np.where(steps == 1, np.nan, steps - 1)),
        ("style", 100 / steps),
        ("tv", np.full(12, 0.25)),
        ("total", steps - 1 + 100 / steps + 0.25),
    ):
        assert lines[name].get_xdata() == pytest.approx(steps)
        assert lines[name].get_ydata() == pytest.approx(expected, rel=1e-6, nan_ok=True)
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_label() not in ("content", "style", "tv", "total")]
    assert marks == [4.5, 8.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "content",
        "style",
        "tv",
        "total",
        "next scale",
    ]


def test_a_term_of_no_weight_is_not_plotted(tmp_path, plotted):
    kept = record(tmp_path)
    for step in (1, 2):
        kept.on_iteration(iteration(step, losses=(0, 3, 0)))
    kept.finish(hills(48, 32))
    assert {line.get_label() for line in plotted.axes.lines} == {"style", "total"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", [None, (0, 0, 0), (math.nan, 1, 1)])
def test_a_plot_of_nothing_is_no_error(tmp_path, losses):
    kept = record(tmp_path)
    if losses is not None:
        kept.on_iteration(iteration(1, losses=losses))
    assert kept.finish(hills(48, 32))["losses"].stat().st_size > 1000


def test_without_matplotlib_the_plot_is_left_out(tmp_path, monkeypatch, caplog):
    assert plot_available()
    (tmp_path / "losses.png").write_bytes(b"of an earlier run")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert not plot_available()
    kept = record(tmp_path)
    kept.on_iteration(iteration(1))
    with caplog.at_level(logging.INFO, "shared.run_record"):
        files = kept.finish(hills(48, 32))
    assert files == {"history": tmp_path / "history.json", "sheet": tmp_path / "sheet.jpg"}
    assert not (tmp_path / "losses.png").exists()
    assert [(r.levelname, "matplotlib" in r.message) for r in caplog.records] == [("INFO", True)]


def test_a_server_that_imports_this_does_not_load_matplotlib():
    root = str(Path(run_record.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", "import sys, shared.run_record; print('matplotlib' in sys.modules)"],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == "False"


# What is refused


def test_a_record_that_cannot_be_kept_is_refused_before_the_work(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        record(tmp_path / "run", every=0)
    assert caught.value.field == "every"
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be made") as caught:
        record(tmp_path / "file")
    assert caught.value.field == "output"
    for facts in ({"path": Path("x")}, {"limit": math.inf}):
        with pytest.raises((TypeError, ValueError)):
            record(tmp_path / "run", facts=facts)


def test_facts_are_those_of_the_beginning(tmp_path):
    facts = {"run": RUN, "settings": {"steps": 5}}
    kept = RunRecord(tmp_path, facts=facts, content=hills(48, 32), styles=[strokes(48, 48)])
    facts["settings"]["steps"] = 6
    kept.finish(hills(48, 32))
    assert strictly(tmp_path / "history.json")["facts"] == {"run": RUN, "settings": {"steps": 5}}
