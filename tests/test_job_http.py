"""Optimisations as jobs over HTTP, on servers that were really started."""

from __future__ import annotations

import io
import json
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime

import httpx
import picture_corpus as pictures
import pytest
from PIL import Image
from scenes import hills, strokes
from serving import served, stop

from services.jobs import MOST_LOSSES

pytestmark = pytest.mark.slow

OUTSIDE = "met-437344"
"""A picture of a style that no network knows."""
QUEUE = 4
LONG = {"size": 384, "steps": 500}
"""Settings of a job that does not end by itself while a test runs."""


@pytest.fixture
def client(server_url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=120) as client:
        yield client


def submit(client: httpx.Client, *, size: int = 64, steps: int = 2, path="/v1/optimize", headers=None, **fields):
    files = {"image": pictures.save(hills(128, 96), "PNG"), "style_image": pictures.save(strokes(96, 96), "PNG")}
    data = {"size": size, "steps": steps, **fields}
    return client.post(path, files=files, data=data, headers=headers)


def submitted(client: httpx.Client, **fields) -> str:
    """The address of a new job."""
    answer = submit(client, **fields)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def until(client: httpx.Client, address: str, *states: str, step: int = 0, seconds: float = 60) -> dict:
    """The job, when it has come into one of these states and to that step."""
    end = time.monotonic() + seconds
    while (job := client.get(address).json())["state"] not in states or job["step"] < step:
        assert time.monotonic() < end, job
        assert job["state"] in ("queued", "running"), job
        time.sleep(0.1)
    return job


def refused(answer: httpx.Response, status: int, code: str, field: str | None = None) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == (code, field) and error["message"] and error["hint"]
    return error


def events(client: httpx.Client, address: str, last: str | None = None, most: int = 10_000) -> list[dict]:
    """What a job's stream says until it ends, or the first ``most`` events: id, event, data."""
    said, current = [], {}
    with client.stream("GET", f"{address}/events", headers={"last-event-id": last} if last else {}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                current[name] = json.loads(value) if name == "data" else value
            elif not line and current:
                said.append(current)
                current = {}
                if len(said) == most:
                    break
    return said


def test_a_job_from_its_submission_to_its_painting(client):
    answer = submit(client, steps=3, format="jpeg", seed=5)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["status"] == f"/v1/jobs/{job['id']}"
    assert re.fullmatch(r"[A-Za-z0-9_-]{20,}", job["id"])
    assert (job["state"], job["position"], job["step"], job["steps"], job["losses"]) == ("queued", 1, 0, 3, [])
    assert datetime.fromisoformat(job["created"]).utcoffset().total_seconds() == 0

    job = until(client, job["links"]["status"], "done")
    assert (job["position"], job["step"], job["error"], job["links"]["preview"]) == (None, 3, None, None)
    assert 1 <= len(job["losses"]) <= MOST_LOSSES and job["losses"][-1]["step"] == 3
    assert set(job["losses"][0]) == {"step", "content", "style", "tv", "total"}
    assert job["created"] <= job["started"] <= job["ended"]

    result = client.get(job["links"]["result"])
    assert result.status_code == 200 and result.headers["content-type"] == "image/jpeg"
    painting = Image.open(io.BytesIO(result.content))
    assert painting.size == (64, 48)
    recipe = json.loads(painting.getexif()[270])
    expected = {"Software": "Lienzo", "Content": "upload", "Style": "upload", "Engine": "optimize"}
    assert recipe == expected | {"Size": "64", "Strength": "1", "Steps": "3", "Seed": "5"}
    headers = result.headers
    assert (headers["lienzo-engine"], headers["lienzo-steps"], headers["lienzo-style"]) == ("optimize", "3", "upload")
    assert float(headers["lienzo-model-distance"]) > 0 and headers["lienzo-provider"]
    timing = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    assert {"queue", "paint", "decode", "network", "encode"} <= set(timing)
    assert float(timing["paint"]) >= float(timing["network"]) > 0


def test_a_painting_that_is_waited_for_is_the_jobs(client):
    waited = submit(client, path="/v1/stylize", engine="optimize")
    job = until(client, submitted(client), "done")
    fetched = client.get(job["links"]["result"])
    asked = submit(client, headers={"prefer": "wait=60"})
    assert [answer.status_code for answer in (waited, fetched, asked)] == [200] * 3
    assert asked.headers["preference-applied"] == "wait=60"
    assert waited.content == fetched.content == asked.content
    ours = {name for name in waited.headers if name.startswith("lienzo-")}
    assert ours == {name for name in fetched.headers if name.startswith("lienzo-")}


def test_who_does_not_want_to_wait_gets_the_jobs_address(client):
    asked = {"content_id": "met-436947", "style_id": OUTSIDE, "size": 64, "steps": 2, "engine": "optimize"}
    for wish in ("wait=0", "respond-async"):
        answer = client.post("/v1/text_to_art", json=asked, headers={"prefer": wish})
        assert answer.status_code == 202 and answer.headers["preference-applied"] == wish
        until(client, answer.headers["location"], "done")
        result = client.get(f"{answer.headers['location']}/result")
        assert (result.headers["lienzo-content"], result.headers["lienzo-style"]) == ("met-436947", OUTSIDE)
        assert result.headers["lienzo-content-title"] == "Boating"
        assert 0 < float(result.headers["lienzo-style-distance"]) < 2
    # What a network paints is not worth a job.
    quick = client.post("/v1/text_to_art", json=asked | {"engine": "fast"}, headers={"prefer": "wait=0"})
    assert quick.status_code == 200 and quick.headers["lienzo-engine"] == "fast"


def test_a_bad_picture_is_refused_when_it_is_submitted(client):
    style, text = pictures.save(strokes(96, 96), "PNG"), b"words, no picture"
    for files, field in (
        ({"image": text, "style_image": style}, "image"),
        ({"image": style, "style_image": text}, "style_image"),
    ):
        refused(client.post("/v1/optimize", files=files), 415, "not_a_picture", field)
    ribbon = pictures.save(hills(600, 20), "PNG")
    answer = client.post("/v1/optimize", files={"image": ribbon, "style_image": style}, data={"size": 128})
    refused(answer, 422, "invalid_input", "image")


def test_events_tell_everything_once_and_end_with_the_job(client):
    address = submitted(client, size=128, steps=60)
    first = events(client, address, most=3)
    assert first[0]["event"] == "state" and first[0]["data"]["state"] in ("queued", "running")
    seen = first[-1]["id"]
    rest = events(client, address, last=seen)
    # Gone and come back: no loss is told twice, none is left out.
    told = [point["step"] for event in first + rest for point in event["data"]["losses"]]
    job = client.get(address).json()
    assert told == sorted(set(told)) and set(told) >= {point["step"] for point in job["losses"]}
    last = rest[-1]
    assert (last["event"], last["data"]["state"], last["data"]["step"]) == ("state", "done", 60)
    assert {"progress"} <= {event["event"] for event in first + rest}
    previews = [event["data"]["links"]["preview"] for event in first + rest]
    assert any(previews) and previews[-1] is None

    # A browser comes back by itself when a stream ends; who knows the end already is told to stay away.
    again = client.get(f"{address}/events", headers={"last-event-id": last["id"]})
    assert (again.status_code, again.content) == (204, b"")
    assert [event["data"]["state"] for event in events(client, address, last="nonsense")] == ["done"]


def test_a_cancelled_job_stops_its_work_and_makes_place(client):
    running = submitted(client, **LONG)
    waiting = [submitted(client, **LONG) for _ in range(QUEUE - 1)]
    until(client, running, "running", step=1)
    assert [client.get(address).json()["position"] for address in (running, *waiting)] == [0, 1, 2, 3]
    error = refused(client.get(f"{running}/result"), 409, "job_unfinished", "id")
    assert "of 500" in error["message"]

    preview = client.get(client.get(running).json()["links"]["preview"])
    assert preview.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(preview.content)).size == (256, 192)

    full = submit(client)
    assert "4 optimisations" in refused(full, 429, "busy")["message"]
    assert 1 <= int(full.headers["retry-after"]) <= 120
    full = submit(client, path="/v1/stylize", engine="optimize")
    refused(full, 429, "busy")
    instant = submit(client, path="/v1/stylize", engine="instant")
    assert instant.status_code == 200, "whatever needs no job does not care"

    for address in (*waiting, running):
        assert client.delete(address).json()["state"] == "cancelled"
        refused(client.get(f"{address}/result"), 410, "job_gone", "id")
        assert client.delete(address).json()["state"] == "cancelled"
    began = time.monotonic()
    until(client, submitted(client), "done")
    assert time.monotonic() - began < 60, "or the cancelled one is still being painted"


def test_a_client_that_leaves_cancels_the_job_that_only_it_knew(client):
    with pytest.raises(httpx.ReadTimeout):
        client.post(
            "/v1/text_to_art",
            json={"content_id": "met-436947", "style_id": OUTSIDE, "engine": "optimize", **LONG},
            timeout=3,
        )
    began = time.monotonic()
    until(client, submitted(client), "done")
    assert time.monotonic() - began < 60


def test_unknown_jobs_are_not_found(client):
    for path in ("", "/result", "/preview", "/events"):
        refused(client.get(f"/v1/jobs/nobody{path}"), 404, "not_found", "id")
    refused(client.delete("/v1/jobs/nobody"), 404, "not_found", "id")
    refused(client.get("/v1/jobs/%20"), 422, "invalid_input", "id")
    assert "DELETE, GET" in refused(client.post("/v1/jobs/nobody"), 405, "method_not_allowed")["message"]


def test_jobs_outlive_the_server(fast_model, tmp_path):
    options, file = ["--models", str(fast_model.folder.parent)], tmp_path / "state" / "jobs.sqlite3"

    def stored(query: str, *values: str) -> int | None:
        with closing(sqlite3.connect(file)) as db, db:
            row = db.execute(query, values).fetchone()
        return row and row[0]

    with served(tmp_path, options) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        done = submitted(client)
        until(client, done, "done")
        painting = client.get(f"{done}/result").content

        # The server is stopped in the middle of a job, while somebody waits, and somebody listens.
        running, waiting = submitted(client, **LONG), submitted(client)
        until(client, running, "running", step=1)
        with ThreadPoolExecutor(1) as pool, client.stream("GET", f"{running}/events") as listening:
            waited = pool.submit(submit, client, path="/v1/stylize", engine="optimize")
            while stored("SELECT count(*) FROM jobs WHERE state = 'queued'") < 2:
                time.sleep(0.1)
            assert stop(server, signal.SIGTERM) == []
            assert listening.read().decode().count("event: state") >= 1
            assert waited.result().status_code == 202
        assert "Traceback" not in server.log.read_text(errors="replace")

    # Another one is started in its place.
    with served(tmp_path, options) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get(done).json()["state"] == "done"
        assert client.get(running).json()["state"] in ("queued", "running")
        assert client.get(waiting).json()["state"] == "queued"
        client.delete(running)
        for address in (waiting, waited.result().headers["location"]):
            until(client, address, "done")
            assert client.get(f"{address}/result").content == painting, "the same as before"

        # An hour and more passes.
        id = done.split("/")[-1]
        stored("UPDATE jobs SET ended = ended - 4000 WHERE id = ?", id)
        assert client.get(done).json()["state"] == "expired"
        refused(client.get(f"{done}/result"), 410, "job_gone", "id")
        end = time.monotonic() + 60
        while stored("SELECT count(*) FROM pictures WHERE job = ?", id):
            assert time.monotonic() < end, "its picture is never thrown away"
            time.sleep(0.2)
        assert "Traceback" not in server.log.read_text(errors="replace")
