"""In bfloat16 and in every layout, the probabilities that a server computes for the tokens of its answers are close to
the reference's probabilities.

The reference is forced to generate each answer, and the results are compared token by token. In the demo model, the
best candidate for a token usually has a large lead over the second-best candidate. So the demo model's answers must
equal the answers in float32. An answer may differ only from a token on whose lead is smaller than the error that
bfloat16 causes in leads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.device import on_device
from tests.equality.conversations import Kit, request
from tests.equality.test_served import TINY_CHUNKS
from tests.reference import Conversation, differs
from tests.rounding import cases, limits
from tests.rounding.conftest import FULL, Judge
from tests.rounding.deviations import Answer, Texts
from tests.rounding.questions import Question, questions
from tests.rounding.reference import RoundedReference
from tests.rounding.served import Asker
from tests.server import Server, colocated, fused, split

pytestmark = pytest.mark.skipif(not FULL, reason="scripts/verify_on_gpu.py runs it, with OMNI_TEST_DTYPE=bfloat16")

LAYOUTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "tiny-fused": ("tiny", fused(), False),
    "tiny-split-chunked": ("tiny", split(TINY_CHUNKS), False),
    "nano-fused-chunked": ("nano", fused(TINY_CHUNKS), False),
    "demo-colocated": ("demo", colocated(), True),
}
QUESTIONS = 60
HELD_OUT_SEED = 77


@dataclass(frozen=True)
class Running:
    """A server in bfloat16 and the reference's results on its checkpoint."""

    name: str
    server: Server
    asker: Asker
    truth: RoundedReference
    conversations: list[Conversation]

    def ask(self, conversation: Conversation) -> Answer:
        return self.asker.ask(request(conversation))

    def hang_up(self, seed: int) -> None:
        """Request a long answer, and disconnect before it can have ended."""
        body = request(random.Random(seed).choice(self.conversations))
        try:
            self.server.post(body | {"max_tokens": 2000, "ignore_eos": True, "temperature": 1.0}, timeout=0.3)
        except OSError:
            return
        raise AssertionError("2000 tokens came in a third of a second")


@pytest.fixture(scope="module", params=LAYOUTS)
def running(
    request: pytest.FixtureRequest, media_directory: Path, kit: Kit, truths: Callable[[str], RoundedReference]
) -> Iterator[Running]:
    checkpoint, config, speech = LAYOUTS[request.param]
    truth = truths(checkpoint)
    config = on_device(config, dtype="bfloat16")
    with Server(cases.checkpoint(checkpoint), media_directory, config, speech=speech) as server:
        asker = Asker(server, truth.processor.tokenizer, cases.TOKENS)
        yield Running(checkpoint, server, asker, truth, cases.conversations(kit))


def compare(running: Running, answers: list[Answer], judge: Judge) -> None:
    texts = Texts()
    for conversation, answer in zip(running.conversations, answers, strict=True):
        texts.add(cases.group(conversation), answer, running.truth.answer(conversation, cases.TOKENS, answer.ids)[1])
    judge(running.name, texts.figures())


def test_alone(running: Running, judge: Judge) -> None:
    compare(running, [running.ask(conversation) for conversation in running.conversations], judge)


def test_eight_at_once_on_a_warm_cache_while_neighbours_leave(running: Running, judge: Judge) -> None:
    order = list(enumerate(running.conversations))
    random.Random(5).shuffle(order)
    with ThreadPoolExecutor(8) as clients:
        rude = [clients.submit(running.hang_up, seed) for seed in range(16)]
        polite = {index: clients.submit(running.ask, conversation) for index, conversation in order}
        answers = [polite[index].result() for index in range(len(order))]
        for one in rude:
            one.result()
    compare(running, answers, judge)


def test_the_demo_models_answers_are_those_in_float32(
    running: Running, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if running.name != "demo":
        pytest.skip("a random checkpoint leads by less than bfloat16 takes")
    least = limits.limits("demo")[limits.CHANGE]
    wrong: list[str] = []
    ties = 0
    for question in questions(tmp_path, QUESTIONS, HELD_OUT_SEED):
        other = difference(question, running, least)
        ties += other == "tie"
        wrong += [] if other in (None, "tie") else [other]
    record_property("figure: answers that differ, though the reference leads", f"[{len(wrong)}, 0]")
    print(f"{QUESTIONS} answers, {ties} near ties")
    assert not wrong, wrong


def difference(question: Question, running: Running, least: float) -> str | None:
    """Describes the difference between the answer to a question and the reference's answer. The result is "tie" if the
    reference's lead at the first different token is smaller than `least`.
    """
    truth = running.truth.greedy(question.conversation, cases.TOKENS)
    answer = running.asker.ask(question.body)
    at = differs(answer.ids, truth)
    if at is None:
        return None
    if at < len(truth.margins) and truth.margins[at] < least:
        return "tie"
    decode = running.truth.processor.tokenizer.decode
    return f"{question.conversation.name}: {decode(answer.ids)!r} for {decode(truth.ids)!r}"
