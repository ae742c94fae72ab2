"""What an operator lives with: keys, limits, logs, metrics, health, models that come and go. A few things here are
asked of a server that was really started, in test_http.py and test_server.py."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import picture_corpus as pictures
import psutil
import pytest
from models import read_raw_card, write_card, write_negative
from opentelemetry import context, propagate, trace
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from typer.testing import CliRunner

from services import access, engines, health, http_errors, job_http, keys, lifecycle, logs, memory, metrics, tracing
from services.cli import app as command_line
from services.http import create_app
from services.jobs import JobStore
from services.keys import KeyRing, KeysUnreadable, TokenBucket
from services.limits import BodyLimit
from services.messages import Busy, TimedOut, Unreachable, answers, call
from services.pipeline import Outcome
from services.request_facts import Facts, current, note
from services.responses import painting
from services.retriever import Retriever
from services.settings import settings
from services.stylizer import Stylizer
from shared import onnx_runtime
from shared.errors import EngineUnavailable, GalleryError, InvalidInput, NotFound, WeightsUnavailable
from shared.fast_models import MODEL_FILE, Changes, ModelLibrary
from shared.files import sha256
from shared.images import encode

ROOT = Path(__file__).parents[1]
FORM = {"code", "message", "hint", "field"}


@pytest.fixture
def environment(monkeypatch):
    """Settings of one's own: ``LIENZO_*`` variables that are set here are read anew."""
    for name in list(os.environ):
        if name.startswith("LIENZO_") and name not in ("LIENZO_CACHE", "LIENZO_WEIGHTS"):
            monkeypatch.delenv(name)

    def set_variables(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"LIENZO_{name.upper()}", str(value))
        settings.cache_clear()

    set_variables()
    yield set_variables
    settings.cache_clear()


class Gateway(SimpleNamespace):
    """Services in this process behind the application: the Stylizer's catalogue is asked, nothing is painted."""

    def __init__(self, **parts: object):
        slugs = SimpleNamespace(styles=lambda: {"ok": {"cards": [], "provider": "P", "refused": []}})
        super().__init__(stylizer=slugs, optimize_device="cpu", **parts)

    async def check(self) -> None:
        raise Unreachable("the Stylizer is not ready: it lacks something.", code="model_refused")

    async def counts(self) -> bytes:
        return metrics.joined({"TextToArt": metrics.exposition()})


def client_of(**arguments: object) -> TestClient:
    return TestClient(create_app(Gateway), raise_server_exceptions=False, **arguments)


def counted(text: str, name: str, **labels: str) -> float:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def counted_here(name: str, **labels: str) -> float:
    return counted(metrics.exposition().decode(), name, **labels)


def refusal(answer, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == FORM and answer.json()["error"]["code"] == code
    return answer.json()["error"]


# Settings


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"size": 3000}, "LIENZO_SIZE is 3000, more than LIENZO_MAX_SIZE, which is 2048."),
        ({"size": 1500}, "LIENZO_SIZE is 1500, more than LIENZO_MAX_OPTIMIZE_SIZE, which is 1024."),
        ({"steps": 9, "max_steps": 8}, "LIENZO_STEPS is 9, more than LIENZO_MAX_STEPS, which is 8."),
        ({"cors_origins": "https://a.org, *"}, "'*' is no origin"),
        ({"cors_origins": "https://a.org/path"}, "'https://a.org/path' is no origin"),
        ({"metrics": "loud"}, "LIENZO_METRICS is 'loud'"),
        ({"log": "xml"}, "LIENZO_LOG is 'xml'"),
        ({"fast_queue": 0}, "LIENZO_FAST_QUEUE is '0'"),
    ],
)
def test_settings_that_contradict_each_other_or_say_nothing_are_refused(environment, variables, complaint):
    environment(**variables)
    with pytest.raises(InvalidInput) as caught:
        settings()
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_gateway_waits_for_the_longest_painting_and_starts_only_where_it_can_keep_jobs(environment, tmp_path):
    (tmp_path / "file").write_text("no folder")
    environment(fast_seconds=900, body_seconds=10, state=tmp_path / "file" / "state")
    # In a process of its own: the gateway changes the services that are behind it.
    look = """
from services import text_to_art
from shared.errors import InvalidInput
print(text_to_art.TextToArt.config["traffic"]["timeout"])
try:
    text_to_art._check()
except InvalidInput as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=120)
    seconds, refused = done.stdout.strip().splitlines()
    assert float(seconds) == 10 + 120 + 900
    assert f"the state folder '{tmp_path}/file/state' cannot be used" in refused


# Keys


def test_a_key_is_shown_once_and_only_its_hash_is_kept(tmp_path):
    file = tmp_path / "keys.json"
    first, second = keys.add(file, "alice"), keys.add(file, "bob", rate=6, burst=2)
    assert first != second and len(first) > 43
    assert first not in file.read_text() and second not in file.read_text()
    assert [(key.name, key.rate, key.burst) for key in keys.read(file)] == [("alice", None, None), ("bob", 6, 2)]
    keys.remove(file, "alice")
    assert [key.name for key in keys.read(file)] == ["bob"]
    for name in ("bob", "two words", "", "x" * 65):
        with pytest.raises(InvalidInput) as caught:
            keys.add(file, name)
        assert caught.value.field == "name"
    with pytest.raises(NotFound):
        keys.remove(file, "alice")
    with pytest.raises(InvalidInput):
        keys.add(tmp_path / "nowhere" / "keys.json", "alice")


@pytest.mark.parametrize("content", [None, "", "{", '{"format": 2, "keys": []}', '{"keys": [{"name": "a"}]}'])
def test_a_file_that_holds_no_keys_is_refused_and_left_as_it_is(tmp_path, content):
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
        with pytest.raises(KeysUnreadable):
            keys.add(file, "alice")
        assert file.read_text() == content
    with pytest.raises(KeysUnreadable, match=r"keys\.json"):
        KeyRing(file, rate=60, burst=1)


def test_two_who_add_at_once_both_get_their_key(tmp_path):
    file = tmp_path / "keys.json"
    threads = [threading.Thread(target=keys.add, args=(file, f"user{i}")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in keys.read(file)} == {f"user{i}" for i in range(8)}


def test_a_running_server_takes_new_keys_and_drops_removed_ones(tmp_path):
    now, file = 0.0, tmp_path / "keys.json"
    alice = keys.add(file, "alice")
    ring = KeyRing(file, rate=60, burst=1, clock=lambda: now)
    assert ring.find(alice).name == "alice" and ring.find(alice + "x") is None and ring.find("") is None
    bob = keys.add(file, "bob")
    keys.remove(file, "alice")
    assert ring.find(bob) is None, "the file is not looked at for every request"
    now = 2.0
    assert ring.find(bob).name == "bob" and ring.find(alice) is None
    file.write_text("broken")
    now = 4.0
    assert ring.find(bob).name == "bob", "the last good file holds"


def test_a_token_bucket_lets_a_burst_through_and_then_its_rate():
    bucket = TokenBucket(rate=30, burst=3, now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0.0) == pytest.approx(2.0)
    assert bucket.take(1.0) == pytest.approx(1.0)
    assert bucket.take(2.0) == 0 and bucket.take(2.0) > 0
    assert [bucket.take(1000.0) for _ in range(4)][-1] > 0, "it holds no more than the burst"


def test_the_commands_make_list_and_remove_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("LIENZO_KEYS", str(tmp_path / "keys.json"))
    run = CliRunner().invoke
    made = run(command_line, ["keys", "add", "alice", "--rate", "6"])
    assert made.exit_code == 0
    key = made.stdout.strip().splitlines()[-1]
    assert KeyRing(tmp_path / "keys.json", rate=1, burst=1).find(key).name == "alice"
    listed = json.loads(run(command_line, ["keys", "list", "--json"]).stdout)
    assert [(row["name"], row["rate"]) for row in listed] == [("alice", 6)] and "sha256" not in listed[0]
    assert run(command_line, ["keys", "remove", "alice"]).exit_code == 0
    again = run(command_line, ["keys", "remove", "alice"])
    assert again.exit_code == 2
    monkeypatch.delenv("LIENZO_KEYS")
    assert run(command_line, ["keys", "list"]).exit_code == 2


@pytest.fixture
def guarded(environment, tmp_path):
    """A client of an application that wants keys, and the keys of two users; the second asks twice a minute."""
    file = tmp_path / "keys.json"
    alice, bob = keys.add(file, "alice"), keys.add(file, "bob", rate=2, burst=2)
    environment(keys=file)
    return client_of(), alice, bob


def test_without_a_good_key_everything_but_the_page_and_the_probes_is_refused(guarded):
    client, alice, _ = guarded
    for path in ("/v1/styles", "/v1/health", "/v1/nowhere", "/nowhere", "//v1/styles", "/v1/pictures/met-1"):
        answer = client.get(path)
        assert refusal(answer, 401, "unauthorized")["hint"]
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-content-type-options"] == "nosniff"
    for headers in (
        {"Authorization": "Bearer wrong"},
        {"Authorization": alice},
        {"Authorization": f"Basic {alice}"},
        {"X-API-Key": alice[:-1]},
        {"X-API-Key": "k" * 10_000},
    ):
        refusal(client.get("/v1/styles", headers=headers), 401, "unauthorized")
    for path in ("/", "/docs", "/openapi.json", "/web/icon.svg", "/swagger/swagger-ui.css", "/livez"):
        assert client.get(path).status_code == 200, path
    for headers in ({"Authorization": f"Bearer {alice}"}, {"authorization": f"bearer {alice}"}, {"X-API-Key": alice}):
        assert client.get("/v1/styles", headers=headers).status_code == 200


def test_pictures_behind_a_key_are_kept_by_the_client_alone(environment, tmp_path):
    retriever = SimpleNamespace(picture=lambda picture_id: {"ok": {"data": b"\xff\xd8"}})
    key = keys.add(tmp_path / "keys.json", "alice")

    def kept() -> str:
        client = TestClient(create_app(lambda: Gateway(retriever=retriever)))
        return client.get("/v1/pictures/met-1", headers={"X-API-Key": key}).headers["cache-control"]

    assert kept() == "public, max-age=86400"
    environment(keys=tmp_path / "keys.json")
    assert kept() == "private, max-age=86400"


def test_a_job_is_there_only_for_the_key_that_it_was_submitted_with(environment, tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    alice, bob = ({"X-API-Key": keys.add(file, name, rate=6000, burst=100)} for name in ("alice", "bob"))
    environment(keys=file)
    jobs = JobStore(tmp_path / "state", queue=4, ttl=60, most_seconds=60)
    submitted = [jobs.submit({"steps": 1, "size": 64}, b"c", b"s", {}, owner=owner).id for owner in ("alice", None)]
    client = TestClient(create_app(lambda: Gateway(jobs=jobs)))
    hers, anybodys = (f"/v1/jobs/{id}" for id in submitted)
    nobodys = client.get("/v1/jobs/nobody", headers=bob).json()["error"]["message"]
    for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/preview"), ("GET", "/events")):
        refused = refusal(client.request(method, hers + rest, headers=bob), 404, "not_found")
        assert refused["message"] == nobodys.replace("nobody", submitted[0]), "nothing tells that there is one"
    assert client.get(hers, headers=alice).json()["state"] == "queued"
    assert client.get(anybodys, headers=bob).status_code == 200
    assert client.delete(hers, headers=alice).json()["state"] == "cancelled"
    monkeypatch.delenv("LIENZO_KEYS")
    environment()
    assert TestClient(create_app(lambda: Gateway(jobs=jobs))).get(hers).status_code == 200, "no keys, no owners"


@pytest.fixture
def outcome() -> Outcome:
    """One that leaves the painting to the optimiser."""
    picture = encode(Image.new("RGB", (64, 64)))
    return Outcome("png", order={"content": picture, "style": picture, "size": 64, "steps": 1})


def test_a_submitted_job_is_its_keys(environment, tmp_path, outcome):
    store = JobStore(tmp_path, queue=4, ttl=60, most_seconds=60)
    for key, owner in (("alice", "alice"), ("", None)):
        token = current.set(Facts("id", "/v1/optimize", key=key))
        assert job_http._submit(store, outcome).owner == owner
        current.reset(token)


@pytest.mark.parametrize("wish", ["wait=0", "respond-async"])
def test_the_wish_that_was_granted_is_confirmed_as_it_was_asked(environment, tmp_path, outcome, wish):
    store = JobStore(tmp_path, queue=4, ttl=60, most_seconds=60)
    response = asyncio.run(job_http.answer(SimpleNamespace(), store, lambda: outcome, prefer=wish, wait=60))
    assert (response.status_code, response.headers["preference-applied"]) == (202, wish)


def test_a_files_tag_is_strong_only_where_it_comes_as_it_is(environment):
    client = client_of()
    plain, compressed = (
        client.get("/web/app.js", headers={"Accept-Encoding": accepted}) for accepted in ("identity", "gzip")
    )
    assert plain.headers["etag"].startswith('"') and compressed.headers["content-encoding"] == "gzip"
    assert compressed.headers["etag"] == f"W/{plain.headers['etag']}"
    for answer in (plain, compressed):
        known = client.get("/web/app.js", headers={"If-None-Match": answer.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")


def test_a_key_asks_no_more_often_than_it_may(guarded):
    client, alice, bob = guarded
    assert [client.get("/v1/styles", headers={"X-API-Key": bob}).status_code for _ in range(3)] == [200, 200, 429]
    answer = client.get("/v1/styles", headers={"X-API-Key": bob})
    refusal(answer, 429, "rate_limited")
    assert 25 <= int(answer.headers["retry-after"]) <= 30
    assert client.get("/v1/styles", headers={"X-API-Key": alice}).status_code == 200


def test_without_a_file_of_keys_everything_is_open(environment):
    assert client_of().get("/v1/styles").status_code == 200


def test_other_origins_may_ask_only_where_they_are_named(environment):
    ours, theirs = "https://gallery.example", "https://evil.example"
    wanted = "authorization, last-event-id, prefer"
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    assert "access-control-allow-origin" not in client_of().get("/v1/styles", headers={"Origin": ours}).headers
    environment(cors_origins=f"{ours}, http://localhost:8080")
    client = client_of()
    allowed = client.get("/v1/styles", headers={"Origin": ours})
    assert allowed.headers["access-control-allow-origin"] == ours
    exposed = allowed.headers["access-control-expose-headers"].split(", ")
    assert {"Lienzo-Engine", "Location", "Preference-Applied", "Retry-After"} <= set(exposed), "also what jobs need"
    asked = client.options("/v1/text_to_art", headers={"Origin": ours, **preflight})
    assert asked.status_code == 200 and set(wanted.split(", ")) <= set(
        asked.headers["access-control-allow-headers"].lower().split(", ")
    )
    assert "access-control-allow-origin" not in client.get("/v1/styles", headers={"Origin": theirs}).headers
    assert client.options("/v1/text_to_art", headers={"Origin": theirs, **preflight}).status_code == 400


# Limits


def test_an_engine_refuses_what_is_beyond_its_limit_and_nothing_else(environment):
    environment(fast_queue=2, instant_queue=1)
    with engines.at_work("fast"), engines.at_work("fast"):
        with pytest.raises(Busy, match="2 requests for fast"), engines.at_work("fast"):
            pass
        with engines.at_work("instant"), engines.at_work(engines.RETRIEVAL), engines.at_work("optimize"):
            assert counted_here("lienzo_in_flight", engine="fast") == 2
    with pytest.raises(ZeroDivisionError), engines.at_work("instant"):
        raise ZeroDivisionError
    with engines.at_work("instant"), engines.at_work("fast"):
        pass
    assert counted_here("lienzo_in_flight") == 0


def test_a_service_that_takes_too_long_is_told_apart_from_one_that_failed():
    from bentoml.exceptions import BentoMLException

    def method() -> None:
        raise BentoMLException("Not able to process the request in 1 seconds", error_code=504)

    with pytest.raises(TimedOut) as caught:
        call(method)
    assert (caught.value.code, health.unready(caught.value).code) == ("timed_out", "timed_out")


def test_a_body_that_trickles_is_refused_when_its_time_is_over():
    said, began = [], time.monotonic()

    async def app(scope, receive, send):
        raise AssertionError("the application is not asked")

    async def trickle():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(BodyLimit(app, most=10_000, seconds=0.2)(scope, trickle, send))
    assert time.monotonic() - began < 2
    assert said[0]["status"] == 408 and (b"connection", b"close") in said[0]["headers"]
    assert json.loads(said[1]["body"])["error"]["code"] == "body_too_slow"


# Requests seen


def answered(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == "answered"]


def test_a_request_has_one_line_with_its_route_and_never_its_path(environment, caplog):
    caplog.set_level(logging.INFO)
    client = client_of()
    client.get("/v1/styles")
    client.post("/v1/styles")
    client.get("/v1/pictures/%0aforged%1b[31m")
    client.get("/%0aforged/anything")
    client.get("/web/icon.svg")
    client.request("BREW", "/v1/styles")
    seen = [(record.method, record.route, record.status) for record in answered(caplog)]
    assert seen == [
        ("GET", "/v1/styles", 200),
        ("POST", "/v1/styles", 405),
        ("GET", "/v1/pictures/{id}", 422),
        ("GET", "other", 404),
        ("GET", "/web", 200),
        ("other", "/v1/styles", 405),
    ]
    assert all(record.milliseconds >= 0 for record in answered(caplog))
    assert answered(caplog)[0].bytes == 2
    text = metrics.exposition().decode()
    ours = [vars(record) for record in caplog.records if record.name.startswith("services.")]
    assert "forged" not in str(ours) and "forged" not in text
    assert counted(text, "lienzo_requests_total", route="other", status="404") >= 1
    assert counted(text, "lienzo_refusals_total", code="method_not_allowed") >= 1


def test_a_bugs_answer_has_its_id_its_headers_and_one_line(environment, caplog):
    caplog.set_level(logging.INFO)
    app = create_app(Gateway)

    @app.get("/v1/broken")
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    app.router.routes.insert(0, app.router.routes.pop())  # before the route that takes everything
    answer = TestClient(app).get("/v1/broken", headers={"X-Request-ID": "abc"})
    refusal(answer, 500, "bug")
    assert answer.headers["x-request-id"] == "abc" and answer.headers["x-frame-options"] == "DENY"
    (record,) = answered(caplog)
    assert (record.route, record.status, record.code) == ("/v1/broken", 500, "bug")
    assert sum("an unforeseen error" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "ä", "a;b", "../x"])
def test_an_id_that_is_not_well_formed_is_replaced(environment, given):
    answer = client_of().get("/v1/styles", headers={"X-Request-ID": given.encode()})
    assert tracing.REQUEST_ID.fullmatch(answer.headers["x-request-id"]) and answer.headers["x-request-id"] != given


def test_two_requests_have_two_ids(environment):
    client = client_of()
    assert client.get("/livez").headers["x-request-id"] != client.get("/livez").headers["x-request-id"]


def test_the_id_goes_along_to_other_services_and_a_strangers_baggage_does_not(environment):
    carried = {}

    class Asked(Gateway):
        def __init__(self):
            super().__init__()
            self.stylizer.styles = self.styles

        def styles(self) -> dict:
            propagate.inject(carried)  # what BentoML's client does for each call
            return {"ok": {"cards": [], "provider": "", "refused": []}}

    client = TestClient(create_app(Asked))
    client.get("/v1/styles", headers={"X-Request-ID": "abc.1", "baggage": "lienzo-request=evil,more=evil"})
    assert carried["baggage"] == f"{tracing.BAGGAGE}=abc.1"
    first = carried["traceparent"]
    # The event loop may start a request in the context of an earlier one on the same connection.
    stale = trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(7, 7, is_remote=False)))
    token = context.attach(stale)
    try:
        client.get("/v1/styles", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
        assert "0af7651916cd43dd8448eb211c80319c" in carried["traceparent"]
        client.get("/v1/styles")
    finally:
        context.detach(token)
    assert carried["traceparent"] != first and f"{7:032x}" not in carried["traceparent"]


@pytest.mark.parametrize(
    ("carried", "expected"), [("lienzo-request=abc.1", "abc.1"), ("lienzo-request=a%20b", ""), ("", "")]
)
def test_a_service_takes_up_the_id_that_was_handed_on(carried, expected):
    with tracing.request_from_inside(Headers({"baggage": carried})):
        assert logs.request_id.get() == expected and len(logs.trace_id()) == 32
    assert logs.request_id.get() == "" and logs.trace_id() == ""


def test_a_client_that_leaves_is_noted(environment, caplog):
    caplog.set_level(logging.INFO)
    app, gone = create_app(Gateway), asyncio.Event()

    @app.post("/v1/slow")
    async def slow() -> str:
        gone.set()
        await asyncio.sleep(0.05)
        return "done"

    app.router.routes.insert(0, app.router.routes.pop())
    sent = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        if message := next(sent, None):
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {
        "type": "http", "method": "POST", "path": "/v1/slow", "raw_path": b"/v1/slow", "root_path": "",
        "scheme": "http", "query_string": b"", "headers": [], "http_version": "1.1", "server": ("x", 80),
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    before = counted_here("lienzo_departures_total")
    asyncio.run(app(scope, receive, send))
    (record,) = answered(caplog)
    assert record.left is True
    assert counted_here("lienzo_departures_total") == before + 1
    client_of().get("/v1/styles")
    assert answered(caplog)[-1].left == ""


def test_a_server_that_stops_takes_nothing_new_and_says_when_to_come_back(environment, monkeypatch):
    environment(cors_origins="https://art.example")
    running = access.Running()
    monkeypatch.setattr(access, "running", running)
    monkeypatch.setattr("services.http.running", running)
    client = client_of()
    assert client.get("/v1/styles").status_code == 200
    running.enter()
    running.draining.set()
    answer = client.get("/v1/styles", headers={"Origin": "https://art.example"})
    refusal(answer, 503, "stopping")
    assert answer.headers["access-control-allow-origin"] == "https://art.example", "a page there may read it"
    assert int(answer.headers["retry-after"]) > 0 and answer.headers["connection"] == "close"
    assert client.get("/livez").status_code == 200
    refusal(client.get("/readyz"), 503, "stopping")
    assert not running.wait_until_none(0.01)
    threading.Timer(0.05, running.leave).start()
    assert running.wait_until_none(5)


# Logs


def formatted(formatter: logging.Formatter, message: str, *args: object, **extra: object) -> str:
    record = logging.makeLogRecord({"name": "services.x", "levelname": "ERROR", "msg": message, "args": args, **extra})
    return formatter.format(record)


HOSTILE = "a\nb\rc\x1b[31m\u2028d\x85e\x00"


def test_a_job_goes_back_to_the_queue_before_the_gateway_is_waited_for(environment, monkeypatch):
    environment(shutdown_seconds=7)
    done, finishes = [], []
    monkeypatch.setattr(lifecycle, "end_gracefully", finishes.append)
    monkeypatch.setattr(lifecycle.Family, "watch", lambda self: None)
    monkeypatch.setattr(lifecycle.Family, "wait_for_gateway", lambda self, seconds: done.append(("waited", seconds)))
    optimizer = SimpleNamespace(hand_back=lambda seconds: done.append(("handed back", seconds)))
    lifecycle._starter("Optimizer", "TextToArt")(optimizer)
    lifecycle._starter("Stylizer", "TextToArt")(SimpleNamespace())
    for finish in finishes:
        finish()
    assert done == [("handed back", 7), ("waited", 12), ("waited", 12)]


def test_json_lines_are_one_object_each_with_the_request():
    token = logs.request_id.set("abc")
    try:
        line = formatted(logs.JsonFormatter("Stylizer"), "it said %r", HOSTILE, route=HOSTILE, engine="", status=200)
    finally:
        logs.request_id.reset(token)
    assert line.isascii() and line.isprintable()
    read = json.loads(line)
    assert (read["process"], read["request"], read["status"]) == ("Stylizer", "abc", 200)
    assert read["route"] == HOSTILE and "engine" not in read and "trace" not in read
    assert read["time"].endswith("Z") and read["message"].startswith("it said")


def test_text_lines_cannot_be_forged():
    formatter = logs.TextFormatter("Stylizer")
    line = formatted(formatter, "it said %s", HOSTILE, route=HOSTILE)
    assert line.isprintable() and line.isascii() and r"a\nb\rc\x1b[31m\u2028d\x85e\x00" in line
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z INFO forged")
    except ValueError:
        line = formatted(formatter, "failed", exc_info=sys.exc_info())
    first, *rest = line.split("\n")
    assert first.endswith("failed") and rest and all(row.startswith("    ") for row in rest)


def test_accents_stay_legible_in_text():
    assert logs.printable("Étude «añil» 波") == "Étude «añil» 波"


def test_notes_outside_of_a_request_go_nowhere():
    note(engine="fast")
    token = current.set(Facts("id", "/"))
    note(engine="fast", model="udnie")
    assert (current.get().engine, current.get().model) == ("fast", "udnie")
    current.reset(token)


# Metrics


def test_a_distance_is_counted_once_however_often_its_painting_is_fetched():
    before = counted_here("lienzo_retrieval_distance_count", of="content")
    outcome = Outcome("png", engine="optimize", content_distance=0.25)
    asyncio.run(job_http.answer(None, None, lambda: outcome, prefer=None, wait=0))
    for _ in range(2):
        painting(outcome)
    assert counted_here("lienzo_retrieval_distance_count", of="content") == before + 1


def test_metrics_of_several_processes_are_joined_and_the_missing_named():
    metrics.models.set(2)
    text = metrics.joined({"A": metrics.exposition(), "B": metrics.exposition(), "C": None}).decode()
    assert counted(text, "lienzo_models") == 4 and counted(text, "lienzo_models", service="A") == 2
    assert [counted(text, "lienzo_up", service=name) for name in "ABC"] == [1, 1, 0]
    assert text.count("# TYPE lienzo_models gauge") == 1


@pytest.mark.parametrize(
    ("readers", "host", "status"),
    [
        ("local", "127.0.0.1", 200),
        ("local", "::1", 200),
        ("local", "192.0.2.7", 404),
        ("local", "somewhere", 404),
        ("on", "192.0.2.7", 200),
        ("off", "127.0.0.1", 404),
    ],
)
def test_metrics_are_for_those_who_may_read_them(environment, readers, host, status):
    environment(metrics=readers)
    assert client_of(client=(host, 1)).get("/metrics").status_code == status


def test_counting_needs_no_disk(tmp_path):
    """prometheus_client would map files into the folder that BentoML names, and die with SIGBUS on a full disk."""
    code = "from services import metrics; metrics.models.set(1); print(metrics.exposition().decode())"
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert counted(told.stdout, "lienzo_models") == 1
    assert list(tmp_path.iterdir()) == []


# Health


def test_livez_says_that_the_process_answers_and_readyz_why_it_is_not_ready(environment):
    client = client_of()
    assert client.get("/livez").status_code == client.get("/healthz").status_code == 200
    assert "lacks something" in refusal(client.get("/readyz"), 503, "model_refused")["message"]


class Flawed:
    """A service that lacks what it needs until it is there."""

    lacks: Exception | None = GalleryError("the index '/secret/place/met.index' cannot be read.", hint="Do '/a/b'.")

    def __init__(self) -> None:
        if self.lacks is not None:
            raise self.lacks
        self.value = 7

    def __is_ready__(self) -> bool:
        return True

    @answers
    def ask(self) -> int:
        return self.value


@pytest.fixture
def flawed(monkeypatch):
    monkeypatch.setattr(Flawed, "__init__", health.survives(Flawed.__init__))
    monkeypatch.setattr(Flawed, "revive", health.revive, raising=False)
    return Flawed


@pytest.mark.parametrize("lacks", [Flawed.lacks, OSError(28, "No space left on device")])
def test_a_service_that_lacks_something_stays_says_so_and_tries_again(flawed, monkeypatch, caplog, lacks):
    monkeypatch.setattr(flawed, "lacks", lacks)
    service = flawed()
    for _ in range(2):
        with pytest.raises(Unreachable) as caught:
            call(service.ask)
        assert "/secret" not in str(caught.value) and type(caught.value) is Unreachable
        with pytest.raises(Unreachable):
            health.is_ready(service)
    assert caplog.text.count("cannot work") == 1, "not at every request"
    monkeypatch.setattr(health, "TRY_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(flawed, "lacks", None)
    with pytest.raises(Unreachable):
        call(service.ask)
    until = time.monotonic() + 5
    while service.failure is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert call(service.ask) == 7 and health.is_ready(service)


def test_reasons_are_told_without_this_machines_folders():
    told = health.without_folders("the index '/var/lib/x y/met' and /a/b.json: see https://a.org/b, 1/2.")
    assert told == "the index 'met' and b.json: see https://a.org/b, 1/2."


def test_a_retriever_is_ready_only_with_its_pictures_and_weights(monkeypatch, tmp_path):
    def retriever(path: Path) -> SimpleNamespace:
        gallery = SimpleNamespace(pictures=[SimpleNamespace(path=path)])
        return SimpleNamespace(_encoder=None, _retrieval=SimpleNamespace(gallery=gallery))

    (tmp_path / "here").touch()
    monkeypatch.setattr("services.retriever.weights.locate", lambda name: tmp_path)
    assert Retriever.inner.__is_ready__(retriever(tmp_path / "here"))
    with pytest.raises(GalleryError):
        Retriever.inner.__is_ready__(retriever(tmp_path / "gone"))
    monkeypatch.setattr("services.retriever.weights.locate", lambda name: None)
    with pytest.raises(WeightsUnavailable):
        Retriever.inner.__is_ready__(retriever(tmp_path / "here"))


def test_a_corrupt_index_leaves_the_retriever_up_and_named(environment, tmp_path, monkeypatch):
    (tmp_path / "index.safetensors").write_bytes(b"nothing of the kind")
    environment(gallery_index=tmp_path / "index.safetensors", device="cpu")
    monkeypatch.setattr(Retriever.inner, "__init__", health.survives(Retriever.inner.__init__))
    monkeypatch.setattr(Retriever.inner, "revive", health.revive, raising=False)
    retriever = Retriever.inner()
    for ask in (lambda: call(retriever.content, title="boat", description="", k=1), lambda: health.is_ready(retriever)):
        with pytest.raises(Unreachable, match=r"^the gallery index 'index.safetensors' cannot be read") as caught:
            ask()
        assert caught.value.code == "gallery_error"
    client = TestClient(create_app(lambda: Gateway(retriever=retriever)))
    answer = client.post("/v1/retrieve/content", json={"title": "boat"})
    assert "'index.safetensors'" in refusal(answer, 503, "gallery_error")["message"]
    assert answer.headers["retry-after"] and str(tmp_path) not in answer.text


def test_where_the_disk_is_full_optimisations_are_refused_until_there_is_room(tmp_path, monkeypatch):
    parts = {
        "stylizer": SimpleNamespace(slugs=lambda: {"ok": []}, nearest=lambda **_: {"ok": None}),
        "retriever": SimpleNamespace(embed=lambda **_: {"ok": {"embedding": [0.0], "style_space": ""}}),
    }
    store = JobStore(tmp_path, queue=4, ttl=60, most_seconds=60)
    client = TestClient(create_app(lambda: SimpleNamespace(jobs=store, **parts)))
    files = dict.fromkeys(("image", "style_image"), pictures.save(pictures.noise(), "PNG"))
    connection = JobStore._connection

    def full(self) -> sqlite3.Connection:
        db = connection(self)
        db.execute("PRAGMA max_page_count = 1")  # as many as there are already
        return db

    with monkeypatch.context() as filled:
        filled.setattr(JobStore, "_connection", full)
        answer = client.post("/v1/optimize", files=files)
        assert refusal(answer, 503, "unreachable")["message"] == "no job can be kept now."
        assert answer.headers["retry-after"] and store.counts()["queued"] == 0
    assert JobStore(tmp_path, queue=4, ttl=60, most_seconds=60).counts()["queued"] == 0
    store = JobStore(tmp_path, queue=4, ttl=60, most_seconds=60)
    assert client.post("/v1/optimize", files=files).status_code == 202 and store.counts()["queued"] == 1


def test_a_network_that_is_not_here_stops_its_engine_alone(monkeypatch):
    monkeypatch.setattr("services.retriever.weights.locate", lambda name: None)
    lacking = SimpleNamespace(_decoder=None)
    with pytest.raises(EngineUnavailable, match="lienzo weights fetch adain-decoder") as caught:
        Retriever.inner._load_decoder(lacking)
    assert http_errors.status_of(caught.value) == http_errors.status_of(WeightsUnavailable("gone")) == 409


# What uploads leave behind


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_what_a_process_has_freed_is_handed_back(monkeypatch):
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.05)
    memory.keep_handing_back()
    before = resident()
    pieces = [bytearray(20_000) for _ in range(5_000)]  # too small to be mapped one by one
    time.sleep(0.2)  # so that the thread has been here, and could have thought that this is what is needed
    assert resident() > before + 90_000_000
    kept = pieces.pop()  # and what lies above the freed ones keeps them
    del pieces
    until = time.monotonic() + 10
    while resident() > before + 20_000_000 and time.monotonic() < until:
        time.sleep(0.05)
    assert resident() <= before + 20_000_000 and len(kept) == 20_000


# Models that come and go


def paint(library: ModelLibrary, slug: str) -> float:
    return float(library[slug].paint(np.full((1, 3, 32, 32), 0.25, np.float32)).mean())


def test_models_are_taken_replaced_and_removed_while_serving(tmp_path):
    opened = []
    library = ModelLibrary([tmp_path], prepare=lambda model: opened.append(model.running))
    assert not library.refresh() and library.models == {}
    folder = write_negative(tmp_path, "one")
    assert library.refresh() == Changes(added=("one",))
    assert paint(library, "one") == 0.75 and len(opened) == 1
    assert not library.refresh() and len(opened) == 1, "what did not change is not opened again"

    write_card(folder, read_raw_card(folder) | {"name": "Another name"})
    old = library["one"]
    assert library.refresh() == Changes(replaced=("one",))
    assert library["one"] is not old and library["one"].card.name == "Another name"
    assert float(old.paint(np.zeros((1, 3, 32, 32), np.float32)).mean()) == 1, "who has the old one paints on"

    shutil.rmtree(folder)
    assert not library.refresh(), "it may be in the middle of being replaced"
    assert library.refresh() == Changes(removed=("one",))
    assert library.models == {} and library.slugs == ["one"]
    assert paint(library, "one") == 0.75, "those who chose it a moment ago"
    library._retired = {"one": (library["one"], 0.0)}
    library.refresh()
    assert library.slugs == []
    with pytest.raises(NotFound):
        library["one"]


def test_a_half_copied_model_waits_and_the_old_one_goes_on(tmp_path):
    source, served = tmp_path / "source", tmp_path / "served"
    served.mkdir()
    whole = write_negative(source, "one")
    library = ModelLibrary([served], prepare=lambda model: model.running)
    (served / "one").mkdir()
    network = (whole / "model.onnx").read_bytes()
    (served / "one" / "model.onnx").write_bytes(network[: len(network) // 2])
    assert not library.refresh(), "no card yet: no model yet"
    shutil.copy(whole / "card.json", served / "one")
    (refused,) = library.refresh().refused
    assert "does not match its card" in refused.reason and library.models == {}
    assert not library.refresh(), "it is said once"
    (served / "one" / "model.onnx").write_bytes(network)
    assert library.refresh() == Changes(added=("one",)) and library.refusals == []
    (served / "one" / "model.onnx").write_bytes(b"")
    assert len(library.refresh().refused) == 1 and len(library.refusals) == 1
    assert paint(library, "one") == 0.75


def test_a_model_whose_network_cannot_be_opened_is_refused_and_the_rest_served(tmp_path, environment, monkeypatch):
    environment(models=tmp_path)
    folder = write_negative(tmp_path, "broken")
    (folder / "model.onnx").write_bytes(b"no network")
    write_card(folder, read_raw_card(folder) | {"sha256": sha256(folder / "model.onnx")})
    write_negative(tmp_path, "good")
    monkeypatch.setattr(type(settings()), "model_folders", (tmp_path,))
    stylizer = Stylizer.inner()
    assert call(stylizer.slugs) == ["good"]
    assert call(stylizer.styles)["refused"] == ["broken"]
    assert stylizer.__is_ready__()
    assert counted_here("lienzo_models") == 1 and counted_here("lienzo_session_load_seconds", model="good") > 0
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    try:
        with pytest.raises(Unreachable, match=r"the folder of models '.*' is gone") as caught:
            health.is_ready(stylizer)
        assert caught.value.code == "model_refused"
        stylizer._library.refresh()
        assert call(stylizer.slugs) == ["good"], "what was served goes on"
    finally:
        tmp_path.with_name("elsewhere").rename(tmp_path)


def test_models_change_under_load_without_a_failed_painting(tmp_path):
    write_negative(tmp_path, "steady")
    spare = write_negative(tmp_path / "spare", "coming")
    library = ModelLibrary([tmp_path], prepare=lambda model: model.running)
    failures, stop = [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            for slug in list(library.models):
                try:
                    assert paint(library, slug) == 0.75
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        shutil.copytree(spare, tmp_path / "coming")
        library.refresh()
        assert "coming" in library.models
        shutil.rmtree(tmp_path / "coming")
        library.refresh()
        library.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == [] and set(library.models) == {"steady"}


# The GPU


def test_cuda_that_cannot_be_had_is_refused_with_what_is_missing(fast_model):
    try:
        onnx_runtime.open_session(fast_model.folder / MODEL_FILE, device="cuda")
    except EngineUnavailable as error:
        if "CUDAExecutionProvider" in onnx_runtime.onnxruntime.get_available_providers():
            assert re.search(r"runs '.*model.onnx' on CPUExecutionProvider: libcu\S+, .*cannot be loaded", str(error))
    else:
        pytest.skip("CUDA is here")


@pytest.mark.parametrize(("gpu_memory", "expected"), [("0", None), ("1.5", 1_500_000_000)])
def test_the_bound_on_gpu_memory_is_in_gigabytes(environment, gpu_memory, expected):
    environment(gpu_memory=gpu_memory)
    assert settings().gpu_bytes == expected


def test_a_session_is_bounded_on_the_gpu_alone(monkeypatch):
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(providers)

        def get_providers(self):
            return [asked[-1][0][0]]

    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(
        onnx_runtime.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    onnx_runtime.open_session(Path("x"), device="cpu", gpu_memory=10)
    onnx_runtime.open_session(Path("x"), device="cuda", gpu_memory=10)
    onnx_runtime.open_session(Path("x"), device="cuda")
    cpu, bounded, free = asked
    assert cpu == [("CPUExecutionProvider", {})]
    assert bounded[0][1]["gpu_mem_limit"] == 10 and bounded[1:] == cpu
    assert "gpu_mem_limit" not in free[0][1]
