"""Grammars are compiled in a thread, and the thread wakes the caller. Compiled grammars are kept for later requests."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest

from omni_pipeline.errors import OmniError
from stages.grammars.grammar_cache import KEPT, GrammarCompiler
from stages.grammars.matcher import Matcher
from stages.messages import Grammar

PATIENCE_SECONDS = 30


@pytest.fixture
def compiler(pen: Any) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(pen.vocabulary)
    yield compiler
    compiler.close()


def results(compiler: GrammarCompiler, *names: str) -> dict[str, Matcher | OmniError]:
    """Wait until the grammars of all these requests have been compiled."""
    found: dict[str, Matcher | OmniError] = {}
    while not {*names} <= found.keys():
        assert select.select([compiler.waits_on], [], [], PATIENCE_SECONDS)[0]
        assert compiler.has_news
        found.update(compiler.collect())
    return found


def is_quiet(compiler: GrammarCompiler) -> bool:
    return not compiler.has_news and not select.select([compiler.waits_on], [], [], 0)[0]


def test_the_caller_is_woken_when_a_grammar_has_been_compiled(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", "a+")
    assert compiler.kept(grammar) is None
    assert is_quiet(compiler)
    compiler.order("r", grammar)
    assert isinstance(results(compiler, "r")["r"], Matcher)
    assert is_quiet(compiler)
    assert compiler.kept(grammar) is not None


def test_an_error_belongs_to_its_request(compiler: GrammarCompiler) -> None:
    compiler.order("good", Grammar("regex", "a+"))
    compiler.order("bad", Grammar("regex", "(", "guided_regex"))
    found = results(compiler, "good", "bad")
    assert isinstance(found["good"], Matcher)
    assert isinstance(found["bad"], OmniError)
    assert found["bad"].info.param == "guided_regex"


def test_requests_with_the_same_grammar_get_matchers_of_their_own(compiler: GrammarCompiler) -> None:
    for name in ("one", "two"):
        compiler.order(name, Grammar("regex", "ab"))
    found = results(compiler, "one", "two")
    assert found["one"] is not found["two"]


def test_a_cancelled_order_leaves_nothing(compiler: GrammarCompiler) -> None:
    compiler.order("gone", Grammar("regex", "a{1,200}b"))
    compiler.order("kept", Grammar("regex", "a+"))
    compiler.cancel("gone")
    compiler.cancel("unknown")
    assert results(compiler, "kept").keys() == {"kept"}
    while not is_quiet(compiler):
        assert compiler.collect() == []


def test_only_the_grammars_used_last_are_kept(compiler: GrammarCompiler) -> None:
    grammars = [Grammar("regex", "a" * number) for number in range(1, KEPT + 2)]
    for grammar in grammars[:-1]:
        compiler.compile(grammar)
    compiler.kept(grammars[0])
    compiler.compile(grammars[-1])
    assert compiler.kept(grammars[0]) is not None
    assert compiler.kept(grammars[1]) is None
