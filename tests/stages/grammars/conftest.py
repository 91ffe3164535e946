"""Provides the demo model's vocabulary, and a class that writes a text as far as a grammar allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from transformers import AutoTokenizer

from omni_pipeline.errors import OmniError
from stages.checkpoint.weights import read_config
from stages.grammars.grammar_cache import GrammarCompiler
from stages.grammars.matcher import Matcher
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar
from tests.conftest import DEMO


class Pen:
    """Writes texts, token by token, as far as a grammar allows."""

    def __init__(self) -> None:
        config = read_config(str(DEMO))
        self.size = config["thinker_config"]["text_config"]["vocab_size"]
        self.end = config["im_end_token_id"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
        self.vocabulary = Vocabulary.of(self.tokenizer, self.size, self.end)
        self.grammars = GrammarCompiler(self.vocabulary)

    def matcher(self, kind: Any, source: Any) -> Matcher:
        return self.grammars.compile(Grammar(kind, source if isinstance(source, str) else json.dumps(source)))

    def allowed(self, matcher: Matcher, text: list[int], *, stay: bool = False) -> NDArray[numpy.bool_]:
        """The ids that may follow a text, bool [size]."""
        mask = matcher.mask(text, stay=stay)
        allowed = numpy.full(self.size, not mask.allowed)
        allowed[mask.ids] = mask.allowed
        return allowed

    def write(self, kind: Any, source: Any, text: str | list[int]) -> tuple[str, bool]:
        """The part of `text` that the grammar allows, and whether the text may end there."""
        matcher = self.matcher(kind, source)
        written: list[int] = []
        for token in self.tokenizer.encode(text) if isinstance(text, str) else text:
            if not self.allowed(matcher, written)[token]:
                break
            written.append(token)
        may_end = bool(self.allowed(matcher, written)[self.end])
        assert matcher.error is None
        return self.tokenizer.decode(written), may_end

    def refusal(self, kind: Any, source: Any) -> str:
        """The message of the error for an invalid grammar."""
        with pytest.raises(OmniError) as caught:
            self.matcher(kind, source)
        assert (caught.value.info.status, caught.value.info.param) == (400, "response_format")
        return caught.value.info.message


@pytest.fixture(scope="session")
def pen() -> Pen:
    return Pen()


@pytest.fixture(scope="session")
def write(pen: Pen) -> Callable[..., tuple[str, bool]]:
    return pen.write
