"""Defines errors as data. Each error has a message, an HTTP status, a code, and the request field that caused the
error.

The code that detects a problem raises the error. A problem is, for example, a wrong field, a corrupt picture, a full
cache or a dead worker. Processes send errors to each other as `ErrorInfo`. Only the gateway turns errors into HTTP
responses.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from msgspec import Struct


class ErrorInfo(Struct, frozen=True, omit_defaults=True):
    """The wire form of an error.

    Attributes:
        status: HTTP status of the response to the client.
        message: One sentence for the person who sent the request.
        type: OpenAI error type, such as ``invalid_request_error``.
        code: Machine-readable reason, such as ``invalid_image``.
        param: Path of the offending request field, such as ``messages[0].content[1].image_url.url``.
        stage: Name of the stage that found the error; empty if the gateway found it.
        retry_after: Seconds after which the client should retry, for 429 and 503.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    stage: str = ""
    retry_after: int | None = None


class OmniError(Exception):
    """Base class of every error that ends one request and does not affect other requests."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


def bad_request(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> OmniError:
    """An error for a bad request. `param` names the bad field."""
    return OmniError(ErrorInfo(status=status, message=message, code=code, param=param))


def unavailable(message: str, *, code: str = "service_unavailable", retry_after: int | None = 1) -> OmniError:
    """An error for a valid request that the service cannot answer now."""
    return OmniError(
        ErrorInfo(status=503, message=message, type="service_unavailable_error", code=code, retry_after=retry_after)
    )


def internal(message: str, *, code: str = "internal_error") -> OmniError:
    """An error for a bug or a broken worker. The message must not contain request content."""
    return OmniError(ErrorInfo(status=500, message=message, type="server_error", code=code))


def worker_lost(worker: str) -> OmniError:
    """An error for a request whose worker process has ended. The same request may succeed if it is sent again."""
    return unavailable(f"The {worker} worker ended unexpectedly while it worked on this request.", code="worker_lost")


def connection_lost(sender: str, receiver: str) -> OmniError:
    """An error for a request whose messages may have been lost between two processes on different hosts. The same
    request may succeed if it is sent again.
    """
    return unavailable(
        f"The connection from {sender} to {receiver} ended while both processes worked on this request.",
        code="worker_lost",
    )


class StartupError(Exception):
    """Raised when the service cannot start. The message explains the problem and how to solve it."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint about an unknown name: a question with the most similar known name. If no known name is similar, a list of
    all known names.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'none'}."
