"""The public HTTP interface: every endpoint of ``/v1``, the page, the documentation."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import bentoml
from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from pydantic import ValidationError
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import UploadFile as Upload
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from services import http_errors, metrics, pipeline
from services.access import Access, RefuseWhileStopping, running
from services.authorization import RequireKey, check_reader
from services.engines import RETRIEVAL, at_work
from services.job_http import COMMISSIONED, Prefer, add_job_routes, answer
from services.keys import KeyRing
from services.limits import CONTENT_SECURITY_POLICY, BodyLimit, CompressTexts, SecurityHeaders
from services.messages import Unreachable, call
from services.pipeline import Brush, Outcome, Services, Style
from services.responses import HEADERS, PAINTING, described, header_schemas
from services.schemas import (
    ENGINES,
    EXAMPLE_PICTURE,
    EXAMPLE_STYLE,
    ContentQuery,
    Engine,
    ErrorAnswer,
    Format,
    Health,
    Id,
    Limits,
    PictureMatch,
    PreserveColor,
    Seed,
    Size,
    Steps,
    Strength,
    StyleCard,
    StyleQuery,
    TextToArt,
)
from services.settings import settings
from shared import __version__
from shared.errors import InvalidInput
from shared.images import DEFAULT_LIMITS

WEB = Path(__file__).parent / "web"
# The documentation's scripts come from BentoML's own package: the page asks nobody else for anything.
SWAGGER = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"
MAX_THUMBNAIL = 1024
_PICTURES = ("/v1/pictures/", "/v1/styles/", "/v1/text_to_art", "/v1/stylize", "/v1/optimize", "/v1/jobs/")
_OTHER_HEADERS = ("Location", "Preference-Applied", "Retry-After", "Server-Timing", "X-Request-ID")
GALLERY_FORMATS = {
    "image/jpeg": rb"\xff\xd8",
    "image/png": rb"\x89PNG",
    "image/webp": rb"(?s:RIFF....WEBP)",
    "image/gif": rb"GIF8",
    "image/bmp": rb"BM",
    "image/tiff": rb"II\*\0|MM\0\*",
}
"""How files of each media type begin, of those that a gallery may hold."""
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_RETRY_AFTER = {"Retry-After": {"type": "integer", "minimum": 1}}
_REFUSAL_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"type": "string"}},
    405: {"Allow": {"type": "string"}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ErrorAnswer,
        "description": description,
        "headers": header_schemas(**_REFUSAL_HEADERS.get(status, {})),
    }
    for status, description in {
        400: "the request cannot be read",
        401: "an API key is needed",
        404: "no such picture, style or path",
        405: "this path takes another method",
        408: "the body took too long to arrive",
        409: "the engine cannot run here, or the job is not finished",
        413: "larger than a limit",
        415: "the upload is no picture",
        422: "a field is out of its limits, or nothing matches",
        429: "too much to do; try later",
        503: "a part of the service does not answer",
    }.items()
}
# Readers of the document know uploads by this word, of OpenAPI 3.0, rather than by the media type, of 3.1.
_BINARY = {"format": "binary"}
_STYLE_QUERY_FORM = {
    "type": "object",
    "properties": {
        "content_id": {"type": "string", "description": "a gallery picture"},
        "image": {"type": "string", "format": "binary", "description": "or an uploaded one"},
        "k": {"type": "integer", "default": 5, "minimum": 1, "maximum": 100},
    },
}


PAINTED = described(**PAINTING) | COMMISSIONED
_KEPT = {"ETag": {"type": "string", "pattern": '^"[0-9a-f]{32}"$'}, "Cache-Control": {"type": "string"}}
_UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "the client has it: If-None-Match names it", "headers": header_schemas(**_KEPT)}
}


async def _services(request: Request) -> Services:  # as a plain function it would wait for a thread
    return request.app.state.services()


Gateway = Annotated[Any, Depends(_services)]


def create_app(services: Callable[[], Services]) -> FastAPI:
    """The application.

    Args:
        services: gives the gateway once it is up; called at each request.
    """
    config = settings()
    # Uploads stay in memory: nothing of a request reaches the file system.
    MultiPartParser.spool_max_size = config.max_body_bytes + 1
    app = _Application(
        title="Lienzo",
        version=__version__,
        summary="Words in, a painting out.",
        docs_url=None,
        redoc_url=None,
        responses=_REFUSALS,
    )
    app.add_middleware(CompressTexts, pictures=_PICTURES)
    app.add_middleware(BodyLimit, most=config.max_body_bytes, seconds=config.body_seconds)
    if config.keys is not None:
        app.add_middleware(RequireKey, ring=KeyRing(config.keys, rate=config.key_rate, burst=config.key_burst))
    app.add_middleware(RefuseWhileStopping)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Prefer", "X-API-Key", "X-Request-ID"],
            expose_headers=[*HEADERS, *_OTHER_HEADERS],
        )
    http_errors.install(app)
    app.state.services = services

    @app.post("/v1/text_to_art", tags=["painting"], response_class=Response, responses=PAINTED)
    async def text_to_art(asked: TextToArt, request: Request, gateway: Gateway, prefer: Prefer = None) -> Response:
        """Find a picture for the words and a style for the picture, and paint the one in the other.

        The headers `Lienzo-*` say what was chosen, at which distance, by which engine; `Server-Timing` how long each
        step took. An optimisation that takes too long to wait for is answered 202, with the address of its job.
        """

        def commission() -> Outcome:
            return pipeline.text_to_art(gateway, asked, defer=True)

        return await answer(request, gateway.jobs, commission, prefer=prefer, wait=config.wait)

    @app.post(
        "/v1/stylize",
        tags=["painting"],
        response_class=Response,
        responses=PAINTED,
        openapi_extra=_form_like(image="photo.jpg", style=EXAMPLE_STYLE, size=config.size),
    )
    async def stylize(
        request: Request,
        gateway: Gateway,
        image: Annotated[UploadFile, File(description="the picture to paint", json_schema_extra=_BINARY)],
        style: Annotated[
            Id | SkipJsonSchema[None], Form(description="a fast style's slug or a gallery picture's id")
        ] = None,
        style_image: Annotated[
            UploadFile | SkipJsonSchema[None],
            File(description="or a style picture of one's own", json_schema_extra=_BINARY),
        ] = None,
        size: Annotated[Size, Form()] = config.size,
        engine: Annotated[Engine, Form(description=ENGINES)] = "auto",
        strength: Annotated[Strength, Form()] = 1.0,
        preserve_color: Annotated[PreserveColor, Form()] = False,
        steps: Annotated[Steps, Form()] = config.steps,
        seed: Annotated[Seed, Form()] = 0,
        format: Annotated[Format, Form()] = "png",
        prefer: Prefer = None,
    ) -> Response:
        """Paint an uploaded picture in a fast style, in a gallery picture's style, or in that of an uploaded one.

        An optimisation that takes too long to wait for is answered 202, with the address of its job. An empty part of
        the form counts as left out.
        """
        brush = Brush(size, engine, strength, preserve_color, steps, seed, format)
        commission = _commission(gateway, image, style, style_image, brush)
        return await answer(request, gateway.jobs, commission, prefer=prefer, wait=config.wait)

    @app.post(
        "/v1/optimize",
        tags=["painting"],
        response_class=Response,
        responses=PAINTED,
        openapi_extra=_form_like(image="photo.jpg", style=EXAMPLE_PICTURE, size=config.size, steps=config.steps),
    )
    async def optimize(
        request: Request,
        gateway: Gateway,
        image: Annotated[UploadFile, File(description="the picture to paint", json_schema_extra=_BINARY)],
        style: Annotated[Id | SkipJsonSchema[None], Form(description="a gallery picture's id")] = None,
        style_image: Annotated[
            UploadFile | SkipJsonSchema[None],
            File(description="or a style picture of one's own", json_schema_extra=_BINARY),
        ] = None,
        size: Annotated[Size, Form()] = config.size,
        strength: Annotated[Strength, Form()] = 1.0,
        preserve_color: Annotated[PreserveColor, Form()] = False,
        steps: Annotated[Steps, Form()] = config.steps,
        seed: Annotated[Seed, Form()] = 0,
        format: Annotated[Format, Form()] = "png",
        prefer: Prefer = None,
    ) -> Response:
        """Let the reference optimiser paint an uploaded picture: a job, whose address is in Location.

        With the header `Prefer: wait=N` the answer is the painting, if it is done by then.
        """
        brush = Brush(size, "optimize", strength, preserve_color, steps, seed, format)
        commission = _commission(gateway, image, style, style_image, brush)
        return await answer(request, gateway.jobs, commission, prefer=prefer, wait=0)

    @app.post("/v1/retrieve/content", tags=["retrieval"])
    def retrieve_content(query: ContentQuery, gateway: Gateway) -> list[PictureMatch]:
        """Gallery pictures that fit the words, the nearest first."""
        with at_work(RETRIEVAL):
            found = call(gateway.retriever.content, title=query.title, description=query.description, k=query.k)
        return [_match(row) for row in found]

    @app.post(
        "/v1/retrieve/style",
        tags=["retrieval"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": StyleQuery.model_json_schema(),
                        "example": {"content_id": EXAMPLE_PICTURE, "k": 5},
                    },
                    "multipart/form-data": {
                        "schema": _STYLE_QUERY_FORM,
                        "example": {"image": "painting.jpg", "k": 5},
                    },
                },
            }
        },
    )
    def retrieve_style(
        query: Annotated[tuple[StyleQuery, bytes | None], Depends(_style_query)], gateway: Gateway
    ) -> list[PictureMatch]:
        """Gallery pictures whose style is nearest to a gallery picture's (JSON) or an uploaded one's (form)."""
        asked, picture = query
        with at_work(RETRIEVAL):
            found = call(gateway.retriever.style, content_id=asked.content_id, picture=picture, k=asked.k)
        return [_match(row) for row in found]

    add_job_routes(app)

    @app.get("/v1/styles", tags=["catalogue"])
    def styles(gateway: Gateway) -> list[StyleCard]:
        """The cards of the fast styles."""
        return [StyleCard.model_validate(card) for card in call(gateway.stylizer.styles)["cards"]]

    @app.get(
        "/v1/styles/{slug}/example",
        tags=["catalogue"],
        response_class=Response,
        responses=described("image/jpeg", **_KEPT) | _UNCHANGED,
    )
    def example(
        request: Request,
        gateway: Gateway,
        slug: Annotated[Id, PathParameter(description="a fast style's slug", examples=[EXAMPLE_STYLE])],
        content_id: Annotated[
            Id | None, Query(description="a gallery picture; the first if left out", examples=[EXAMPLE_PICTURE])
        ] = None,
        size: Annotated[int, Query(ge=64, le=MAX_THUMBNAIL, description="longer side")] = 320,
    ) -> Response:
        """What a fast style makes of a gallery picture, as a JPEG."""
        found = pipeline.example(gateway, slug, content_id, size)
        return _kept(request, found.fingerprint.encode(), found.paint)

    @app.get(
        "/v1/pictures/{id}",
        tags=["catalogue"],
        response_class=Response,
        responses=described(*GALLERY_FORMATS, **_KEPT) | _UNCHANGED,
    )
    def picture(
        request: Request,
        gateway: Gateway,
        id: Annotated[Id, PathParameter(description="a gallery picture's id", examples=[EXAMPLE_PICTURE])],
        size: Annotated[
            int | None,
            Query(ge=16, le=MAX_THUMBNAIL, description="reduce the longer side to this; the original if left out"),
        ] = None,
    ) -> Response:
        """A gallery picture, or a thumbnail of it."""
        if size is None:
            data = call(gateway.retriever.picture, picture_id=id)["data"]
        else:
            data = call(gateway.retriever.thumbnail, picture_id=id, size=size)
        return _kept(request, data, lambda: data)

    @app.get("/v1/health", tags=["operations"])
    def health(gateway: Gateway) -> Health:
        """What runs, on what, and within which limits."""
        library, gallery = call(gateway.stylizer.styles), call(gateway.retriever.about)
        return Health(
            version=app.version,
            provider=library["provider"],
            engines={"fast": library["provider"], "instant": gallery["device"], "optimize": gateway.optimize_device},
            models=[card["slug"] for card in library["cards"]],
            refused=library["refused"],
            gallery=gallery["name"],
            pictures=gallery["pictures"],
            search=gallery["search"],
            limits=Limits(
                size=config.max_size,
                optimize_size=config.max_optimize_size,
                steps=config.max_steps,
                body_bytes=config.max_body_bytes,
                pixels=config.max_pixels,
                side=DEFAULT_LIMITS.min_side,
            ),
        )

    @app.get("/livez", include_in_schema=False)
    @app.get("/healthz", include_in_schema=False)
    async def livez() -> Response:
        """This process answers; nothing more."""
        return PlainTextResponse("\n")

    @app.get("/readyz", include_in_schema=False)
    async def readyz(gateway: Gateway) -> Response:
        """Every service answers and has what it needs."""
        if running.draining.is_set():
            raise Unreachable("this server is being stopped.", hint="Ask another.", code="stopping")
        await gateway.check()
        return PlainTextResponse("\n")

    @app.get("/metrics", include_in_schema=False)
    async def counts(request: Request, gateway: Gateway) -> Response:
        """What was counted, for Prometheus."""
        check_reader(request, config.metrics)
        return Response(await gateway.counts(), media_type=metrics.CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Lienzo",
            swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css",
            swagger_favicon_url="/web/icon.svg",
        )
        # Swagger UI starts from a script in the page, which the policy for all pages forbids.
        starter = re.search(rb"<script>(.*?)</script>", page.body, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(starter).digest()).decode()
        page.headers["Content-Security-Policy"] = (
            f"{CONTENT_SECURITY_POLICY}; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'"
        )
        return page

    app.mount("/web", _Revalidated(directory=WEB), name="web")
    app.mount("/swagger", StaticFiles(directory=SWAGGER), name="swagger")

    @app.api_route("/{path:path}", methods=_METHODS, include_in_schema=False)
    def nowhere(request: Request, path: str) -> None:
        # This route takes what no other does, and so hides that another takes the path with another method.
        others = (r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] is Match.PARTIAL)
        if allowed := sorted({method for route in others for method in route.methods or ()}):
            raise HTTPException(
                405, f"/{path[:80]} takes {', '.join(allowed)}, not {request.method}", {"Allow": ", ".join(allowed)}
            )
        raise HTTPException(404, f"there is no /{path[:80]}")

    return app


class _Application(FastAPI):
    """With what has to be around everything, even around the answer to a bug."""

    def build_middleware_stack(self) -> ASGIApp:
        return Access(SecurityHeaders(super().build_middleware_stack()), self)


class _Revalidated(StaticFiles):
    """Files that browsers keep, but ask about before each use: after an upgrade no page runs yesterday's modules."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _style_query(request: Request) -> tuple[StyleQuery, bytes | None]:
    """The query for styles, from JSON or from a form."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    picture = None
    if kind == "application/json":
        try:
            values = await request.json()
        except (ValueError, RecursionError) as error:  # the latter where arrays or objects are nested very deeply
            raise HTTPException(400, "the body is not valid JSON") from error
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await request.form(max_files=1, max_fields=4)
        image = form.get("image")
        picture = await image.read() if isinstance(image, Upload) else None
        values = {name: value for name, value in form.items() if name != "image" or isinstance(value, str)}
    else:
        raise HTTPException(415, f"the body is '{kind[:80]}', expected application/json or multipart/form-data")
    try:
        query = StyleQuery.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    if (query.content_id is None) == (picture is None):
        raise InvalidInput(
            "one of content_id and image is needed, and only one.",
            hint="Send JSON with a content_id, or a form with a picture.",
            field="content_id",
        )
    return query, picture


def _form_like(**fields: object) -> dict[str, Any]:
    """An example of a form, for the documentation."""
    return {"requestBody": {"content": {"multipart/form-data": {"example": fields}}}}


def _commission(
    gateway: Services, image: UploadFile, style: str | None, style_image: UploadFile | None, brush: Brush
) -> Callable[[], Outcome]:
    return lambda: pipeline.stylize(gateway, _read(image), _style(gateway, style, style_image), brush, defer=True)


def _style(gateway: Services, style: str | None, style_image: UploadFile | None) -> Style:
    if (style is None) == (style_image is None):
        raise InvalidInput(
            "one of style and style_image is needed, and only one.",
            hint="style takes a slug from /v1/styles or a gallery picture's id; style_image takes a file.",
            field="style",
        )
    if style is not None:
        return pipeline.named_style(gateway, style)
    return pipeline.uploaded_style(gateway, _read(style_image))


def _read(upload: UploadFile) -> bytes:
    return upload.file.read()


def _kept(request: Request, decisive: bytes, picture: Callable[[], bytes]) -> Response:
    """A picture that clients keep for a day, and that is made only for those who do not have it.

    Args:
        decisive: what decides how the picture looks.
    """
    etag = f'"{hashlib.sha256(decisive).hexdigest()[:32]}"'
    # Where a key is asked for, a cache that clients share must not answer those who have none.
    headers = {"ETag": etag, "Cache-Control": f"{'public' if settings().keys is None else 'private'}, max-age=86400"}
    # Proxies that compress make an ETag weak.
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if etag in known:
        return Response(status_code=304, headers=headers)
    data = picture()
    return Response(data, media_type=_media_type(data), headers=headers)


def _match(row: Mapping[str, Any]) -> PictureMatch:
    url = f"/v1/pictures/{row['id']}"
    return PictureMatch(**row, url=url, thumbnail=f"{url}?size=320")


def _media_type(data: bytes) -> str:
    return next(
        (media for media, start in GALLERY_FORMATS.items() if re.match(start, data)), "application/octet-stream"
    )
