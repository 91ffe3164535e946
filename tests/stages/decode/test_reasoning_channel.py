"""A text is divided into reasoning and answer in the same way as by SGLang's parser, in whatever pieces the text
arrives.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from stages.decode.answer import DecodedAnswer
from stages.decode.channels import CallSplitter, ContentOnly, Part, Voice
from stages.decode.detokenize import TokenTable
from stages.decode.reasoning_channel import ReasoningSplitter
from stages.messages import CallParsing, DecodeStart, ReasoningForm, TextOutput, ToolCall
from stages.sglang_engine.tool_calls import CallReader

OPEN, CLOSE, CALL = "<think>", "</think>", "<tool_call>"
A_CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'


def form(*, begun: bool = False, interrupting: str = "") -> ReasoningForm:
    return ReasoningForm(OPEN, CLOSE, 256, 257, interrupting, begun)


def split(splitter: ReasoningSplitter, pieces: list[str]) -> list[Part]:
    return [*(part for piece in pieces for part in splitter.feed(piece)), *splitter.finish()]


def joined(parts: list[Part]) -> tuple[str, str]:
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


def cut(text: str, draw: random.Random) -> list[str]:
    places = sorted({0, len(text), *(draw.randrange(len(text) + 1) for _ in range(draw.randrange(8)))})
    return [text[begin:end] for begin, end in pairwise(places)]


TEXTS = [
    "",
    "Three.",
    "<think>Look.</think>Three.",
    "<think>\nLook.\n</think>\n\nThree.",
    "<think>Look.",
    "<think>",
    "<thi",
    "Look.</think>Three.",
    "Look.",
    "<think></think>Three.",
    "<think>a</think>b</think>c",
    "<think>a<think>b</think>c",
    "<think><think>a</think>b",
    "<think>a</thin",
    "<think>a < b </thinking> c</think>d",
    f"<think>Call it.{A_CALL}",
    f"<think>Mention {CALL} only.</think>Three.",
    f"<think>Mention {CALL} and stop",
    f"<think>a</think>{A_CALL}",
]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_division_is_that_of_sglangs_parser(text: str, begun: bool) -> None:
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    reasoning, content = ReasoningParser("qwen3", force_reasoning=begun).parse_non_stream(text)
    draw = random.Random(text)
    for pieces in ([text], list(text), *(cut(text, draw) for _ in range(20))):
        parts = split(ReasoningSplitter(form(begun=begun, interrupting=CALL), ContentOnly()), pieces)
        # If a marker is cut off at the end of the text, SGLang's parser treats the marker as text. Our splitter does
        # the same.
        assert joined(parts) == (reasoning or "", content or "")
        assert sum(part.length for part in parts) == len(text)


def test_a_marker_inside_an_answer_is_content() -> None:
    text = "Write <think>a</think> yourself."
    assert joined(split(ReasoningSplitter(form(), ContentOnly()), list(text))) == ("", text)


@pytest.mark.parametrize("text", TEXTS)
def test_reasoning_and_markers_are_silent_and_the_answer_is_spoken(text: str) -> None:
    parts = split(ReasoningSplitter(form(), ContentOnly()), list(text))
    for part in parts:
        assert (part.voice is Voice.SPOKEN) == bool(part.content)


@pytest.mark.parametrize("text", TEXTS)
def test_reasoning_that_is_not_separate_is_silent_content(text: str) -> None:
    separate = split(ReasoningSplitter(form(), ContentOnly()), list(text))
    parts = split(ReasoningSplitter(form(), ContentOnly(), separate=False), list(text))
    assert joined(parts) == ("", text)
    spoken = ["".join(p.content for p in own if p.voice is Voice.SPOKEN) for own in (separate, parts)]
    assert spoken[0] == spoken[1]


def with_calls(pieces: list[str]) -> list[Part]:
    reader = CallReader("hermes", ["look"])
    calls = CallSplitter(reader.opening, reader.closing, reader.read)
    return split(ReasoningSplitter(form(interrupting=CALL), calls), pieces)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("text", "reasoning", "content", "called"),
    [
        (f"<think>a</think>\n\n{A_CALL}", "a", "", True),
        (f"<think>a{A_CALL}", "a", "", True),
        (f"<think>a{A_CALL}b</think>c", f"a{A_CALL}b", "c", False),
        ("<think>a<tool_call>b", "a", "<tool_call>b", False),
    ],
)
def test_a_call_ends_reasoning_that_is_never_closed(
    text: str, reasoning: str, content: str, called: bool, whole: bool
) -> None:
    parts = with_calls([text] if whole else list(text))
    assert joined(parts) == (reasoning, content)
    assert [call for part in parts for call in part.calls] == ([ToolCall("look", "{}")] if called else [])


# --- from tokens ------------------------------------------------------------------------------------------------------

# One token for each byte, and one for each marker.
TABLE = TokenTable([*(bytes([byte]) for byte in range(256)), OPEN.encode(), CLOSE.encode()], frozenset())


def ids(text: str) -> list[int]:
    marked = text.replace(OPEN, "\ue000").replace(CLOSE, "\ue001")
    table = {"\ue000": [256], "\ue001": [257]}
    return [id_ for character in marked for id_ in table.get(character, character.encode())]


def decoded(text: str, *, awaited: bool = False, **options: object) -> tuple[str, str, int, DecodedAnswer]:
    start = DecodeStart(0, 0, {}, TextOutput(reasoning=form(), **options), awaited=awaited)  # type: ignore[arg-type]
    answer = DecodedAnswer(start, TABLE, 0)
    for id_ in ids(text):
        if answer.ended:
            break
        answer.push(id_)
    answer.finish()
    delta = answer.take()
    usage = answer.done("stop").usage
    return (delta.reasoning if delta else ""), (delta.text if delta else ""), usage.reasoning_tokens, answer


def test_reasoning_tokens_are_counted_with_their_markers() -> None:
    assert decoded("<think>ab</think>cde")[:3] == ("ab", "cde", 4)
    assert decoded("<think>ab")[:3] == ("ab", "", 3)
    assert decoded("abc")[:3] == ("", "abc", 0)


def test_the_token_that_ends_a_text_is_not_reasoning() -> None:
    answer = DecodedAnswer(DecodeStart(0, 0, {}, TextOutput(reasoning=form())), TABLE, 0)
    answer.push(256)
    answer.count(5)
    usage = answer.done("stop").usage
    assert (usage.completion_tokens, usage.reasoning_tokens) == (2, 1)


def test_a_stop_string_also_ends_reasoning() -> None:
    assert decoded("<think>abXYcd</think>e", stop=["XY"])[:2] == ("ab", "")
    assert decoded("<think>ab</think>cXYd", stop=["XY"])[:2] == ("ab", "c")


def test_the_talker_gets_only_the_answer() -> None:
    *_, answer = decoded("<think>ab</think>cd", awaited=True)
    report = answer.certain()
    assert report.tokens == 6
    assert report.silent == [0, 1, 2, 3]


def test_calls_after_reasoning_are_found() -> None:
    calls = CallParsing("hermes", ["look"])
    reasoning, content, tokens, answer = decoded(f"<think>a</think>{A_CALL}", calls=calls)
    assert (reasoning, content, tokens) == ("a", "", 3)
    assert answer.done("stop").finish_reason == "tool_calls"
