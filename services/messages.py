"""What the services say to one another: plain dictionaries, with refusals as answers rather than exceptions.

An exception that crosses BentoML's internal HTTP loses its type, and every status of 500 its message. So an answer is
``{"ok": …}`` or ``{"error": …}``, and :func:`call` turns the latter into the exception again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from bentoml.exceptions import BentoMLException

from shared import errors
from shared.errors import LienzoError, PictureError

log = logging.getLogger(__name__)

Answer = dict[str, Any]

# By default BentoML closes its client to a service after 100 calls or five minutes, and with it the connections of
# calls that are still being answered: a painting would end in an error because somebody else asked for something.
CONNECTION = {"max_requests": 2**31, "max_age": 1e9}

_BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""What tells that the other side closed the connection before it answered."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """Name the request's field in a picture's refusal: the decoder does not know where its bytes came from."""
    try:
        yield
    except PictureError as error:
        error.field = error.field or field
        raise


class Busy(LienzoError):
    """The service has as much to do as it may.

    Attributes:
        retry_after: seconds after which there may be room; None where nobody knows.
    """

    code = "busy"
    retry_after: int | None = None


class Unreachable(LienzoError):
    """The service does not answer: it starts, stops, has failed, or lacks what it needs."""

    code = "unreachable"


class TimedOut(Unreachable):
    """The service took longer than it may."""

    code = "timed_out"


_KINDS = {**vars(errors), **{kind.__name__: kind for kind in (Busy, Unreachable, TimedOut)}}
"""What a refusal may be when it comes from another service, by name."""


def answers(method: Callable[..., Any]) -> Callable[..., Answer]:
    """Make a service's method answer its :class:`LienzoError` instead of raising it.

    Of a service that could not begin, see :mod:`services.health`, every method answers why.
    """

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Answer:
        try:
            if args and hasattr(args[0], "revive"):
                args[0].revive()
            return {"ok": method(*args, **kwargs)}
        except LienzoError as error:
            return {"error": as_data(error)}

    return wrapped


def as_data(error: LienzoError) -> dict[str, Any]:
    """A refusal as plain data; :func:`as_error` makes it a refusal again."""
    return {
        "type": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "code": error.code,
        "field": error.field,
    }


def as_error(data: dict[str, Any]) -> LienzoError:
    """The refusal that :func:`as_data` wrote down; of one of a service's own types only the code is kept."""
    fields = dict(data)
    return _KINDS.get(fields.pop("type"), LienzoError)(fields.pop("message"), **fields)


def call(method: Callable[..., Answer], **arguments: Any) -> Any:
    """Call another service's method and return what it answered.

    Methods change nothing, so one whose connection broke is called once more: a service closes a connection that was
    idle for five seconds, and a call that is sent at that moment meets a closed door. The HTTP client repeats no POST
    by itself. A service that died is started anew, and answers the second call when it is up.

    Raises:
        LienzoError: of the type that the method raised there.
        TimedOut: the service took longer than it may.
        Unreachable: the service did not answer, or lacks what it needs.
    """
    try:
        try:
            answer = method(**arguments)
        except _BROKEN as error:
            log.warning("a service closed the connection, and is asked once more: %r", error)
            answer = method(**arguments)
    except BentoMLException as error:
        if error.error_code == 504:
            raise TimedOut("it took too long.", hint="Ask for a smaller size, or try again later.") from error
        log.exception("a service failed")
        raise Unreachable("a part of the service failed.", hint="Try again; the server's log says more.") from error
    except (aiohttp.ClientError, TimeoutError) as error:  # BentoML hands on what its HTTP client raises
        log.error("a service does not answer: %r", error)
        raise Unreachable("a part of the service does not answer.", hint="Try again in a few seconds.") from error
    if "error" in answer:
        raise as_error(answer["error"])
    return answer["ok"]
