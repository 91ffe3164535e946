"""Writes the parts of a grammar in Lark, the language of llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llguidance import LLMatcher

# White space between two parts of a JSON text. JSON schemas allow any amount of white space. But without a limit, a
# model that is unsure how to continue could write white space for ever.
WHITE_SPACE = r" |\r?\n[ \t]{0,64}"

# Options of llguidance for every grammar. They turn off a default behaviour of llguidance: if only one text can follow,
# llguidance tokenises this text itself, and forbids all other tokens that spell the same text.
OPTIONS = '%llguidance {"no_forcing": true}'

# Characters that have a meaning in regular expressions, or that a regular expression in Lark cannot contain.
_SYNTAX = re.compile(r"[^\w \"'!%,:;=<>@`]")


def json_rule(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """A rule for JSON texts that follow a schema. Options for llguidance in the client's schema are replaced by ours.

    Args:
        lenient: Whether parts of the schema that cannot be enforced are ignored. If not, they are an error.
    """
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def text_rule(text: str) -> str:
    """A rule for one fixed text, which is not empty. Special tokens in the text are not recognised."""
    return json.dumps(text, ensure_ascii=False)


def regex_rule(pattern: str) -> str:
    """A rule for the texts that a regular expression matches as a whole."""
    grammars = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
    rule: str = grammars[0]["lark_grammar"].removeprefix("start: ")
    return rule


def free_text_rule(excluded: Iterable[str], least: int) -> str:
    """A rule for every text that does not contain any of the excluded texts. `least` is the minimum number of
    characters in the text: 0 or 1.
    """
    rules = [rf"/(.|\n){'+' if least else '*'}/"]
    if excluded := [text for text in excluded if text]:
        listed = "|".join(_SYNTAX.sub(_escaped, text) for text in excluded)
        rules.append(rf"~/(.|\n)*({listed})(.|\n)*/")
    return " & ".join(rules)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{{{ord(found[0]):x}}}"
