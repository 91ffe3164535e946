"""Compiles a grammar, with limits on the work."""

from __future__ import annotations

import json
import re

from llguidance import LLMatcher, LLParserLimits

from omni_pipeline.errors import bad_request
from stages.grammars.ebnf import lark_of_ebnf
from stages.grammars.lark import OPTIONS, json_rule, regex_rule
from stages.grammars.structural_tag import lark_of_tag
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar

# Limits on the work for one grammar, and for one mask (the ids that are allowed next). A state of the automaton takes
# one or two kilobytes.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

_LONGEST_REASON = 300  # maximum number of characters, because the reason may quote the grammar

# llguidance may end an error message with a listing of the grammar (our translation to Lark). This matches the number
# at the beginning of each line of the listing.
_LISTING = re.compile(r"\n *\d+ \| ")

# A line and a column in our translation of the grammar. They are removed from the error, because the client never sees
# the translation.
_PLACE = re.compile(r"^at \d+\(\d+\): ")


def compiled(grammar: Grammar, vocabulary: Vocabulary) -> LLMatcher:
    """A matcher that has not read any text yet. Each request uses a copy of this matcher.

    This function also computes the first mask, because the first mask takes longer than later masks.

    Raises:
        OmniError: 400, the grammar is invalid or too large.
    """
    try:
        matcher = LLMatcher(vocabulary.tokenizer, _lark(grammar, vocabulary), log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise ValueError(matcher.get_error())
    except ValueError as error:
        reason = _PLACE.sub("", _LISTING.split(str(error))[0].strip())[:_LONGEST_REASON].rstrip(".")
        raise bad_request(
            f"Invalid '{grammar.param}': {reason}.", param=grammar.param, code="invalid_grammar"
        ) from error
    return matcher


def _lark(grammar: Grammar, vocabulary: Vocabulary) -> str:
    """The grammar in Lark.

    Raises:
        ValueError: The grammar is invalid; the message says why.
    """
    match grammar.kind:
        case "json_schema":
            return f"{OPTIONS}\nstart: {json_rule(_schema(grammar.source), lenient=grammar.lenient)}"
        case "regex":
            return f"{OPTIONS}\nstart: {regex_rule(grammar.source)}"
        case "structural_tag":
            return lark_of_tag(grammar.source, vocabulary.named)
        case "ebnf":
            return lark_of_ebnf(grammar.source)


def _schema(source: str) -> dict[str, object]:
    """The JSON schema that the text contains."""
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise ValueError(f"the schema is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("the schema must be an object")
    return schema
