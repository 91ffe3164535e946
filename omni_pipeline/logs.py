"""Formats the log of every process: as lines of text for people, or as one JSON object per line.

A record can have fields in addition to its message: ``log.info("answered", extra=fields(request_id=…))``. Each record
is one line, even if a client puts line breaks into a path or an id. Only a traceback in the text format has several
lines. The length of a record is limited: the middle of a long message, field or traceback is left out.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import sys
from typing import Any, Literal, TypeAlias

import msgspec

Format: TypeAlias = Literal["text", "json"]

# Maximum number of characters in each part of a record.
LONGEST_MESSAGE = 4000
LONGEST_FIELD = 500
LONGEST_TRACEBACK = 16_000

_FIELDS = "omni_fields"
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def configure(process: str, level: str, form: Format) -> None:
    """Make this process log to stderr. Replaces any earlier logging configuration.

    Args:
        process: Name of the process for each record: ``main`` or the worker's name.
        level: A level name of Python's logging.
        form: Format of the records.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else TextFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def fields(**values: Any) -> dict[str, Any]:
    """The argument `extra` of a logging call, which adds these fields to the record. Leaves out fields whose value is
    None.
    """
    return {_FIELDS: {name: value for name, value in values.items() if value is not None}}


class _BoundedFormatter(logging.Formatter):
    """Limits the length of tracebacks, because a traceback contains the message of an exception."""

    def formatException(self, ei: Any) -> str:
        """The traceback."""
        return _shortened(super().formatException(ei), LONGEST_TRACEBACK)


class TextFormatter(_BoundedFormatter):
    """Formats a record as a line such as
    ``2026-11-26 08:13:22,123 INFO main gateway.access: POST /v1/models status=200 request_id=…``.
    """

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line for a record, without a traceback."""
        record.message = _CONTROL.sub(_escaped, _shortened(record.message, LONGEST_MESSAGE))
        line = super().formatMessage(record)
        return " ".join([line, *(f"{name}={_shown(value)}" for name, value in _fields_of(record).items())])


class JsonFormatter(_BoundedFormatter):
    """Formats a record as an object with the keys ``time`` (UTC), ``level``, ``process``, ``pid``, ``logger`` and
    ``message``, and with the record's fields.

    The key ``exception`` contains the traceback, if there is one.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line for a record."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        body: dict[str, Any] = {
            "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "logger": record.name,
            "message": _shortened(record.getMessage(), LONGEST_MESSAGE),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        body = body | _fields_of(record) | body  # a field never replaces a key that is already in the object
        return msgspec.json.encode(body, enc_hook=str).decode()


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    values: dict[str, Any] = getattr(record, _FIELDS, {})
    return {
        name: _shortened(value, LONGEST_FIELD) if isinstance(value, str) else value for name, value in values.items()
    }


def _shortened(text: str, most: int) -> str:
    """Returns `text`. If `text` has more than `most` characters, its middle is left out."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}[… {len(text) - most} characters …]{text[len(text) - most // 2 :]}"


def _shown(value: Any) -> str:
    """A value as text. The text is in quotes if it contains a space or another character that would make the line
    ambiguous.
    """
    text = format(value, ".6g") if isinstance(value, float) else str(value)
    if _PLAIN.fullmatch(text):
        return text
    return _CONTROL.sub(_escaped, msgspec.json.encode(text).decode())


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
