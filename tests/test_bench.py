"""The benchmark measures what it says: one computation in every variant, judged at the steps that were asked for."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from scenes import hills, strokes
from typer.testing import CliRunner

from shared.encoders import Encoder
from shared.fast_models import SHIPPED, ModelLibrary
from shared.galleries import open_gallery
from shared.images import decode, to_tensor
from shared.optimizer import DEFAULT_LOSS, OptimizerSettings, optimize
from shared.perceptual_loss import PerceptualLoss
from shared.style_space import StyleSpace
from training import bench, bench_command
from training.bench import Bench, Descent, Pair, unseen_pairs


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("pictures")
    for name, picture in (("content", hills(96, 80)), ("style", strokes(90, 96))):
        picture.save(folder / f"{name}.png")
    return Pair(folder / "content.png", folder / "style.png", "udnie", 0.9)


def test_the_straightforward_variant_is_the_same_computation(vgg19, encoder):
    content, style, picture = (torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(i)) for i in range(3))
    naive = bench._Straightforward(vgg19, DEFAULT_LOSS, torch.device("cpu"))
    ours = PerceptualLoss(encoder, DEFAULT_LOSS)
    found = []
    for loss, targets in (
        (naive, naive.targets(content, style)),
        (lambda p, *t: ours(p, *t).total, (ours.content_target(content), ours.style_target(style))),
    ):
        pixels = picture.clone().requires_grad_(True)
        total = loss(pixels, *targets)
        total.backward()
        found.append((total.detach(), pixels.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    assert (found[0][1] - found[1][1]).norm() < 1e-4 * found[1][1].norm()


def test_a_descent_is_judged_in_fp32_at_its_marks(pair, encoder):
    measured = Bench(OptimizerSettings(scales=1, final_rate=1.0))
    seen = []
    descent = measured.descend(
        pair, 64, "bfloat16", "uniform", [4, 2], steps=9, on_step=lambda done, total: seen.append((done, total))
    )
    assert list(descent.totals) == [2, 4] and seen == [(i, 9) for i in range(1, 5)]
    assert descent.totals[4] < descent.totals[2]
    # The first judged picture again, by a loss of one's own.
    content, style = (to_tensor(decode(path, longer_side=64)) for path in (pair.content, pair.style))
    loss = PerceptualLoss(encoder, DEFAULT_LOSS)
    pictures = []
    optimize(
        content,
        style,
        Encoder(measured._tensors, dtype=torch.bfloat16),
        OptimizerSettings(scales=1, final_rate=1.0, steps=2, start="uniform"),
        on_iteration=lambda iteration: pictures.append(iteration.picture()),
    )
    with torch.no_grad():
        expected = loss(pictures[1], loss.content_target(content), loss.style_target(style)).values()["total"]
    assert descent.totals[2] == pytest.approx(expected, rel=1e-4)


def test_a_given_picture_is_the_start(pair):
    measured = Bench(OptimizerSettings(scales=1, learning_rate=1e-6))
    content = to_tensor(decode(pair.content, longer_side=64))
    from_itself = measured.descend(pair, 64, "float32", "warm", [1], picture=content)
    from_content = measured.descend(pair, 64, "float32", "content", [1])
    from_noise = measured.descend(pair, 64, "float32", "uniform", [1])
    assert from_itself.totals[1] == pytest.approx(from_content.totals[1], rel=1e-4)
    assert from_noise.totals[1] != pytest.approx(from_itself.totals[1], rel=0.1)


def test_the_step_that_reaches_a_loss():
    descent = Descent("a", 64, "float32", "adain", 1.0, {5: 3.0, 10: 2.0, 15: 1.0})
    assert [descent.reaches(total) for total in (3.5, 3.0, 2.5, 1.0, 0.5)] == [5, 5, 10, 15, None]


def test_unseen_pairs_are_outside_every_cluster(encoder):
    gallery, library, space = open_gallery("met"), ModelLibrary((SHIPPED,)), StyleSpace.load()
    pairs = unseen_pairs(gallery, library, encoder, 3)
    assert len({pair.style for pair in pairs}) == len(pairs) == 3
    for pair in pairs:
        serving = library.nearest(space.embed(encoder, decode(pair.style)), space.fingerprint)
        assert not serving.inside and pair.content != pair.style
        assert (pair.nearest, pair.distance) == (serving.model.card.slug, pytest.approx(serving.distance))


@pytest.fixture
def prepared(monkeypatch, pair, encoder):
    """The commands on one small pair, without the gallery; the warm start is a painting of twelve steps."""
    made = Bench(OptimizerSettings(scales=1))
    pictures = (to_tensor(decode(path, longer_side=64)) for path in (pair.content, pair.style))
    painted = optimize(*pictures, encoder, OptimizerSettings(scales=1, steps=12, start="uniform")).picture

    def warm(start, chosen, size):
        return painted if start in ("adain", "nearest") else None

    monkeypatch.setattr(bench_command, "_prepare", lambda gallery, pairs, device: (made, [pair] * pairs, warm))


def test_the_optimizer_table(prepared, tmp_path):
    out = tmp_path / "bench.json"
    command = ["optimizer", "--size", "64", "--pairs", "2", "--marks", "2,4", "--rounds", "0", "--json", str(out)]
    result = CliRunner().invoke(bench_command.app, [*command, "--start", "uniform", "--start", "adain"])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert [(row["size"], row["precision"], row["start"]) for row in found["descents"]] == [
        (64, precision, start) for precision in ("float32", "bfloat16") for start in ("uniform", "adain")
    ]
    for row in found["descents"]:
        assert row["totals"]["4"] < row["totals"]["2"] and len(row["pairs"]) == 2
    assert found["machine"]["device"] == "cpu" and found["machine"]["threads"] >= 1
    assert "bfloat16" in result.output and "loss at 4" in result.output


def test_the_warm_start_table(prepared, tmp_path):
    out = tmp_path / "warm.json"
    command = ["warm-start", "--size", "64", "--pairs", "1", "--marks", "2,5", "--within", "10", "--json", str(out)]
    result = CliRunner().invoke(bench_command.app, command)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["pairs"]
    for start in ("adain", "nearest"):
        assert row["warm"][start]["reaches"]["2"] == 1
        assert row["warm"][start]["reaches"]["5"] in (1, 2, 5, 10)
        assert list(row["warm"][start]["totals"]) == ["1", "2", "5", "10"]
    assert "median" in result.output


@pytest.mark.parametrize("marks", ["", "a,b", "0,5", "-1"])
def test_marks_that_are_none_are_refused(marks):
    result = CliRunner().invoke(bench_command.app, ["optimizer", "--marks", marks])
    assert result.exit_code == 2


@pytest.mark.slow
def test_the_cost_of_a_step():
    """Real processes: every variant takes its turn, and has a time and a peak of its own."""
    rounds = []
    costs = bench.step_costs(96, rounds=1, steps=1, on_round=lambda: rounds.append(1))
    assert list(costs) == [variant.name for variant in bench.VARIANTS] and len(rounds) == len(costs)
    for cost in costs.values():
        assert 0 < cost.seconds < 60 and 1e8 < cost.peak_bytes < 1e10


def test_the_machine_is_named():
    facts = bench.machine(torch.device("cpu"))
    assert facts["processor"] and facts["torch"] == torch.__version__
    assert SimpleNamespace(**facts).device == "cpu"


def test_the_index_table(tmp_path):
    """A real process searches a real index; its matrix is as large as it must be."""
    out = tmp_path / "index.json"
    command = [
        "index",
        "--rows",
        "20000",
        "--dimensions",
        "64",
        "--rounds",
        "1",
        "--dtype",
        "float16",
        "--queries",
        "2",
    ]
    result = CliRunner().invoke(bench_command.app, [*command, "--json", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["index"]["float16"]
    assert found["matrix_bytes"] == 20_000 * 64 * 2 + 2 * 128 and list(found["seconds"]) == ["2"]
    assert 0 < found["seconds"]["2"] < 60 and 1e8 < found["bandwidth"] < 1e13
    assert found["memory_bytes"] > 20_000 * 64 * 2, "all of it was read"
    assert "2 queries" in result.output and "float16" in result.output
    assert CliRunner().invoke(bench_command.app, [*command, "--dtype", "int8"]).exit_code == 2
