"""Log lines have the right format, whatever text they contain."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from omni_pipeline import logs
from omni_pipeline.logs import JsonFormatter, TextFormatter, fields


def record(message: str, *args: object, error: BaseException | None = None, **values: Any) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("gateway.access", logging.INFO, "x.py", 1, message, args, exc_info)
    made.__dict__.update(fields(**values))
    return made


def text(*args: Any, **values: Any) -> str:
    """The log line in the text format, without the time."""
    return TextFormatter("main").format(record(*args, **values)).split(" ", 2)[2]


def test_line_for_people_has_the_message_then_the_fields() -> None:
    assert text("%s is done", "it", request_id="r", seconds=0.25, tokens=7) == (
        "INFO main gateway.access: it is done request_id=r seconds=0.25 tokens=7"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        ("a\nb", '"a\\nb"'),
        ("a\u2028b", '"a\\u2028b"'),
        ("a\x1b[31m", '"a\\u001b[31m"'),
        ("größe", "größe"),
        (1e-7, "1e-07"),
    ],
)
def test_value_that_is_no_word_is_quoted(value: object, shown: str) -> None:
    assert text("x", field=value).endswith(f" field={shown}")


def test_message_cannot_begin_a_line_of_its_own() -> None:
    line = text("GET %s", "/\n2026-01-01 ERROR main x: forged\x1b[2J")
    assert "\n" not in line
    assert "\x1b" not in line


def test_traceback_follows_the_line_for_people() -> None:
    first, *rest = text("broken", error=ValueError("why"), request_id="r").splitlines()
    assert first.endswith("broken request_id=r")
    assert rest == ["ValueError: why"]


def test_json_line_has_everything() -> None:
    line = JsonFormatter("thinker").format(record("%d done", 3, error=ValueError("a\nb"), request_id="r", seconds=0.5))
    assert "\n" not in line
    body = json.loads(line)
    assert body.pop("time").endswith("Z")
    assert body.pop("pid") > 0
    assert body.pop("exception") == "ValueError: a\nb"
    assert body == {
        "level": "info",
        "process": "thinker",
        "logger": "gateway.access",
        "message": "3 done",
        "request_id": "r",
        "seconds": 0.5,
    }


def test_json_takes_any_value_and_no_field_hides_what_every_record_has() -> None:
    body = json.loads(JsonFormatter("main").format(record("x", path=ValueError("odd"), level="forged")))
    assert (body["path"], body["level"]) == ("odd", "info")


def test_fields_without_a_value_are_left_out() -> None:
    assert text("x", answer_id=None).endswith(": x")


def test_configuring_replaces_what_libraries_had_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.addHandler(logging.StreamHandler())
    try:
        logs.configure("main", "WARNING", "json")
        logging.getLogger("a").warning("once")
        logging.getLogger("a").info("not at all")
        assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["once"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize("formatter", [TextFormatter("main"), JsonFormatter("main")], ids=["text", "json"])
@pytest.mark.parametrize("letter", ["x", "\n", "\x1b", "\u2028", "é", '"', "\U0001f600"])
def test_record_is_bounded_whatever_it_contains(formatter: logging.Formatter, letter: str) -> None:
    for length in (10_000, 1_000_000):
        long = letter * length
        made = [
            record(long),
            record("%s", f"begin {long} end"),
            record("x", param=long, request_id="r"),
            record("x", error=ValueError(long)),
        ]
        # The escaped form of a character has at most six characters.
        assert max(len(formatter.format(one)) for one in made) < 120_000


def test_shortened_message_keeps_its_beginning_and_its_end() -> None:
    line = text("begin " + "x" * 10_000 + " end", request_id="r")
    assert "begin xxx" in line
    assert line.endswith("xxx end request_id=r")
    assert "[… 6010 characters …]" in line
