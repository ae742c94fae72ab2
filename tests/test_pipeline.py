"""What stands between a request and the services: messages, refusals, limits, settings, schemas."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import aiohttp
import pytest
import uvicorn
from bentoml.exceptions import BentoMLException, ServiceUnavailable
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.testclient import TestClient

from services import http_errors, messages, pipeline
from services.job_http import _seen, _wished
from services.jobs import JobGone, JobUnfinished
from services.keys import KeysUnreadable
from services.limits import SECURITY_HEADERS, BodyLimit, SecurityHeaders
from services.messages import Busy, TimedOut, Unreachable, answers, call
from services.pipeline import Brush, Outcome, Style
from services.responses import header, painting
from services.schemas import ContentQuery, StyleQuery, TextToArt
from services.settings import Settings, settings
from shared import errors, optimizer
from shared.errors import InvalidInput, LienzoError, NotFound, PictureError
from shared.fast_models import SHIPPED


def kinds(base: type[LienzoError] = LienzoError) -> list[type[LienzoError]]:
    """Every type of refusal that there is."""
    return [base, *(kind for below in base.__subclasses__() for kind in kinds(below))]


# Messages


@pytest.mark.parametrize(
    "kind", [kind for kind in kinds() if kind.__module__ in ("shared.errors", "services.messages")]
)
def test_a_refusal_crosses_to_another_service_as_it_is(kind):
    @answers
    def method(**_):
        raise kind("it went wrong.", hint="do this.", code="special", field="size")

    # The answer must survive any encoding, so it is plain data.
    answer = json.loads(json.dumps(method()))
    with pytest.raises(LienzoError) as caught:
        call(lambda **_: answer)
    assert type(caught.value) is kind
    assert vars(caught.value) == {"message": "it went wrong.", "hint": "do this.", "code": "special", "field": "size"}


def test_a_refusal_of_another_module_keeps_its_code():
    @answers
    def method():
        raise optimizer.OptimizationFailed("the loss is not a number.")

    with pytest.raises(LienzoError) as caught:
        call(method)
    assert caught.value.code == "optimization_failed"


@pytest.mark.parametrize("value", [None, 0, "", [], {"error": "a key like that"}, b"bytes"])
def test_an_answer_crosses_as_it_is(value):
    @answers
    def method(given):
        return given

    assert call(method, given=value) == value


def test_what_is_no_refusal_is_not_hidden():
    @answers
    def method():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(method)


@pytest.mark.parametrize(
    "failure",
    [
        BentoMLException("An unexpected error", error_code=500),
        ServiceUnavailable("down"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(2, "no such socket"),
        TimeoutError(),
    ],
)
def test_a_service_that_cannot_answer_is_unreachable(failure):
    def method(**_):
        raise failure

    with pytest.raises(Unreachable) as caught:
        call(method)
    assert type(caught.value) is Unreachable
    assert caught.value.hint and caught.value.message.endswith(".")


def test_a_call_that_meets_a_closed_connection_is_made_once_more(caplog):
    """What happens under load: the service closes an idle connection while this process is busy with something else."""
    served = []

    async def app(scope, receive, send):
        served.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"11")]})
        await send({"type": "http.response.body", "body": b'{"ok": "x"}'})

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        config = uvicorn.Config(app, log_level="error", timeout_keep_alive=1, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with asyncio.Runner() as runner:

            async def post(session: aiohttp.ClientSession, path: str) -> dict:
                async with session.post(f"http://127.0.0.1:{listening.getsockname()[1]}{path}") as answer:
                    return await answer.json(content_type=None)

            async def connect() -> aiohttp.ClientSession:
                return aiohttp.ClientSession()

            session = runner.run(connect())

            def method(path: str) -> dict:
                return runner.run(post(session, path))

            assert call(method, path="/first") == "x"
            time.sleep(1.5)  # nobody looks at the connection meanwhile, and it is closed
            with pytest.raises(aiohttp.ServerDisconnectedError):
                method("/lost")
            assert call(method, path="/second") == "x"
            time.sleep(1.5)
            assert call(method, path="/third") == "x"
            runner.run(session.close())
        server.should_exit = True
        thread.join()
    assert served == ["/first", "/second", "/third"]
    assert len([record for record in caplog.records if "asked once more" in record.message]) == 1


def test_a_service_that_is_gone_is_asked_twice_and_no_more():
    asked = []

    def method():
        asked.append(True)
        raise aiohttp.ServerDisconnectedError

    with pytest.raises(Unreachable):
        call(method)
    assert len(asked) == 2


def test_the_services_keep_their_connections():
    from services.optimizer import Optimizer
    from services.retriever import Retriever
    from services.stylizer import Stylizer

    for service in (Optimizer, Retriever, Stylizer):
        assert service.config["runner_connection"] == messages.CONNECTION
        assert messages.CONNECTION["max_requests"] > 1e9 and messages.CONNECTION["max_age"] > 1e8


# Refusals over HTTP

STATUS = {
    errors.LienzoError: 422,
    errors.InvalidInput: 422,
    errors.PictureError: 422,
    errors.NotFound: 404,
    errors.NoMatch: 422,
    errors.WeightsUnavailable: 409,
    errors.ModelRefused: 422,
    errors.GalleryError: 422,
    errors.EngineUnavailable: 409,
    optimizer.OptimizationFailed: 422,
    Busy: 429,
    Unreachable: 503,
    JobUnfinished: 409,
    JobGone: 410,
    TimedOut: 503,
    KeysUnreadable: 422,
}


def test_every_kind_of_refusal_has_its_status():
    ours = [kind for kind in kinds() if kind.__module__.split(".")[0] in ("shared", "services")]
    assert {kind: http_errors.status_of(kind("no.")) for kind in ours} == STATUS


@pytest.mark.parametrize(
    ("code", "status"),
    [("picture_too_large", 413), ("not_a_picture", 415), ("truncated_picture", 422), ("picture_too_small", 422)],
)
def test_the_code_of_a_picture_error_may_set_the_status(code, status):
    assert http_errors.status_of(PictureError("no.", code=code)) == status


def test_who_should_come_back_is_told_when():
    for status in (429, 503):
        assert int(http_errors.error_response(status, "busy", "no.").headers["retry-after"]) > 0
    assert "retry-after" not in http_errors.error_response(422, "invalid_input", "no.").headers


def test_who_finds_a_full_queue_is_told_when_it_has_a_place():
    app = FastAPI()
    http_errors.install(app)

    @app.get("/{seconds}")
    def full(seconds: int) -> None:
        error = Busy("full.")
        error.retry_after = seconds or None
        raise error

    asked = [TestClient(app).get(path) for path in ("/77", "/0")]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in asked] == [(429, "77"), (429, "30")]


def test_a_store_that_fails_is_no_bug_of_the_request(caplog):
    app = FastAPI()
    http_errors.install(app)

    @app.get("/")
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    answer = TestClient(app).get("/")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "unreachable"
    assert "disk" not in answer.text and "disk is full" in caplog.text


def test_a_job_that_failed_by_itself_is_a_bug():
    for code in ("bug", "interrupted"):
        assert http_errors.status_of(LienzoError("no.", code=code)) == 500


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (None, None), ("", None), ("wait=7", ("wait", 7)), ('handling=lenient, WAIT="7"', ("wait", 7)),
        ("wait=7; x=y", ("wait", 7)), ("wait = 7", ("wait", 7)), ("respond-async", ("respond-async", 0)),
        ("respond-async, wait=7", ("respond-async", 0)), ("wait=0", ("wait", 0)), ("wait=-1", None), ("wait", None),
        ("wait=1e3", None), ("wait=" + 99 * "9", None), ("return=minimal", None), (",;=,", None), ("wait=٧", None),
    ],
)  # fmt: skip
def test_the_wish_to_wait_is_read_or_ignored(header, wish):
    assert _wished(header) == wish


@pytest.mark.parametrize(
    ("header", "seen"),
    [(None, (-1, -1)), ("12-3", (12, 3)), ("12", (-1, -1)), ("-1-2", (-1, -1)), ("9" * 40, (-1, -1))],
)
def test_the_last_event_that_was_seen_is_read_or_ignored(header, seen):
    assert _seen(header) == seen


def test_a_bug_is_answered_in_the_one_form_and_logged_but_not_told(caplog):
    app = FastAPI()
    http_errors.install(app)

    @app.get("/")
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "bug"
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


# Limits


def limited(most: int = 1000) -> FastAPI:
    app = FastAPI()
    app.add_middleware(BodyLimit, most=most)
    app.add_middleware(SecurityHeaders)

    @app.api_route("/", methods=["GET", "POST", "PUT", "DELETE"])
    async def length(request: Request) -> int:
        return len(await request.body())

    return app


def chunks(count: int):
    for _ in range(count):
        yield b"x" * 100


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_body_within_the_limit_arrives_whole(method):
    client = TestClient(limited())
    assert client.request(method, "/", content=b"x" * 1000).json() == 1000
    assert client.request(method, "/", content=chunks(10)).json() == 1000
    assert client.request(method, "/").json() == 0
    assert client.get("/").json() == 0


@pytest.mark.parametrize("content", [b"x" * 1001, chunks(11), chunks(100_000)])
def test_a_body_over_the_limit_is_refused(content):
    answer = TestClient(limited()).post("/", content=content)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert "1,000 bytes" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"


def asked(app: FastAPI, sent: list[dict], *, length: bytes | None = None) -> tuple[list[dict], int]:
    """What the application says when these ASGI messages arrive, and how many of them it took."""
    said, taken = [], 0

    async def receive():
        nonlocal taken
        taken += 1
        return sent[taken - 1]

    async def send(message):
        said.append(message)

    headers = [] if length is None else [(b"content-length", length)]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return said, taken


def test_the_rest_of_a_body_over_the_limit_is_never_read():
    more = {"type": "http.request", "body": b"x" * 600, "more_body": True}
    said, taken = asked(limited(), [more] * 100)
    assert (said[0]["status"], taken) == (413, 2)
    said, taken = asked(limited(), [more] * 100, length=b"1001")
    assert (said[0]["status"], taken) == (413, 0)


def test_an_upload_that_breaks_off_is_answered_all_the_same():
    # BentoML waits for an answer until its timeout, and could not be stopped until then.
    more = {"type": "http.request", "body": b"x", "more_body": True}
    said, _ = asked(limited(), [more, {"type": "http.disconnect"}], length=b"500")
    assert said[0]["status"] == 400
    assert said[-1]["type"] == "http.response.body" and not said[-1].get("more_body")


def test_what_is_not_http_passes():
    passed = []

    async def app(scope, receive, send):
        passed.append(scope["type"])

    for middleware in (BodyLimit(app, most=1), SecurityHeaders(app)):
        asyncio.run(middleware({"type": "lifespan"}, None, None))
    assert passed == ["lifespan"] * 2


def test_an_answers_own_policy_is_kept():
    app = limited()

    @app.get("/own")
    def own():
        from fastapi.responses import PlainTextResponse

        return PlainTextResponse("", headers={"Content-Security-Policy": "default-src 'none'"})

    client = TestClient(app)
    assert client.get("/own").headers["content-security-policy"] == "default-src 'none'"
    assert client.get("/own").headers["x-frame-options"] == SECURITY_HEADERS["X-Frame-Options"]
    assert client.get("/").headers["content-security-policy"] == SECURITY_HEADERS["Content-Security-Policy"]


# Settings


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LIENZO_"):
            monkeypatch.delenv(name)
    settings.cache_clear()
    yield monkeypatch
    settings.cache_clear()


def test_the_defaults_hold_without_an_environment(environment):
    config = Settings()
    assert config.model_folders == (SHIPPED,)
    assert (config.gallery, config.device, config.size) == ("met", "auto", 512)
    assert config.size <= config.max_optimize_size <= config.max_size
    assert config.steps <= config.max_steps
    assert config.wait > config.optimize_seconds, "an optimisation that need not queue is waited for"
    assert config.state_folder.name == "lienzo"


def test_the_environment_sets_everything(environment, tmp_path):
    values = {"max_size": "4096", "optimize_queue": "2", "optimize_seconds": "7.5", "gallery": "/g", "device": "cpu"}
    values |= {"state": str(tmp_path), "wait": "0"}
    for name, value in values.items():
        environment.setenv(f"LIENZO_{name.upper()}", value)
    environment.setenv("LIENZO_MODELS", os.pathsep.join([str(tmp_path / "a b"), "", str(tmp_path / "ü")]))
    config = settings()
    assert (config.max_size, config.optimize_queue, config.optimize_seconds) == (4096, 2, 7.5)
    assert (config.gallery, config.device) == ("/g", "cpu")
    assert config.model_folders == (SHIPPED, tmp_path / "a b", tmp_path / "ü")
    assert (config.state_folder, config.wait) == (tmp_path, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIZE", "large"),
        ("SIZE", "63"),
        ("OPTIMIZE_QUEUE", "0"),
        ("OPTIMIZE_SECONDS", "-1"),
        ("MAX_BODY_BYTES", "1"),
        ("WAIT", "-1"),
    ],
)
def test_a_variable_out_of_its_limits_is_named(environment, name, value):
    environment.setenv(f"LIENZO_{name}", value)
    with pytest.raises(InvalidInput, match=f"LIENZO_{name} is '{value}'") as caught:
        settings()
    assert caught.value.field == f"LIENZO_{name}"


def test_settings_are_read_once_and_never_change(environment):
    first = settings()
    environment.setenv("LIENZO_SIZE", "64")
    assert settings() is first
    with pytest.raises(ValidationError):
        first.size = 64


# Schemas

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=8,
)
_FIELDS = sorted({*TextToArt.model_fields, *ContentQuery.model_fields, *StyleQuery.model_fields})


@pytest.mark.parametrize("schema", [TextToArt, ContentQuery, StyleQuery])
@hypothesis_settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(st.sampled_from(_FIELDS) | st.text(), _JSON, max_size=6) | _JSON)
def test_any_json_is_a_request_within_the_limits_or_invalid(schema, body):
    try:
        request = schema.model_validate(body)
    except ValidationError as error:
        assert error.errors()
        return
    values = request.model_dump()
    assert len(values.get("title", "")) <= 500 and len(values.get("description", "")) <= 5000
    assert 0 <= values.get("strength", 0) <= 1
    assert 64 <= values.get("size", 64) <= settings().max_size
    assert 1 <= values.get("k", 1) <= 100
    for name in ("content_id", "style_id"):
        assert all(c.isascii() and (c.isalnum() or c in "._-") for c in values.get(name) or "")


@hypothesis_settings(max_examples=200)
@given(id=st.text(min_size=1, max_size=20))
def test_an_id_holds_nothing_that_a_path_or_a_header_could_trip_over(id):
    plain = all(c.isascii() and (c.isalnum() or c in "._-") for c in id)
    try:
        StyleQuery(content_id=id)
    except ValidationError:
        assert not plain
    else:
        assert plain


# Headers


@given(text=st.text(max_size=60))
def test_any_text_fits_into_a_header_and_comes_back(text):
    sent = header(text)
    sent.encode("ascii")
    assert not any(ord(c) < 32 or ord(c) == 127 for c in sent)
    assert unquote(sent) == text


def test_plain_titles_and_numbers_stay_legible():
    assert header("The Starry Night, 1889 (oil)") == "The Starry Night, 1889 (oil)"
    assert header("Étude 50%") == "%C3%89tude 50%25"
    assert (header(0.123456), header(12), header("met-1")) == ("0.1235", "12", "met-1")


def test_a_painting_tells_what_is_known_and_nothing_else():
    outcome = Outcome(
        "webp", b"data", content="upload", style="s", engine="fast", seconds={"paint": 0.25, "network": 0.1}
    )
    answer = painting(outcome)
    ours = {name for name in answer.headers if name.startswith("lienzo-")}
    assert ours == {"lienzo-content", "lienzo-style", "lienzo-engine"}
    assert answer.headers["server-timing"] == "paint;dur=250.0, network;dur=100.0"
    assert (answer.media_type, answer.body) == ("image/webp", b"data")


# Choosing the engine: the services are recorded here, the real ones are asked in test_http.py.


class Recorded(SimpleNamespace):
    """Services that know one network, at a given distance from any style, and note what they are asked to do."""

    def __init__(self, distance: float | None, radius: float = 0.5):
        self.asked = []
        nearest = None if distance is None else {"slug": "known", "distance": distance, "inside": distance <= radius}
        super().__init__(
            stylizer=SimpleNamespace(
                slugs=lambda: {"ok": [] if distance is None else ["known"]},
                nearest=lambda embedding, style_space: {"ok": nearest},
                paint=lambda **asked: self.painted("fast", asked),
            ),
            retriever=SimpleNamespace(paint=lambda **asked: self.painted("instant", asked)),
            optimizer=SimpleNamespace(paint=lambda **asked: self.painted("optimize", asked)),
        )

    def painted(self, engine: str, asked: dict) -> dict:
        self.asked.append((engine, asked))
        return {"ok": {"data": engine.encode(), "seconds": {}, "steps": 7, "provider": "P", "device": "cpu"}}


STYLE = Style("picture", "A picture", b"style", [1.0, 0.0])


@pytest.mark.parametrize(
    ("distance", "engine", "expected"),
    [
        (0.4, "auto", ["fast"]),
        (0.6, "auto", ["optimize"]),
        (0.9, "auto", ["optimize"]),
        (None, "auto", ["optimize"]),
        (0.9, "fast", ["fast"]),
        (0.4, "optimize", ["optimize"]),
        (0.9, "optimize", ["optimize"]),
    ],
)
def test_the_distance_and_the_wish_choose_the_engine(distance, engine, expected):
    services, outcome = Recorded(distance), Outcome("png")
    pipeline.paint(services, b"content", STYLE, Brush(128, engine, 0.5, True, 9, 3, "jpeg"), outcome)
    assert [name for name, _ in services.asked] == expected
    assert outcome.engine == expected[-1] and outcome.data == expected[-1].encode()
    assert outcome.model_distance == distance
    name, asked = services.asked[-1]
    assert (
        {asked[key] for key in ("strength", "format")} == {0.5, "jpeg"} and asked["preserve_color"] and asked["recipe"]
    )
    if name == "optimize":
        assert (asked["steps"], asked["seed"], asked["style"]) == (9, 3, b"style")
        assert outcome.steps == 7 and "Model" not in asked["recipe"]
    else:
        assert asked["recipe"]["Model"] == "known"


def test_the_optimisers_part_can_be_left_for_later_and_no_other():
    services, outcome = Recorded(0.9), Outcome("png", content="upload")
    pipeline.paint(services, b"content", STYLE, Brush(128, steps=9), outcome, defer=True)
    assert services.asked == [] and outcome.engine == "optimize" and outcome.data == b""
    order = {name: outcome.order[name] for name in ("content", "style", "size", "steps")}
    assert order == {"content": b"content", "style": b"style", "size": 128, "steps": 9}
    assert outcome.order["recipe"] == {
        "Software": "Lienzo", "Content": "upload", "Style": "picture", "Engine": "optimize", "Size": "128",
        "Strength": "1", "Steps": "9", "Seed": "0",
    }  # fmt: skip
    for engine in ("fast", "instant"):
        outcome = Outcome("png")
        pipeline.paint(services, b"content", STYLE, Brush(128, engine), outcome, defer=True)
        assert outcome.data == engine.encode() and outcome.order is None


def test_a_named_fast_style_is_painted_whatever_its_cluster():
    services, outcome = Recorded(0.9), Outcome("png")
    pipeline.paint(services, b"content", Style("known", slug="known"), Brush(128), outcome)
    assert [name for name, _ in services.asked] == ["fast"]
    assert (outcome.model, outcome.model_distance) == ("known", None)


@pytest.mark.parametrize("distance", [0.4, 0.9, None])
def test_an_instant_painting_asks_no_network(distance):
    services, outcome = Recorded(distance), Outcome("png")
    del services.stylizer, services.optimizer
    pipeline.paint(services, b"content", STYLE, Brush(128, "instant", 0.5, True, 9, 3, "jpeg"), outcome)
    ((name, asked),) = services.asked
    recipe = {"Software": "Lienzo", "Style": "picture", "Engine": "instant"}
    recipe |= {"Size": "128", "Strength": "0.5", "Colors": "kept"}
    assert (name, asked) == (
        "instant",
        {
            "content": b"content",
            "style": b"style",
            "size": 128,
            "strength": 0.5,
            "preserve_color": True,
            "format": "jpeg",
            "recipe": recipe,
        },
    )
    assert (outcome.engine, outcome.model, outcome.model_distance, outcome.steps) == ("instant", "", None, None)
    names = {name.lower() for name in painting(outcome).headers}
    assert {"lienzo-engine", "lienzo-provider"} < names and not {"lienzo-model", "lienzo-steps"} & names


def test_an_instant_painting_without_its_decoder_is_refused(monkeypatch):
    from services.retriever import DECODER, Retriever

    monkeypatch.setattr("services.retriever.weights.locate", lambda name: None)
    retriever = SimpleNamespace(_decoder=None)
    with pytest.raises(errors.EngineUnavailable, match=DECODER) as caught:
        Retriever.inner._load_decoder(retriever)
    assert f"lienzo weights fetch {DECODER}" in caught.value.hint and caught.value.field == "engine"


@pytest.mark.parametrize(
    ("style", "engine", "size", "distance", "field"),
    [
        (Style("known", slug="known"), "optimize", 128, 0.9, "engine"),
        (Style("known", slug="known"), "instant", 128, 0.9, "engine"),
        (STYLE, "instant", settings().max_optimize_size + 1, 0.4, "size"),
        (STYLE, "fast", 128, None, "engine"),
        (STYLE, "fast", settings().max_size + 1, 0.4, "size"),
        (STYLE, "auto", settings().max_optimize_size + 1, 0.9, "size"),
    ],
)
def test_what_cannot_be_painted_is_refused_before_anybody_paints(style, engine, size, distance, field):
    services = Recorded(distance)
    with pytest.raises(InvalidInput) as caught:
        pipeline.paint(services, b"content", style, Brush(size, engine), Outcome("png"))
    assert caught.value.field == field and caught.value.hint
    assert services.asked == []


def test_a_style_that_nobody_has_is_not_found():
    def picture(picture_id):
        raise NotFound("no such picture.", hint="Ids look like met-1.")

    services = Recorded(0.1)
    services.retriever = SimpleNamespace(picture=answers(picture))
    with pytest.raises(NotFound, match="no style 'x'") as caught:
        pipeline.named_style(services, "x")
    assert caught.value.hint == "Fast styles are: known." and caught.value.field == "style"
    services = Recorded(None)
    services.retriever = SimpleNamespace(picture=answers(picture))
    with pytest.raises(NotFound, match="no style 'x'") as caught:
        pipeline.named_style(services, "x")
    assert caught.value.hint == "Ids look like met-1."


def test_the_stages_are_timed_and_add_up():
    outcome = Outcome("png")
    for _ in range(2):
        with outcome.timed("paint"):
            pass
    with pytest.raises(ValueError), outcome.timed("retrieve"):
        raise ValueError
    assert set(outcome.seconds) == {"paint", "retrieve"} and all(spent >= 0 for spent in outcome.seconds.values())


def test_the_web_page_is_part_of_the_package():
    import services

    assert (Path(services.__file__).parent / "web" / "index.html").is_file()
