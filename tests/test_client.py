"""The Python client: against a really started server, and against answers that no healthy server gives."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import picture_corpus as pictures
import pytest
from scenes import hills

from services import client as module
from services.client import Lienzo, LienzoHTTPError, Painting, PictureMatch

REFUSAL = {"error": {"code": "busy", "message": "too much to do.", "hint": "Try later.", "field": None}}


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that the client would have made."""
    made: list[float] = []
    monkeypatch.setattr(module.time, "sleep", made.append)
    return made


def lienzo_over(*answers: httpx.Response | Exception, **options) -> tuple[Lienzo, list[httpx.Request]]:
    """A client whose requests are answered by these in turn, and the requests that it made."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Lienzo("http://lienzo.test", transport=httpx.MockTransport(answer), **options), asked


def job(state: str = "running", step: int = 0, **more) -> dict:
    links = {"status": "", "events": "", "result": "", "preview": None}
    common = {"id": "j", "position": 0, "steps": 4, "losses": [], "error": None, "links": links}
    return common | {"state": state, "step": step} | more


def events(*jobs: dict, first: int = 1) -> httpx.Response:
    lines = [f"id: {i}-0\nevent: progress\ndata: {json.dumps(job)}\n\n" for i, job in enumerate(jobs, start=first)]
    return httpx.Response(
        200, text="retry: 2000\n\n: hello\n\n" + "".join(lines), headers={"content-type": "text/event-stream"}
    )


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(pauses):
    lienzo, asked = lienzo_over(
        httpx.Response(429, json=REFUSAL, headers={"Retry-After": "7"}), httpx.Response(200, json={"version": "1"})
    )
    assert lienzo.health() == {"version": "1"}
    assert len(asked) == 2 and len(pauses) == 1 and 7 <= pauses[0] <= 7.7


def test_a_pause_has_an_end_and_grows_at_random(pauses):
    lienzo, _ = lienzo_over(*[httpx.Response(503)] * 6)
    with pytest.raises(LienzoHTTPError) as refused:
        lienzo.health()
    assert refused.value.status == 503 and refused.value.code == "unknown"
    assert len(pauses) == 5 and all(0 <= pause <= 0.5 * 2**i for i, pause in enumerate(pauses)) and len(set(pauses)) > 1
    pauses.clear()
    lienzo, _ = lienzo_over(httpx.Response(503, headers={"Retry-After": "86400"}), httpx.Response(200, json={}))
    lienzo.health()
    assert pauses[0] <= 66


def test_a_broken_connection_is_made_anew_and_a_dead_service_named(pauses):
    lienzo, asked = lienzo_over(httpx.RemoteProtocolError("closed"), httpx.Response(200, json=[]))
    assert lienzo.styles() == [] and len(asked) == 2
    lienzo, asked = lienzo_over(*[httpx.ConnectError("refused")] * 3, retries=2)
    with pytest.raises(LienzoHTTPError, match="does not answer: refused") as refused:
        lienzo.styles()
    assert refused.value.status == 0 and len(asked) == 3


def test_no_job_is_made_twice(pauses):
    makers = (lambda lienzo: lienzo.optimize(b"picture"), lambda lienzo: lienzo.paint("a boat", on_progress=print))
    for make in makers:
        for broken in (httpx.ReadError("reset"), httpx.RemoteProtocolError("closed")):
            lienzo, asked = lienzo_over(broken, httpx.Response(202, json=job("queued")))
            with pytest.raises(LienzoHTTPError, match="does not answer"):
                make(lienzo)
            assert len(asked) == 1
    lienzo, asked = lienzo_over(httpx.ConnectError("refused"), httpx.Response(202, json=job("queued")))
    assert lienzo.optimize(b"picture").id == "j" and len(asked) == 2, "it never arrived"
    # Nothing stays of a painting that was only waited for.
    painted = httpx.Response(200, content=b"x", headers={"content-type": "image/png"})
    lienzo, asked = lienzo_over(httpx.ReadError("reset"), painted)
    assert lienzo.paint("a boat").data == b"x" and len(asked) == 2


def test_what_is_wrong_with_a_request_is_not_asked_twice(pauses):
    wrong = {"error": {"code": "invalid_input", "message": "size is 3.", "hint": "Take 64.", "field": "size"}}
    lienzo, asked = lienzo_over(httpx.Response(422, json=wrong))
    with pytest.raises(LienzoHTTPError, match=r"size is 3\. Take 64\.") as refused:
        lienzo.paint("a boat", size=3)
    assert (refused.value.status, refused.value.field) == (422, "size") and len(asked) == 1 and not pauses


def test_a_key_travels_with_every_request():
    lienzo, asked = lienzo_over(httpx.Response(200, json={}), key="secret")
    lienzo.health()
    assert asked[0].headers["authorization"] == "Bearer secret"


def test_only_what_was_given_is_sent():
    lienzo, asked = lienzo_over(httpx.Response(200, content=b"x", headers={"content-type": "image/png"}))
    lienzo.paint("a boat", seed=3)
    sent = json.loads(asked[0].content)
    assert sent["title"] == "a boat" and sent["seed"] == 3 and "size" not in sent and "content_id" not in sent


def test_progress_goes_on_after_a_broken_connection_from_where_it_was(pauses):
    painted = httpx.Response(200, content=b"picture", headers={"content-type": "image/png", "lienzo-steps": "4"})
    lienzo, asked = lienzo_over(
        httpx.Response(202, json=job("queued", position=1)),
        events(job(step=1), job(step=2)),  # and then the connection ends
        httpx.Response(503, headers={"Retry-After": "1"}),
        events(job(step=3), job("done", 4), first=3),
        painted,
    )
    seen: list[int] = []
    painting = lienzo.paint("a boat", on_progress=lambda progress: seen.append(progress.step))
    assert seen == [1, 2, 3, 4] and painting.data == b"picture" and painting.steps == 4
    assert asked[0].headers["prefer"] == "respond-async"
    assert "last-event-id" not in asked[1].headers and asked[3].headers["last-event-id"] == "2-0"


def test_a_failed_job_raises_its_reason(pauses):
    error = {"code": "bug", "message": "it failed.", "hint": "", "field": None}
    lienzo, _ = lienzo_over(events(job("failed", error=error)))
    with pytest.raises(LienzoHTTPError, match="it failed"):
        lienzo.job("j").wait()


def test_it_is_light_to_import():
    code = "import sys, services.client; print({'torch', 'bentoml', 'fastapi', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# Against a real server


@pytest.fixture(scope="module")
def lienzo(server_url):
    with Lienzo(server_url) as lienzo:
        yield lienzo


@pytest.fixture(scope="module")
def photo() -> bytes:
    return pictures.save(hills(96, 72), "PNG")


@pytest.mark.slow
def test_words_become_a_typed_painting(lienzo, tmp_path):
    slug = lienzo.styles()[0]["slug"]
    painting = lienzo.paint("A boat trip on a sunny day", style_id=slug, size=96, format="jpeg")
    assert isinstance(painting, Painting) and painting.engine == "fast" and painting.model == slug
    assert painting.media_type == "image/jpeg" and painting.save(tmp_path / "boat.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert 0 < painting.content_distance < 1 and painting.style_distance is None and painting.steps is None
    assert painting.seconds["paint"] > 0 and painting.content_title
    (match,) = lienzo.find_content("a boat", k=1)
    assert isinstance(match, PictureMatch) and lienzo.picture(match.id, 64)[:2] == b"\xff\xd8"
    assert lienzo.find_style(match.id, k=3)[0].id != match.id


@pytest.mark.slow
def test_ones_own_picture_is_painted_and_finds_its_style(lienzo, photo):
    slug = lienzo.styles()[0]["slug"]
    assert lienzo.stylize(photo, slug, size=96, preserve_color=True).content == "upload"
    assert len(lienzo.find_style(picture=photo, k=2)) == 2
    with pytest.raises(LienzoHTTPError) as refused:
        lienzo.stylize(b"no picture", slug)
    assert refused.value.status == 415


@pytest.mark.slow
def test_a_job_is_followed_found_again_and_cancelled(lienzo, photo):
    style = lienzo.picture("met-436535", 96)
    seen = []
    job = lienzo.optimize(photo, style_picture=style, size=64, steps=4)
    painting = lienzo.job(job.id).wait(seen.append)
    assert painting.engine == "optimize" and painting.steps == 4
    assert seen[-1].state == "done" and seen[-1].over and job.status().state == "done"
    other = lienzo.optimize(photo, style_picture=style, size=256, steps=200)
    assert other.cancel().state == "cancelled"
    with pytest.raises(LienzoHTTPError) as gone:
        other.wait()
    assert gone.value.status == 410
