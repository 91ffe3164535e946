"""A constrained request gets the tokens that the reference picks after masking the same logits. The tokens of other
requests in the same batch do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoTokenizer

from stages.checkpoint.weights import read_config
from stages.grammars.grammar_cache import GrammarCompiler
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar, Sampling
from stages.sampling_filters import seed_key
from stages.sglang_engine.engine import Broken, Done, Engine, Event, Generation, Token
from stages.sglang_engine.prompt_rows import PromptRows
from stages.sglang_engine.sampler import filtered_probabilities
from stages.sglang_engine.seeded_draws import draw_ids, draw_numbers
from stages.thinker.stage import ARCHITECTURE, end_of_turn_id
from tests.reference import Conversation, Greedy, Reference, differs
from tests.regex_masks import RegexMasks

TOKENS = 20
PATTERN = r'\{"n": -?(0|[1-9][0-9]{0,5}), "s": "[a-zA-Z ,]{3,12}"\}'
SHORT = r"(yes|no)!{0,3}"
SAMPLED = Sampling(temperature=1.2, top_k=40, top_p=0.95, seed=5, max_tokens=TOKENS)
# The cache is so small that SGLang must take memory back from some of the requests.
KV_TOKENS = 300


class Bench:
    """An engine and the reference on one checkpoint."""

    def __init__(self, checkpoint: Path, reference: Reference) -> None:
        self.checkpoint = checkpoint
        self.reference = reference
        self.end = end_of_turn_id(read_config(str(checkpoint)))
        self.engine = Engine(
            model_path=str(checkpoint),
            architecture=ARCHITECTURE,
            device="cpu",
            dtype=None,
            eos_ids=[self.end],
            max_total_tokens=KV_TOKENS,
            max_running_requests=8,
            options={"chunked_prefill_size": 32, "schedule_conservativeness": 0.1},
        )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.grammars = GrammarCompiler(Vocabulary.of(tokenizer, self.engine.vocabulary, self.end))
        self.text = tokenizer.decode
        self.prompt = cache(lambda question: reference.inputs(conversation(question))["input_ids"][0])

    def generation(
        self, name: str, question: str, pattern: str | None = None, *, kind: Any = "regex", **sampling: Any
    ) -> Generation:
        grammar = None if pattern is None else Grammar(kind, pattern)
        ids = self.prompt(question)
        return Generation(
            name,
            ids,
            PromptRows(ids=ids, positions=None, delta=0.0),
            Sampling(**{"max_tokens": TOKENS, **sampling}, grammar=grammar),
            matcher=None if grammar is None else self.grammars.compile(grammar),
        )

    def run(self, *generations: Generation) -> dict[str, list[Event]]:
        for each in generations:
            self.engine.add(each)
        events: dict[str, list[Event]] = {each.request_id: [] for each in generations}
        while self.engine.has_work:
            for event in self.engine.step():
                events[event.request_id].append(event)
        assert self.engine.stats()["kv_tokens_used"] == 0
        return events

    def masks(self, pattern: str) -> RegexMasks:
        return RegexMasks(self.checkpoint, pattern, self.engine.vocabulary, self.end)


def conversation(question: str) -> Conversation:
    return Conversation(question, [{"role": "user", "content": [{"type": "text", "text": question}]}])


QUESTIONS = [f"Question {number}: {'what is it? ' * number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def bench(tiny_checkpoint: Path, habits: bool) -> Iterator[Bench]:
    bench = Bench(tiny_checkpoint, Reference(tiny_checkpoint))
    yield bench
    bench.grammars.close()
    bench.engine.close()


@pytest.fixture(scope="module")
def truths(bench: Bench) -> dict[tuple[str, str | None], Greedy]:
    allowed = {pattern: bench.masks(pattern).allowed for pattern in (PATTERN, SHORT)}
    return {
        (question, pattern): bench.reference.greedy(conversation(question), TOKENS, allowed=allowed.get(pattern or ""))
        for question in QUESTIONS
        for pattern in (PATTERN, SHORT, None)
    }


def ids(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def test_greedy_alone_and_among_others(bench: Bench, truths: dict[tuple[str, str | None], Greedy]) -> None:
    requests = [bench.generation(f"{index}", *key) for index, key in enumerate(truths)]
    alone = [bench.run(each)[each.request_id] for each in requests]
    again = [bench.generation(f"{index}", *key) for index, key in enumerate(truths)]
    filler = [bench.generation(f"f{index}", QUESTIONS[3], max_tokens=70, min_tokens=70) for index in range(8)]
    before = bench.engine.stats()["preemptions"]
    together = bench.run(*filler, *again)
    assert bench.engine.stats()["preemptions"] > before
    for index, ((_, pattern), truth) in enumerate(truths.items()):
        for events in (alone[index], together[f"{index}"]):
            assert differs(ids(events), truth) is None
            complete = truth.ids[-1] == bench.end
            assert isinstance(events[-1], Done)
            assert events[-1].reason == ("stop" if complete else "length")
            if pattern == SHORT:
                assert complete


def test_sampled_alone_and_among_others(bench: Bench) -> None:
    """The reference is a loop over Hugging Face's logits with every impossible token masked."""
    masks = bench.masks(PATTERN)
    for question in QUESTIONS[:2]:
        prompt = bench.prompt(question)
        expected: list[int] = []
        while len(expected) < TOKENS and bench.end not in expected:
            with torch.no_grad():
                row = torch.cat((prompt, torch.tensor(expected, dtype=torch.int64)))[None]
                logits = bench.reference.model.thinker(input_ids=row).logits[0, -1:].float()
            logits = logits.masked_fill(~masks.allowed(tuple(expected)), -torch.inf)
            numbers = draw_numbers(seed_key(SAMPLED.seed), len(expected), logits.shape[-1])
            expected.append(int(draw_ids(filtered_probabilities(logits, [SAMPLED]), torch.from_numpy(numbers)[None])))
        sampling = {name: getattr(SAMPLED, name) for name in ("temperature", "top_k", "top_p", "seed")}
        others = [bench.generation(f"o{index}", QUESTIONS[2], SHORT if index else None) for index in range(3)]
        assert ids(bench.run(bench.generation("one", question, PATTERN, **sampling))["one"]) == expected
        assert ids(bench.run(*others, bench.generation("one", question, PATTERN, **sampling))["one"]) == expected


@pytest.mark.parametrize("options", [{"min_tokens": 19}, {"ignore_eos": True}])
def test_a_text_that_must_go_on_ends_where_its_grammar_does(bench: Bench, options: dict[str, Any]) -> None:
    events = bench.run(bench.generation("one", QUESTIONS[0], SHORT, **options))["one"]
    assert bench.text(ids(events)[:-1]).endswith("!!!")
    assert events[-1] == Done("one", "stop", bench.end)


def test_log_probabilities_are_those_before_the_mask(bench: Bench) -> None:
    free, bound = bench.generation("free", QUESTIONS[0]), bench.generation("bound", QUESTIONS[0], SHORT)
    free.logprobs = bound.logprobs = 5
    events = bench.run(free, bound)
    first, second = (next(event for event in events[name] if isinstance(event, Token)) for name in ("free", "bound"))
    assert first.alternatives == second.alternatives
    assert first.id != second.id
    assert second.logprob is not None
    assert second.logprob < first.alternatives[-1].logprob


def test_bias_and_penalties_choose_among_the_allowed(bench: Bench) -> None:
    no = int(numpy.flatnonzero(bench.masks("no").allowed(()).numpy())[-1])
    for bias, expected in ((100.0, "no"), (-100.0, "yes")):
        events = bench.run(
            bench.generation("one", QUESTIONS[0], "yes|no", logit_bias={no: bias}, repetition_penalty=1.3)
        )["one"]
        assert bench.text(ids(events)[:-1]).startswith(expected[0])


def test_a_grammar_that_goes_wrong_ends_its_request_alone(
    bench: Bench, truths: dict[tuple[str, str | None], Greedy]
) -> None:
    stuck = bench.generation(
        "stuck", QUESTIONS[1], 'start: s+\ns: s s s | s s | "a" | "b"', kind="ebnf", ignore_eos=True, max_tokens=400
    )
    events = bench.run(stuck, bench.generation("free", QUESTIONS[0]))
    assert isinstance(events["stuck"][-1], Broken)
    assert events["stuck"][-1].error.code == "grammar_too_complex"
    assert differs(ids(events["free"]), truths[QUESTIONS[0], None]) is None


def test_a_constrained_request_can_be_aborted(bench: Bench) -> None:
    bench.engine.add(bench.generation("gone", QUESTIONS[1], PATTERN))
    bench.engine.step()
    bench.engine.abort("gone")
    while bench.engine.has_work:
        assert not bench.engine.step()
    assert bench.engine.stats()["kv_tokens_used"] == 0
