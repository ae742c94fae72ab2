"""The log of every process of a server: one form of line, JSON or text, that nothing from outside can forge."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
from contextvars import ContextVar
from typing import Any, Literal

from opentelemetry import trace

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered; empty outside of one."""

_OURS = ("services", "shared")
_EVERY_RECORD_HAS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(form: Literal["text", "json"], process: str) -> None:
    """Send every logger's lines to the standard output in one form, in place of BentoML's own handlers.

    Args:
        process: what this one is called in the lines, such as ``Stylizer``.
    """
    formatter = {"()": JsonFormatter if form == "json" else TextFormatter, "process": process}
    inherited = {"handlers": [], "propagate": True}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": formatter},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
            "loggers": {name: {"level": "INFO", **inherited} for name in (*_OURS, "bentoml")}
            | {name: {"level": "WARNING", **inherited} for name in ("uvicorn.error", "circus")},
            "root": {"level": "WARNING", "handlers": ["out"]},
        }
    )


def trace_id() -> str:
    """Id of the W3C trace that the running request belongs to, 32 hexadecimal digits; empty outside of one."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """What a line was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _EVERY_RECORD_HAS}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``process``, ``logger``, ``message``, the extras.

    Within a request also ``request`` and ``trace``; with an exception ``exception``, its traceback.
    """

    def __init__(self, process: str):
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname,
            "process": self.process,
            "logger": record.name,
            "message": record.getMessage(),
            "request": request_id.get(),
            "trace": trace_id(),
            **extras(record),
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        # ASCII alone: JSON escapes the line breaks below 32, but not those of Unicode.
        return json.dumps({name: value for name, value in line.items() if value not in ("", None)}, default=str)


class TextFormatter(logging.Formatter):
    """The same to read: time, level, process, request, message, the extras as ``name=value``.

    A traceback follows on lines that are indented, so that nothing in it passes for a line of its own.
    """

    def __init__(self, process: str):
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        known = f" [{request_id.get()}]" if request_id.get() else ""
        facts = "".join(f" {name}={value}" for name, value in extras(record).items() if value not in ("", None))
        line = f"{_time(record)} {record.levelname} {self.process}{known} {record.getMessage()}{facts}"
        if record.exc_info:
            rows = self.formatException(record.exc_info).splitlines()
            return "\n    ".join([printable(line), *map(printable, rows)])
        return printable(line)


def printable(text: str) -> str:
    """``text`` with everything escaped that ends a line or that a terminal obeys."""
    return re.sub(r"[^ -~]", lambda found: found[0] if found[0].isprintable() else ascii(found[0])[1:-1], text)


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
