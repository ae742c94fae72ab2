"""Refusals as HTTP answers: always ``{"error": {"code", "message", "hint", "field"}}``, never a traceback."""

from __future__ import annotations

import logging
import sqlite3
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services.jobs import JobGone, JobUnfinished
from services.messages import Busy, TimedOut, Unreachable
from services.request_facts import note
from shared.errors import EngineUnavailable, LienzoError, NotFound, PictureError, WeightsUnavailable

log = logging.getLogger(__name__)

_STATUS = {
    NotFound: HTTPStatus.NOT_FOUND,
    PictureError: HTTPStatus.UNPROCESSABLE_ENTITY,
    EngineUnavailable: HTTPStatus.CONFLICT,
    WeightsUnavailable: HTTPStatus.CONFLICT,
    Busy: HTTPStatus.TOO_MANY_REQUESTS,
    JobUnfinished: HTTPStatus.CONFLICT,
    JobGone: HTTPStatus.GONE,
    Unreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    TimedOut: HTTPStatus.SERVICE_UNAVAILABLE,
}
_STATUS_BY_CODE = {
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "picture_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "not_a_picture": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "bug": HTTPStatus.INTERNAL_SERVER_ERROR,
    "interrupted": HTTPStatus.INTERNAL_SERVER_ERROR,
}
_RETRY_AFTER = {HTTPStatus.TOO_MANY_REQUESTS: "30", HTTPStatus.SERVICE_UNAVAILABLE: "5"}


def error_response(status: int, code: str, message: str, hint: str = "", field: str | None = None) -> JSONResponse:
    """The one form of a refusal."""
    note(code=code)
    body = {"error": {"code": code, "message": message, "hint": hint, "field": field}}
    headers = {"Retry-After": _RETRY_AFTER[status]} if status in _RETRY_AFTER else None
    return JSONResponse(body, status_code=status, headers=headers)


def status_of(error: LienzoError) -> int:
    """The HTTP status of a refusal; what nobody thought of is the caller's input, 422."""
    return _STATUS_BY_CODE.get(error.code) or _STATUS.get(type(error), HTTPStatus.UNPROCESSABLE_ENTITY)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error in the one form."""

    @app.exception_handler(LienzoError)
    def refused(_: Request, error: LienzoError) -> JSONResponse:
        response = error_response(status_of(error), error.code, error.message, error.hint, error.field)
        if isinstance(error, Busy) and error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        # Fields are flat; what follows one is which of its types was tried.
        field = where[0] if where else None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            return error_response(
                HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not valid JSON.", "Send a JSON object."
            )
        if isinstance(error.body, bytes):  # FastAPI parses nothing but JSON
            kind = request.headers.get("content-type", "")[:80]
            return error_response(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                f"the body is '{kind}', expected application/json.",
                "Send a JSON object, with the header Content-Type: application/json.",
            )
        if first["type"] in ("missing", "model_attributes_type", "model_type") and field is None:
            message = "the body is empty or no JSON object"
        return error_response(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid_input",
            f"{field}: {message}." if field else f"{message}.",
            "The document at /docs lists every field and its limits.",
            field,
        )

    @app.exception_handler(HTTPException)
    def http_error(_: Request, error: HTTPException) -> JSONResponse:
        name = HTTPStatus(error.status_code).phrase.lower()
        response = error_response(
            error.status_code,
            name.replace(" ", "_"),
            f"{str(error.detail).rstrip('.')}.",
            "The document at /docs lists the endpoints.",
        )
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(sqlite3.Error)
    def storeless(_: Request, error: sqlite3.Error) -> JSONResponse:
        log.error("the store of the jobs fails", exc_info=error)
        return error_response(
            HTTPStatus.SERVICE_UNAVAILABLE, "unreachable", "no job can be kept now.", "Try again in a few seconds."
        )

    @app.exception_handler(Exception)
    def bug(_: Request, error: Exception) -> JSONResponse:
        log.error("an unforeseen error", exc_info=error)
        return error_response(
            HTTPStatus.INTERNAL_SERVER_ERROR, "bug", "this is a bug of the service.", "Its log has the details."
        )
