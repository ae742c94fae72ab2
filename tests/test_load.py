"""The load generator: its arithmetic, its manners, and a short load on a really started server."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from training import load
from training.cli import app

run = CliRunner().invoke


def test_percentiles_are_nearest_ranks():
    answers = load.Answers(seconds=[float(i) for i in range(100, 0, -1)])
    assert [answers.percentile(p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert load.Answers(seconds=[3.0]).percentile(50) == 3.0 and math.isnan(load.Answers().percentile(50))


def test_being_told_to_wait_is_no_failure_and_a_broken_connection_is_one():
    answers = load.Answers()
    answers.statuses.update([200, 200, 202, 429, 429, 503, 500, 404, 0])
    assert answers.failed == 4
    assert answers.plain()["statuses"] == {"0": 1, "200": 2, "202": 1, "404": 1, "429": 2, "500": 1, "503": 1}


def test_drift_is_the_growth_after_the_warm_up():
    flat = [(float(i), 500 if i < 10 else 1000) for i in range(50)]
    assert load.drift(flat) == 0
    growing = [(float(i), 1000 + 10 * i) for i in range(50)]
    assert load.drift(growing) == pytest.approx((1000 + 10 * 44) / (1000 + 10 * 14) - 1)
    assert load.drift([(0.0, 7)]) == 0


def test_resident_memory_is_that_of_the_process_and_its_children():
    own = load.resident(psutil.Process(os.getpid()))
    block = bytearray(os.urandom(1 << 20)) * 64
    assert load.resident(psutil.Process(os.getpid())) - own > 0.9 * len(block)


def test_clients_come_back_when_they_are_told_to():
    times: list[float] = []

    def serve(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        return httpx.Response(429, headers={"Retry-After": "1"})

    class Target(load.Target):
        def client(self, connections: int) -> httpx.AsyncClient:
            return httpx.AsyncClient(base_url=self.url, transport=httpx.MockTransport(serve))

    answers = load.Answers()
    asyncio.run(load.fast_requests(Target("http://lienzo.test", "slug", "style"), 2, 2.5, answers))
    # Two clients, at 0, 1 and 2 seconds; the last wait ends with the measurement.
    assert answers.statuses == {429: 6} and answers.failed == 0 and times[-1] - times[0] == pytest.approx(2, abs=0.3)


def test_a_service_that_is_not_there_is_named():
    result = run(app, ["bench", "http", "--url", "http://127.0.0.1:9", "--seconds", "1"])
    assert result.exit_code == 2 and "no Lienzo service answers at http://127.0.0.1:9" in result.output


def test_a_process_that_is_not_there_is_named():
    result = run(app, ["bench", "steady", "--pid", "999999999"])
    assert result.exit_code == 2 and "there is no process 999999999" in result.output


@pytest.mark.slow
def test_a_load_on_a_real_server(server_url, tmp_path):
    path = tmp_path / "load.json"
    arguments = ["--url", server_url, "--clients", "8", "--seconds", "3", "--size", "128", "--steps", "3"]
    result = run(app, ["bench", "http", *arguments, "--json", str(path)])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["full_to_empty_p95"] > 0 and sum(found["jobs"].values()) >= 1
    for answers in found["answers"].values():
        assert answers["failed"] == 0 and set(answers["statuses"]) <= {"200", "202", "429"}
        assert 0 < answers["p50"] <= answers["p95"] <= answers["p99"]


@pytest.mark.slow
def test_a_steady_load_on_a_real_server(server_url, server_process, tmp_path):
    path = tmp_path / "steady.json"
    arguments = ["--url", server_url, "--duration", "3s", "--rate", "2", "--size", "128"]
    result = run(app, ["bench", "steady", *arguments, "--pid", str(server_process.process.pid), "--json", str(path)])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert sum(found["answers"]["statuses"].values()) == 6 and found["answers"]["failed"] == 0
    assert found["memory"][0][1] > 100e6 and "MB at the end" in result.output
