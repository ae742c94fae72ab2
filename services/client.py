"""A client of the HTTP service, for programs: ``from services.client import Lienzo``.

It needs httpx alone of what a server needs, and none of the settings of one::

    from services.client import Lienzo

    with Lienzo("http://localhost:3000") as lienzo:
        lienzo.paint("A boat trip on a sunny day").save("boat.png")
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote

import httpx
from httpx_sse import EventSource

Engine = Literal["auto", "fast", "instant", "optimize"]
State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
Source = str | Path | bytes

MOST_RETRIES = 5
LONGEST_PAUSE = 60.0
_FIRST_PAUSE = 0.5
_TRY_LATER = (429, 503)
_BROKEN = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class LienzoHTTPError(Exception):
    """The service refused, or did not answer.

    Attributes:
        status: the HTTP status; 0 where nobody answered.
        code, message, hint, field: what the service says of it.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "", field: str | None = None):
        super().__init__(f"{message} {hint}".strip())
        self.status, self.code, self.message, self.hint, self.field = status, code, message, hint, field


@dataclass(frozen=True)
class PictureMatch:
    """A gallery picture that was found; ``distance`` is the cosine distance, 0 is nearest."""

    id: str
    title: str
    artist: str
    date: str
    distance: float
    url: str
    thumbnail: str


@dataclass(frozen=True)
class Painting:
    """A painting and how it came about.

    Attributes:
        data: the encoded picture.
        media_type: like ``image/png``.
        content, style: ids of the pictures, ``upload`` for one's own; the style may be a fast style's slug.
        content_distance, style_distance, model_distance: cosine distances; None where there is none.
        engine: ``fast``, ``instant`` or ``optimize``.
        model: the fast model that painted, or the nearest one.
        steps: of the optimiser, if it painted.
        seconds: by stage.
    """

    data: bytes = field(repr=False)
    media_type: str
    content: str
    content_title: str
    style: str
    style_title: str
    engine: str
    provider: str
    model: str
    content_distance: float | None
    style_distance: float | None
    model_distance: float | None
    steps: int | None
    seconds: Mapping[str, float]

    def save(self, path: str | Path) -> Path:
        """Write the picture's bytes to a file."""
        path = Path(path)
        path.write_bytes(self.data)
        return path


@dataclass(frozen=True)
class Progress:
    """A job as it stands.

    Attributes:
        position: 1 for the next to be painted, 0 while it is painted, None when it has ended.
        step, steps: made, and asked for.
        losses: of the steps that are new: ``step``, ``content``, ``style``, ``tv``, ``total``.
        preview: address of a small picture of how far it is, if there is one.
        error: why it failed.
    """

    id: str
    state: State
    position: int | None
    step: int
    steps: int
    losses: tuple[Mapping[str, float], ...]
    preview: str | None
    error: LienzoHTTPError | None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state not in ("queued", "running")


class Job:
    """A painting that the optimiser makes, and the service remembers."""

    def __init__(self, client: Lienzo, id: str):
        self._client = client
        self.id = id
        """Enough to find the job again: :meth:`Lienzo.job`."""

    def status(self) -> Progress:
        """How far it is."""
        return _progress(self._client._ask("GET", self._path()).json())

    def progress(self) -> Iterator[Progress]:
        """Everything that happens until the job ends, the end as the last; goes on where a connection breaks."""
        last_id, broken = "", 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
            try:
                with self._client._http.stream("GET", self._path("/events"), headers=headers) as answer:
                    if answer.status_code in _TRY_LATER and broken < MOST_RETRIES:
                        broken += 1
                        time.sleep(_pause(broken, answer.headers.get("retry-after")))
                        continue
                    if answer.status_code >= 400:
                        answer.read()
                        raise _refusal(answer)
                    if answer.status_code == 204:  # it ended, and that was told
                        return
                    for event in EventSource(answer).iter_sse():
                        last_id, broken = event.id or last_id, 0
                        if event.event in ("state", "progress"):
                            progress = _progress(event.json())
                            yield progress
                            if progress.over:
                                return
            except _BROKEN as error:
                broken += 1
                if broken > MOST_RETRIES:
                    raise _unanswered(error) from error
            time.sleep(_pause(broken, None))

    def wait(self, on_progress: Callable[[Progress], None] | None = None) -> Painting:
        """Wait for the painting.

        Raises:
            LienzoHTTPError: the job failed, was cancelled, or expired.
        """
        for progress in self.progress():
            if on_progress is not None:
                on_progress(progress)
            if progress.error is not None:
                raise progress.error
        return self.result()

    def result(self) -> Painting:
        """The painting of a job that is done.

        Raises:
            LienzoHTTPError: it is not done (409), or gone (410).
        """
        return _painting(self._client._ask("GET", self._path("/result")))

    def cancel(self) -> Progress:
        """Stop the work; a job that has ended stays as it is."""
        return _progress(self._client._ask("DELETE", self._path()).json())

    def _path(self, rest: str = "") -> str:
        return f"/v1/jobs/{self.id}{rest}"


class Lienzo:
    """A Lienzo service.

    Requests that the service cannot take just now (429, 503), and those whose connection breaks, are sent again after
    the time that it names, or after pauses that grow and are drawn at random, so that many clients do not come back
    at once. One that makes a job is not sent again once it may have arrived: there would be two jobs.

    Args:
        url: where the service is.
        key: an API key, where it wants one.
        timeout: seconds that one answer may take.
        retries: how often a request is sent again.
        transport: another way to the service than the network; for tests.
    """

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        key: str | None = None,
        timeout: float = 300.0,
        retries: int = MOST_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers, transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def paint(
        self,
        title: str = "",
        description: str = "",
        *,
        content_id: str | None = None,
        style_id: str | None = None,
        engine: Engine = "auto",
        size: int | None = None,
        strength: float = 1.0,
        preserve_color: bool = False,
        steps: int | None = None,
        seed: int = 0,
        format: str = "png",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Painting:
        """Words in, a painting out; see ``POST /v1/text_to_art``.

        Args:
            size: longer side in pixels; the service's own choice where not given, like ``steps``.
            on_progress: called while the optimiser paints; without it nothing is told, and the wait is the same.
        """
        body = {
            "title": title, "description": description, "content_id": content_id, "style_id": style_id,
            "engine": engine, "size": size, "strength": strength, "preserve_color": preserve_color,
            "steps": steps, "seed": seed, "format": format,
        }  # fmt: skip
        body = {name: value for name, value in body.items() if value is not None}
        return self._painted("/v1/text_to_art", on_progress, json=body)

    def stylize(
        self,
        picture: Source,
        style: str | None = None,
        *,
        style_picture: Source | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> Painting:
        """Paint a picture of one's own; see ``POST /v1/stylize``.

        Args:
            picture: a file's path, or its bytes.
            style: a fast style's slug or a gallery picture's id.
            style_picture: or a style of one's own.
            options: ``size``, ``engine``, ``strength``, ``preserve_color``, ``steps``, ``seed``, ``format``.
        """
        return self._painted("/v1/stylize", on_progress, **_form(picture, style, style_picture, options))

    def optimize(
        self, picture: Source, style: str | None = None, *, style_picture: Source | None = None, **options: Any
    ) -> Job:
        """Let the optimiser paint a picture of one's own, and go on meanwhile; see ``POST /v1/optimize``."""
        form = _form(picture, style, style_picture, options)
        return Job(self, self._ask("POST", "/v1/optimize", makes_job=True, **form).json()["id"])

    def job(self, id: str) -> Job:
        """A job by its id; the service is asked only when the job is."""
        return Job(self, id)

    def find_content(self, title: str = "", description: str = "", k: int = 5) -> list[PictureMatch]:
        """Gallery pictures that fit the words, the nearest first."""
        body = {"title": title, "description": description, "k": k}
        return [_match(row) for row in self._ask("POST", "/v1/retrieve/content", json=body).json()]

    def find_style(
        self, content_id: str | None = None, k: int = 5, *, picture: Source | None = None
    ) -> list[PictureMatch]:
        """Gallery pictures whose style is nearest to a gallery picture's, or to that of one's own."""
        if picture is None:
            answer = self._ask("POST", "/v1/retrieve/style", json={"content_id": content_id, "k": k})
        else:
            data = {"k": str(k)} | ({"content_id": content_id} if content_id else {})
            answer = self._ask("POST", "/v1/retrieve/style", files={"image": _bytes(picture)}, data=data)
        return [_match(row) for row in answer.json()]

    def styles(self) -> list[dict[str, Any]]:
        """The cards of the fast styles."""
        return self._ask("GET", "/v1/styles").json()

    def picture(self, id: str, size: int | None = None) -> bytes:
        """A gallery picture as it is, or reduced to a longer side of ``size`` pixels."""
        return self._ask("GET", f"/v1/pictures/{id}", params={} if size is None else {"size": size}).content

    def health(self) -> dict[str, Any]:
        """What runs there, and on what."""
        return self._ask("GET", "/v1/health").json()

    def _painted(self, path: str, on_progress: Callable[[Progress], None] | None, **request: Any) -> Painting:
        headers = {"Prefer": "respond-async"} if on_progress else {}
        answer = self._ask("POST", path, makes_job=bool(on_progress), headers=headers, **request)
        if answer.status_code != httpx.codes.ACCEPTED:
            return _painting(answer)
        return Job(self, answer.json()["id"]).wait(on_progress)

    def _ask(self, method: str, path: str, *, makes_job: bool = False, **request: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._http.request(method, path, **request)
            except _BROKEN as error:
                if last or (makes_job and not isinstance(error, httpx.ConnectError)):
                    raise _unanswered(error) from error
                time.sleep(_pause(attempt, None))
                continue
            except httpx.HTTPError as error:  # sent again it might be painted twice, or take as long again
                raise _unanswered(error) from error
            if answer.status_code < 400:
                return answer
            if answer.status_code not in _TRY_LATER or last:
                raise _refusal(answer)
            time.sleep(_pause(attempt, answer.headers.get("retry-after")))
        raise AssertionError("unreachable")


def _pause(attempt: int, retry_after: str | None) -> float:
    """Seconds before the next attempt: what the service asks for and up to a tenth more, else "full jitter"."""
    if retry_after is not None and retry_after.isdigit():
        return min(float(retry_after), LONGEST_PAUSE) * random.uniform(1.0, 1.1)
    return random.uniform(0, min(_FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))


def _form(picture: Source, style: str | None, style_picture: Source | None, options: Mapping[str, Any]) -> dict:
    files = {"image": _bytes(picture)} | ({"style_image": _bytes(style_picture)} if style_picture else {})
    fields_ = {"style": style} | options
    return {"files": files, "data": {name: _text(value) for name, value in fields_.items() if value is not None}}


def _bytes(picture: Source) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _match(row: Mapping[str, Any]) -> PictureMatch:
    return PictureMatch(**{each.name: row[each.name] for each in fields(PictureMatch)})


def _progress(row: Mapping[str, Any]) -> Progress:
    error = row["error"]
    return Progress(
        id=row["id"],
        state=row["state"],
        position=row["position"],
        step=row["step"],
        steps=row["steps"],
        losses=tuple(row["losses"]),
        preview=row["links"]["preview"],
        error=error and LienzoHTTPError(0, error["code"], error["message"], error["hint"], error["field"]),
    )


def _painting(answer: httpx.Response) -> Painting:
    def text(name: str) -> str:
        return unquote(answer.headers.get(f"lienzo-{name}", ""))

    def number(name: str) -> float | None:
        return float(text(name)) if text(name) else None

    stages = (stage.split(";dur=") for stage in answer.headers.get("server-timing", "").split(", ") if stage)
    return Painting(
        data=answer.content,
        media_type=answer.headers["content-type"],
        content=text("content"),
        content_title=text("content-title"),
        style=text("style"),
        style_title=text("style-title"),
        engine=text("engine"),
        provider=text("provider"),
        model=text("model"),
        content_distance=number("content-distance"),
        style_distance=number("style-distance"),
        model_distance=number("model-distance"),
        steps=int(text("steps")) if text("steps") else None,
        seconds={name: float(milliseconds) / 1000 for name, milliseconds in stages},
    )


def _refusal(answer: httpx.Response) -> LienzoHTTPError:
    try:
        error = answer.json()["error"]
        return LienzoHTTPError(answer.status_code, error["code"], error["message"], error["hint"], error["field"])
    except (ValueError, KeyError, TypeError):  # somebody on the way answered, a proxy perhaps
        return LienzoHTTPError(answer.status_code, "unknown", f"the service answered {answer.status_code}.")


def _unanswered(error: httpx.HTTPError) -> LienzoHTTPError:
    return LienzoHTTPError(0, "unreachable", f"the service does not answer: {error or type(error).__name__}.")
