"""Two servers as an operator lives with them: one that runs with keys and limits, one that lacks something."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import picture_corpus as pictures
import psutil
import pytest
from models import read_raw_card, write_card, write_negative
from scenes import hills
from serving import ROOT, SCRIPTS, Server, free_port, served

from services import keys
from shared.gallery_index import SHIPPED as INDEXES

pytestmark = pytest.mark.slow

PHOTO = pictures.save(hills(96, 96), "PNG")


def until(true: Callable[[], object], seconds: float = 60) -> object:
    """What ``true`` gives once that is something; it must be within ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return found


def stylize(client: httpx.Client, slug: str, size: int = 64) -> httpx.Response:
    return client.post("/v1/stylize", files={"image": PHOTO}, data={"style": slug, "size": str(size)}, timeout=120)


def lines(server: Server) -> list[dict]:
    """What the services have logged: BentoML's supervisor says its own before ours begin."""
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def test_a_server_with_keys_and_limits(fast_model, vgg19_weights, tmp_path):
    slug, models, source = fast_model.card.slug, tmp_path / "models", tmp_path / "source"
    models.mkdir()
    coming = write_negative(source, "coming")
    key = keys.add(tmp_path / "keys.json", "alice", rate=100_000, burst=10_000)
    environment = {
        "LIENZO_KEYS": str(tmp_path / "keys.json"),
        "LIENZO_LOG": "json",
        "LIENZO_BODY_SECONDS": "3",
        "LIENZO_RELOAD": "0.5",
    }
    with served(tmp_path, ["--models", str(models)], environment) as server, ThreadPoolExecutor(3) as pool:
        client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)

        def styles() -> dict[str, str]:
            return {card["slug"]: card["name"] for card in client.get("/v1/styles").json()}

        # Who has no key sees the page and nothing else.
        assert httpx.get(f"{server.url}/v1/styles").status_code == 401
        assert httpx.get(f"{server.url}/").status_code == 200
        assert slug in styles()

        # A body that trickles has its time.
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            head = f"POST /v1/text_to_art HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: 500\r\n\r\n{{"
            slow.sendall(head.encode())
            began = time.monotonic()
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
            assert 2.5 < time.monotonic() - began < 20

        # Who leaves is noted.
        form = httpx.Request("POST", server.url, files={"image": PHOTO}, data={"style": slug, "size": "700"})
        sent = {name: form.headers[name] for name in ("Content-Type", "Content-Length")}
        sent |= {"Host": "x", "X-API-Key": key, "X-Request-ID": "who-left"}
        head = "POST /v1/stylize HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        with socket.create_connection((host, int(port)), timeout=30) as leaving:
            leaving.sendall(f"{head}\r\n".encode() + form.read())
            until(lambda: 'lienzo_in_flight{engine="fast",service="TextToArt"} 1.0' in client.get("/metrics").text)
        access = {"request": "who-left", "message": "answered"}.items()
        (line,) = until(lambda: [line for line in lines(server) if access <= line.items()])
        assert line["left"] is True and line["key"] == "alice" and line["route"] == "/v1/stylize"
        assert 'lienzo_departures_total{route="/v1/stylize",service="TextToArt"} 1.0' in client.get("/metrics").text

        # Models come, change and go under load, and no painting fails.
        statuses, loading = [], True

        def load() -> None:
            while loading:
                statuses.append(stylize(client, slug).status_code)
                if "coming" in styles():
                    statuses.append(stylize(client, "coming").status_code)

        loads = [pool.submit(load) for _ in range(2)]
        network = (coming / "model.onnx").read_bytes()
        (models / "coming").mkdir()
        (models / "coming" / "model.onnx").write_bytes(network[:50])
        shutil.copy(coming / "card.json", models / "coming")
        until(lambda: "coming" in client.get("/v1/health").json()["refused"])
        assert "coming" not in styles()
        (models / "coming" / "model.onnx").write_bytes(network)
        until(lambda: styles().get("coming") == "A Test")
        write_card(models / "coming", read_raw_card(coming) | {"name": "A new one"})
        until(lambda: styles()["coming"] == "A new one")
        shutil.rmtree(models / "coming")
        until(lambda: "coming" not in styles())
        loading = False
        for each in loads:
            each.result()
        assert set(statuses) == {200} and len(statuses) > 5

        # What is asked of a server that lacks a folder is answered, but it is not ready.
        models.rename(tmp_path / "unmounted")
        answer = until(lambda: (a := client.get("/readyz")).status_code == 503 and a)
        assert answer.json()["error"]["code"] == "model_refused" and "'models' is gone" in answer.text
        assert str(tmp_path) not in answer.text and client.get("/livez").status_code == 200
        assert stylize(client, slug).status_code == 200
        (tmp_path / "unmounted").rename(models)
        assert client.get("/readyz").status_code == 200

        # The end: what runs is finished, and what is new sent away.
        running = pool.submit(stylize, client, slug, 1400)
        until(lambda: 'lienzo_in_flight{engine="fast",service="TextToArt"} 1.0' in client.get("/metrics").text)
        family = [server.process, *server.process.children(recursive=True)]
        server.process.send_signal(signal.SIGTERM)
        refused = until(lambda: (a := client.get("/v1/styles")).status_code != 200 and a, 30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) > 0
        assert running.result().status_code == 200
        _, left = psutil.wait_procs(family, timeout=40)
        assert left == [] and server.process.returncode == 0
        assert not [line for line in lines(server) if line["level"] == "ERROR" and "refused" not in line["message"]]


def test_a_server_that_lacks_its_index_stays_says_so_and_recovers(fast_model, vgg19_weights, tmp_path):
    index = tmp_path / "the-index"
    index.mkdir()
    (index / "index.json").write_bytes(b"nothing of the kind")
    environment = {"LIENZO_GALLERY_INDEX": str(index), "LIENZO_DEVICE": "cpu"}
    with served(tmp_path, environment=environment, program="bentoml", probe="/livez") as server:
        client = httpx.Client(base_url=server.url, timeout=60)
        answer = until(lambda: (a := client.get("/readyz")).json()["error"]["code"] == "gallery_error" and a, 120)
        assert answer.status_code == 503 and "the-index" in answer.text and str(tmp_path) not in answer.text
        assert int(answer.headers["retry-after"]) > 0
        searched = client.post("/v1/retrieve/content", json={"title": "boat"})
        assert (searched.status_code, searched.json()["error"]["code"]) == (503, "gallery_error")
        until(lambda: client.get("/v1/styles").status_code == 200)
        assert stylize(client, fast_model.card.slug).status_code == 200, "what needs no gallery works"
        workers = server.workers()

        shutil.copytree(INDEXES / "met", index, dirs_exist_ok=True)
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/retrieve/content", json={"title": "boat"}).status_code == 200
        assert {worker.pid for worker in server.workers().values()} == {worker.pid for worker in workers.values()}

        # Killed without a word, the supervisor leaves nobody behind.
        server.process.kill()
        _, left = psutil.wait_procs(list(workers.values()), timeout=40)
        assert left == [], [process.cmdline() for process in left]


def test_cuda_that_cannot_be_had_is_refused_before_anything_starts(tmp_path):
    environment = os.environ | {"LIENZO_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "", "BENTOML_HOME": str(tmp_path)}
    command = [SCRIPTS / "bentoml", "serve", "--port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "device 'cuda' was asked for, but PyTorch sees no CUDA GPU: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
