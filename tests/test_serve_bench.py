"""The benchmark of serving counts what is computed, takes turns, and says where a contender does not run."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from shared.fast_models import MODEL_FILE, SHIPPED
from training import bench_command
from training.serve_bench import Contender, multiply_adds, peak_rates, serving_costs

MODEL = SHIPPED / "udnie" / MODEL_FILE


def test_multiply_adds_are_those_of_the_papers_layers():
    n, full, half, quarter = 16, 64**2, 32**2, 16**2
    ends = 2 * 9 * 9 * 3 * n * full
    shrink = 3 * 3 * n * 2 * n * half + 3 * 3 * 2 * n * 4 * n * quarter
    body = 10 * 3 * 3 * (4 * n) ** 2 * quarter
    grow = 3 * 3 * 4 * n * 2 * n * half + 3 * 3 * 2 * n * n * full
    assert multiply_adds("half", 64) == ends + shrink + body + grow
    assert multiply_adds("half", 128) == 4 * multiply_adds("half", 64)


def test_a_matrix_product_is_faster_than_a_loop():
    rates = peak_rates(1, side=256)
    assert rates.keys() == {"float32", "bfloat16"} and all(1e8 < rate < 1e14 for rate in rates.values())


def test_contenders_take_turns_and_are_written_and_drawn(tmp_path):
    options = ["--size", "64", "--size", "128", "--engine", "onnxruntime", "--threads", "1", "--rounds", "2"]
    files = {"--json": tmp_path / "serve.json", "--plot": tmp_path / "serve.png"}
    where = [str(part) for pair in files.items() for part in pair]
    result = CliRunner().invoke(bench_command.app, ["serve", *options, *where], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads(files["--json"].read_text())
    small, large = written["costs"]
    assert (small["size"], large["size"], small["provider"]) == (64, 128, "CPUExecutionProvider")
    assert 0 < small["cpu_seconds"] < large["cpu_seconds"] and 0 < small["floor"] < small["cpu_seconds"]
    assert large["floor"] == pytest.approx(4 * small["floor"])
    assert 2e7 < small["peak_bytes"] < 4e8 and small["per_second"] > 0
    assert {"python", "numpy", "torch"} < written["machine"]["versions"].keys()
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_a_contender_that_does_not_run_ends_the_run_with_its_reason():
    from shared.errors import EngineUnavailable

    with pytest.raises(EngineUnavailable, match="fpga half 1 threads does not run here: engine is 'fpga'"):
        serving_costs([Contender("fpga", 1, "half", MODEL)], [64])
