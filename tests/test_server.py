"""Servers as an operator lives with them: full queues, signals, other ways to start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import picture_corpus as pictures
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scenes import hills
from serving import ROOT, SCRIPTS, free_port, raw, served, stop

pytestmark = pytest.mark.slow


@pytest.fixture
def fast_folder(fast_model) -> list[str]:
    """Options that make the fast model known even where it is not one of the shipped."""
    return ["--models", str(fast_model.folder.parent)]


def optimize(url: str, *, size: int = 64, steps: int = 2, wait: int = 150) -> httpx.Response:
    files, data = (
        {"image": pictures.save(hills(128, 128), "PNG")},
        {"style": "met-437344", "size": size, "steps": steps},
    )
    return httpx.post(f"{url}/v1/optimize", files=files, data=data, headers={"prefer": f"wait={wait}"}, timeout=300)


def long_optimization(url: str) -> str:
    """The address of a job that runs until its time is over, and has begun."""
    answer = optimize(url, size=512, steps=500, wait=0)
    assert answer.status_code == 202, answer.text
    address, until = url + answer.headers["location"], time.monotonic() + 60
    while (job := httpx.get(address).json())["step"] == 0:
        assert time.monotonic() < until, job
        time.sleep(0.1)
    return address


def ended(address: str) -> str:
    """How a job ends."""
    until = time.monotonic() + 120
    while (state := httpx.get(address).json()["state"]) in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.2)
    return state


def count(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def stylize(url: str, slug: str) -> httpx.Response:
    files = {"image": pictures.save(hills(64, 64), "PNG")}
    return httpx.post(f"{url}/v1/stylize", files=files, data={"style": slug, "size": "64"}, timeout=150)


def test_a_server_under_stress(fast_model, fast_folder, tmp_path):
    """One server for all that follows, because starting one takes its time."""
    environment = {"LIENZO_OPTIMIZE_QUEUE": "1", "LIENZO_OPTIMIZE_SECONDS": "12"}
    with served(tmp_path, fast_folder, environment) as server:
        slug = fast_model.card.slug

        # What is too much for the optimiser is refused at once, with the time to come back; and nothing else waits.
        assert optimize(server.url).status_code == 200
        running = long_optimization(server.url)
        refused = optimize(server.url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert refused.json()["error"]["hint"]
        assert 1 <= int(refused.headers["retry-after"]) <= 12
        assert stylize(server.url, slug).status_code == 200
        assert httpx.get(running).json()["state"] == "running"

        # An optimisation ends after its time with what it has.
        assert ended(running) == "done"
        assert 0 < int(httpx.get(f"{running}/result").headers["lienzo-steps"]) < 500

        # The end: an upload broke off, a connection is idle, and still the server goes, with all its processes.
        workers = list(server.workers().values())
        assert len(workers) == 4
        raw(server.url, b"POST /v1/stylize HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{", wait=False)
        with httpx.Client(base_url=server.url) as idle:
            idle.get("/v1/health")
            begun = time.monotonic()
            assert stop(server, signal.SIGTERM) == []
        assert time.monotonic() - begun < 30
        assert server.process.returncode == 0
        assert not any(worker.is_running() for worker in workers)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_bentoml_serve_works_in_the_projects_folder_and_ends_cleanly(fast_model, tmp_path, number):
    environment = {"LIENZO_MODELS": str(fast_model.folder.parent)}
    with served(tmp_path, environment=environment, program="bentoml") as server:
        assert fast_model.card.slug in httpx.get(f"{server.url}/v1/health").json()["models"]
        assert stylize(server.url, fast_model.card.slug).status_code == 200
        assert stop(server, number) == []
        assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("options", "environment", "complaint"),
    [
        (["--device", "tpu"], {}, "device is 'tpu', expected one of auto, cpu, cuda."),
        (["--models", "/no/such/folder"], {}, "'/no/such/folder' is not a folder."),
        (["--gallery", "/no/such/folder"], {}, "There is no gallery folder /no/such/folder"),
        (["--host", "nowhere.invalid"], {}, "nothing can listen on nowhere.invalid:"),
        ([], {"LIENZO_SIZE": "large"}, "the environment variable LIENZO_SIZE is 'large'"),
        ([], {"LIENZO_DEVICE": "tpu"}, "device is 'tpu'"),
        ([], {"LIENZO_SIZE": "3000"}, "LIENZO_SIZE is 3000, more than LIENZO_MAX_SIZE, which is 2048."),
        ([], {"LIENZO_KEYS": "/no/such/file"}, "the file of keys '/no/such/file' cannot be read"),
    ],
)
def test_a_server_that_cannot_work_does_not_start(vgg19_weights, options, environment, complaint):
    done = serve_in_vain(["--port", str(free_port()), *options], environment)
    assert complaint in done.stderr


def test_a_port_that_is_taken_is_said_before_anything_is_done(server_process):
    port = server_process.url.rsplit(":", 1)[1]
    done = serve_in_vain(["--port", port])
    assert f"nothing can listen on 127.0.0.1:{port}: Address already in use." in done.stderr


def serve_in_vain(options: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A run of `lienzo serve` that must end by itself with code 2 and one line."""
    command = [SCRIPTS / "lienzo", "serve", *options]
    pipe, environment = subprocess.PIPE, os.environ | (environment or {})
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            done = subprocess.CompletedProcess(command, process.wait(timeout=120), *process.communicate())
        finally:
            process.terminate()  # where it serves all the same, its services go with it
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1 and lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr and done.stdout == ""
    return done


def test_the_stylizer_never_loads_pytorch():
    code = "import sys, services.stylizer; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), env=environment, check=False).returncode == 0
