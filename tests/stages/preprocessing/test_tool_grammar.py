"""If an answer must call a tool, or its calls must follow a schema, the grammar allows no other answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoTokenizer

from omni_pipeline.errors import OmniError
from stages.checkpoint.weights import read_config
from stages.grammars.grammar_cache import GrammarCompiler
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar, Tool, ToolUse
from stages.preprocessing.call_format import CallFormat
from stages.preprocessing.tool_grammar import grammar_with_tools
from tests.conftest import DEMO

FORM = CallFormat("hermes", "<tool_call>", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["car", "star"]}},
    "required": ["kind"],
    "additionalProperties": False,
}
COUNT = Tool("count", "", json.dumps(SCHEMA))
STRICT = Tool("count", "", json.dumps(SCHEMA), strict=True)
FREE = Tool("free", "")


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CAR = call("count", '{"kind": "car"}')
WRONG = call("count", '{"kind": "bus"}')
ANYTHING = call("free", '{"a": [1, {}]}')


class Writer:
    """Writes texts with the demo model's tokens, as far as a grammar allows."""

    def __init__(self) -> None:
        config = read_config(str(DEMO))
        self._end = config["im_end_token_id"]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
        size = config["thinker_config"]["text_config"]["vocab_size"]
        self._grammars = GrammarCompiler(Vocabulary.of(self._tokenizer, size, self._end))

    def takes(self, grammar: Grammar | None, text: str) -> bool:
        """Whether the grammar accepts this text as a complete text: each of its tokens, and then the end."""
        assert grammar is not None
        matcher = self._grammars.compile(grammar)
        written: list[int] = []
        for token in [*self._tokenizer.encode(text), self._end]:
            mask = matcher.mask(written)
            if (token in mask.ids) != mask.allowed:
                return False
            written.append(token)
        return True


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer()


def use(*tools: Tool, **options: Any) -> ToolUse:
    return ToolUse(list(tools), options.pop("callable", [tool.name for tool in tools]), **options)


def test_without_strict_tools_an_answer_may_be_any_text() -> None:
    assert grammar_with_tools(use(COUNT, FREE), FORM, None) is None
    assert grammar_with_tools(use(STRICT, FREE, callable=["free"]), FORM, None) is None


@pytest.mark.parametrize("tool", [COUNT, STRICT])
def test_a_required_answer_is_calls_that_follow_the_schemas(writer: Writer, tool: Tool) -> None:
    grammar = grammar_with_tools(use(tool, FREE, required=True), FORM, None)
    for text in (CAR, ANYTHING, f"{CAR}\n{ANYTHING}\n{CAR}"):
        assert writer.takes(grammar, text), text
    for text in ("", "Hello", WRONG, f"Hm.\n{CAR}", f"{CAR}\nHm.", f"{CAR}{CAR}", call("other", "{}"), CAR[:-1]):
        assert not writer.takes(grammar, text), text


def test_only_the_tools_that_may_be_called_can_be(writer: Writer) -> None:
    grammar = grammar_with_tools(use(COUNT, FREE, required=True, callable=["count"]), FORM, None)
    assert writer.takes(grammar, CAR)
    assert not writer.takes(grammar, ANYTHING)


def test_one_call_can_be_all(writer: Writer) -> None:
    grammar = grammar_with_tools(use(COUNT, required=True, parallel=False), FORM, None)
    assert writer.takes(grammar, CAR)
    assert not writer.takes(grammar, f"{CAR}\n{CAR}")


def test_the_calls_of_strict_tools_follow_their_schemas_in_any_text(writer: Writer) -> None:
    grammar = grammar_with_tools(use(STRICT, FREE), FORM, None)
    for text in ("", "Hello", CAR, f"Hm.\n{CAR}\n{ANYTHING}\nSo.", call("free", "{}")):
        assert writer.takes(grammar, text), text
    for text in (WRONG, f"Hm. {WRONG}", call("other", "{}"), call("free", "[1]"), f"{CAR}\n{WRONG}"):
        assert not writer.takes(grammar, text), text


@pytest.mark.parametrize(
    ("wanted", "content"),
    [
        (Grammar("json_schema", json.dumps({"type": "object", "required": ["a"]})), '{"a": 1}'),
        (Grammar("regex", "yes|no"), "no"),
    ],
)
@pytest.mark.parametrize("tool", [COUNT, STRICT])
def test_the_clients_own_grammar_holds_for_an_answer_without_calls(
    writer: Writer, wanted: Grammar, content: str, tool: Tool
) -> None:
    grammar = grammar_with_tools(use(tool), FORM, wanted)
    for text in (content, CAR, f"{CAR}\n{CAR}"):
        assert writer.takes(grammar, text), text
    for text in ("", "Hello", f"{content}\n{CAR}", f"{CAR}\n{content}"):
        assert not writer.takes(grammar, text), text
    assert writer.takes(grammar, WRONG) != tool.strict
    required = grammar_with_tools(use(tool, required=True), FORM, wanted)
    assert not writer.takes(required, content)


@pytest.mark.parametrize("kind", ["ebnf", "structural_tag"])
def test_a_grammar_that_cannot_be_combined_is_refused(kind: Any) -> None:
    with pytest.raises(OmniError) as caught:
        grammar_with_tools(use(COUNT), FORM, Grammar(kind, "", param="ebnf"))
    assert (caught.value.info.status, caught.value.info.param) == (400, "ebnf")
