"""Calls are separated from the content, and no character of a text is lost, in whatever pieces the text arrives."""

from __future__ import annotations

import json
import random
import re

import pytest

from stages.decode.channels import CallSplitter, ContentOnly, Part, Splitter, Voice
from stages.messages import ToolCall
from stages.sglang_engine.tool_calls import CallReader

OPEN, CLOSE = "<tool_call>", "</tool_call>"
WEATHER = '{"name": "weather", "arguments": {"city": "Köln"}}'
TIME = '{"name": "time", "arguments": {}}'
CALLS = {
    WEATHER: ToolCall("weather", '{"city": "Köln"}'),
    TIME: ToolCall("time", "{}"),
}


def block(body: str) -> str:
    return f"{OPEN}\n{body}\n{CLOSE}"


def splitter(parser: str = "hermes", *, parallel: bool = True) -> CallSplitter:
    reader = CallReader(parser, ["weather", "time"])
    return CallSplitter(reader.opening, reader.closing, reader.read, parallel=parallel)


def split(text: str, sizes: list[int], to: Splitter | None = None) -> list[Part]:
    """The parts of a text that is fed in pieces. The pieces have the lengths `sizes`, over and over again."""
    to = to or splitter()
    parts, at, count = [], 0, 0
    while at < len(text) and not to.ended:
        size = sizes[count % len(sizes)]
        parts += to.feed(text[at : at + size])
        at, count = at + size, count + 1
    return parts + to.finish()


def content(parts: list[Part]) -> str:
    return "".join(part.content for part in parts)


def calls(parts: list[Part]) -> list[ToolCall]:
    return [call for part in parts for call in part.calls]


def spoken(parts: list[Part]) -> str:
    return "".join(part.content for part in parts if part.voice is Voice.SPOKEN)


WELL_FORMED = [
    (block(WEATHER), "", [WEATHER]),
    (f"Let me see.\n{block(WEATHER)}", "Let me see.", [WEATHER]),
    (f"Let me see.\n\n {block(WEATHER)}\n{block(TIME)}\n", "Let me see.", [WEATHER, TIME]),
    (f"{OPEN}{WEATHER}{CLOSE}{OPEN}{TIME}{CLOSE}", "", [WEATHER, TIME]),
    (block(f"[{WEATHER}, {TIME}]"), "", [WEATHER, TIME]),
    (f"\n{block(TIME)}\nIt is late.", "It is late.", [TIME]),
    (f"One.\n{block(TIME)}\nTwo.", "One.\nTwo.", [TIME]),
    (f"One.\n{block(TIME)}\n\nTwo. \n{block(WEATHER)} ", "One.\n\nTwo.", [TIME, WEATHER]),
    (f"{OPEN}\n{TIME}\n", "", [TIME]),  # the end of the text closes a block, too
    (f"{OPEN}\n{{oops\n{block(WEATHER)}", f"{OPEN}\n{{oops\n", [WEATHER]),  # a block that was never closed
    (f"{OPEN} is a marker. {block(TIME)}", f"{OPEN} is a marker.", [TIME]),
    # a block that is not closed, because a string in the block is not closed
    (f'{OPEN}{{"oops}}{CLOSE}\n{block(TIME)}\n{block(WEATHER)}', f'{OPEN}{{"oops}}{CLOSE}\n', [TIME, WEATHER]),
]

CONTENT = [
    "",
    "Hello!",
    "  Hello,\n\n world \n",
    " \n ",
    "a < b, <tool, <tool_call",
    OPEN,
    f"{OPEN}  \n",
    f"{OPEN}{' ' * 100}",
    f"The marker {OPEN} begins a call.\nIt does.",
    f"x \n{block('{oops}')} y",
    block('{"name": "weather", "arguments": {"city": "Köln"}'),
    block('{"name": "unknown", "arguments": {}}'),
    block(f'[{WEATHER}, {{"name": "unknown", "arguments": {{}}}}]'),
    block('{"name": "weather", "arguments": "Köln"}'),
    block('{"name": "weather", "arguments": {"city": NaN}}'),
    block('{"name": "weather", "arguments": {"city": "\\ud800"}}'),
    block(f"{WEATHER} and more"),
    f'{OPEN}\n{{"name": "weather", "argum',
    f"{block('{1}')}\n{block('{2}')}\n",
    f"{OPEN}{{{OPEN}{{{OPEN}{{",
    f"a{' ' * 200}b{' ' * 200}",
    CLOSE,
]


def cuts() -> list[list[int]]:
    rng = random.Random(4)
    return [[1], [1000], [3], *([rng.randrange(1, 9) for _ in range(50)] for _ in range(20))]


@pytest.mark.parametrize(("text", "expected", "called"), WELL_FORMED)
def test_calls_are_found_in_any_pieces(text: str, expected: str, called: list[str]) -> None:
    for sizes in cuts():
        parts = split(text, sizes)
        assert content(parts) == expected, sizes
        assert calls(parts) == [CALLS[one] for one in called]
        assert sum(part.length for part in parts) == len(text)


@pytest.mark.parametrize("text", CONTENT)
def test_a_text_without_a_well_formed_call_stays_as_it_is(text: str) -> None:
    for sizes in cuts():
        parts = split(text, sizes)
        assert content(parts) == text, sizes
        assert not calls(parts)
        assert sum(part.length for part in parts) == len(text)


def test_a_block_is_never_spoken() -> None:
    text = f"One. {block('{oops}')}\nTwo.\n{block(TIME)}\n{OPEN}\n{{"
    for sizes in cuts():
        parts = split(text, sizes)
        assert spoken(parts) == "One.\nTwo."
        assert content(parts) == f"One. {block('{oops}')}\nTwo.\n{OPEN}\n{{"


def test_content_is_not_held_longer_than_it_could_begin_a_call() -> None:
    to = splitter()
    expected = {"Hi": "Hi", " ": "", "the": " the", "re <": "re", "tool": "", "s> ": " <tools>", OPEN: "", "\n": ""}
    expected["is"] = f" {OPEN}\nis"
    shown = {piece: content(to.feed(piece)) for piece in expected}
    assert shown == expected


def test_after_the_only_call_that_is_allowed_the_text_ends() -> None:
    for body in (block(WEATHER), block(f"[{WEATHER}, {TIME}]")):
        to = splitter(parallel=False)
        parts = split(f"One.\n{body}\n{block(TIME)}", [1], to)
        assert to.ended
        assert (content(parts), calls(parts)) == ("One.", [CALLS[WEATHER]])
        assert sum(part.length for part in parts) == len(f"One.\n{body}")
    to = splitter(parallel=False)
    assert calls(split(f"{block('{oops}')}\n{block(TIME)}", [1], to)) == [CALLS[TIME]]


def test_the_parser_of_qwen_wants_line_breaks_next_to_the_markers() -> None:
    tight = f"{OPEN}{TIME}{CLOSE}"
    assert calls(split(block(TIME), [1], splitter("qwen25"))) == [CALLS[TIME]]
    assert content(split(tight, [1], splitter("qwen25"))) == tight
    assert calls(split(tight, [1])) == [CALLS[TIME]]


def test_a_text_that_is_all_content_is_given_at_once() -> None:
    to = ContentOnly()
    assert [to.feed(piece) for piece in ("a ", "", f" {OPEN}")] == [[Part(2, "a ")], [], [Part(12, f" {OPEN}")]]
    assert (to.finish(), to.ended) == ([], False)


def test_random_texts_of_markers_and_pieces_lose_nothing() -> None:
    """The content and the blocks of the calls make up the whole text, except for white space around calls."""
    rng = random.Random(9)
    pieces = [OPEN, CLOSE, "\n", " ", "word", "{", "}", "[", WEATHER, TIME, block(TIME), "<tool", "_call>", "<", "é"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 14)))
        parts = split(text, [rng.randrange(1, 9) for _ in range(30)])
        assert sum(part.length for part in parts) == len(text)
        assert parts == [part for part in parts if part.length]
        at, rebuilt = 0, ""
        for part in parts:
            own = text[at : at + part.length]
            at += part.length
            assert bool(part.calls) <= (own.startswith(OPEN) and not part.content)
            rebuilt += own if part.calls else part.content
        assert re.sub(r"\s+", "", rebuilt) == re.sub(r"\s+", "", text)
        if not calls(parts):
            assert content(parts) == text


def test_many_markers_cost_a_bounded_number_of_readings() -> None:
    read: list[int] = []

    def fail(text: str) -> list[ToolCall]:
        read.append(len(text))
        return []

    text = f"{OPEN}{{" * 5000 + CLOSE
    to = CallSplitter(OPEN, CLOSE, fail)
    assert content(split(text, [7], to)) == text
    assert len(read) < 40


def test_arguments_keep_their_json() -> None:
    arguments = {"text": '"{[<tool_call\n😀\\', "number": 1.5, "list": [None, True, {}], '\\\\"': "\\"}
    for ascii_only in (True, False):
        body = json.dumps({"name": "time", "arguments": arguments}, ensure_ascii=ascii_only)
        for sizes in cuts():
            [call] = calls(split(block(body), sizes))
            assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize("text", [CLOSE, OPEN, f"\n{CLOSE}\n", block(TIME), f'\\"{CLOSE}', f"{CLOSE}\\", f'"{CLOSE}"'])
def test_a_marker_in_a_string_of_the_arguments_is_text(text: str) -> None:
    body = json.dumps({"name": "time", "arguments": {text: [text, {"x": text}]}})
    for sizes in cuts():
        parts = split(f"{block(body)}\n{block(WEATHER)}", sizes)
        first, second = calls(parts)
        assert json.loads(first.arguments) == {text: [text, {"x": text}]}
        assert (second, content(parts)) == (CALLS[WEATHER], "")


LARGEST = 1.7976931348623157e308


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1e999", LARGEST),
        ("-7e7450505072", -LARGEST),
        ("-12.5E+400", -LARGEST),
        ("1" + "0" * 5000, LARGEST),
        ("1" + "0" * 400, 10**400),
        ("2.5e-999", 0.0),
        ("-3", -3),
        ('[1e999, "1e999 \\" 1e999", 2]', [LARGEST, '1e999 " 1e999', 2]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_beyond_the_range_of_floats_are_the_largest(written: str, expected: object) -> None:
    arguments = WEATHER.replace('"Köln"', written)
    [call] = calls(split(block(arguments), [7]))
    assert json.loads(call.arguments) == {"city": expected}


def test_an_unfinished_string_is_read_once() -> None:
    text = f"{OPEN}\n" + '{"name": "weather", "arguments": {"city": "' + '\\"' * 100_000
    assert content(split(text, [len(text)])) == text
