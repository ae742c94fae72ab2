"""What can go wrong, as types: each error says what happened, names a stable code, and hints at what to do."""

from __future__ import annotations


class LienzoError(Exception):
    """Base of every error that Lienzo raises on purpose.

    Args:
        message: what happened and what was expected, in one sentence.
        hint: what to do next.
        code: stable machine-readable name; the class default serves where none is given.
        field: the request field or option at fault, where there is one.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, field: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).code
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidInput(LienzoError):
    """The caller's input is at fault: a value out of range, an unknown name."""

    code = "invalid_input"


class PictureError(InvalidInput):
    """Bytes that are no picture we can read: foreign, truncated, too small or too large."""

    code = "invalid_picture"


class NotFound(InvalidInput):
    """A picture, style or model that was asked for by name does not exist."""

    code = "not_found"


class NoMatch(InvalidInput):
    """A text query shares nothing with the gallery, so no picture may pass as its match."""

    code = "no_match"


class WeightsUnavailable(LienzoError):
    """Pretrained weights could not be had; the message says what was tried."""

    code = "weights_unavailable"


class ModelRefused(LienzoError):
    """A fast model's folder is incomplete, or does not match its card."""

    code = "model_refused"


class GalleryError(LienzoError):
    """A gallery or its index is missing, corrupt, or does not match."""

    code = "gallery_error"


class EngineUnavailable(LienzoError):
    """The engine that the request asks for cannot run here (weights or provider missing)."""

    code = "engine_unavailable"
