"""Over HTTP, answers equal the reference's answers token for token, in every layout, whatever other requests are in
progress.
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.device import PATIENCE
from tests.equality.conversations import Kit, all_conversations, request
from tests.equality.serving import serving
from tests.reference import NEAR_TIE, Conversation, Greedy, Reference, differs
from tests.regex_masks import RegexMasks
from tests.server import Server, fused, split

TOKENS = 24
TINY_CHUNKS = {"engine": {"chunked_prefill_size": 24}}

# Together these configurations cover both layouts, both checkpoints, and whole and chunked prefill. Two of them use
# only every fourth conversation.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], int]] = {
    "split": ("tiny", split(), 1),
    "fused-chunked": ("tiny", fused(TINY_CHUNKS), 4),
    "split-chunked": ("nano", split(TINY_CHUNKS), 1),
    "fused": ("nano", fused(), 4),
}


@dataclass
class Truths:
    """The conversations with the reference's answers on one checkpoint."""

    conversations: list[Conversation]
    answers: dict[str, Greedy]


@dataclass
class Running:
    """A server and the answers it must give."""

    server: Server
    truths: Truths
    checkpoint: str = ""  # the checkpoint's name, for tests that compute further answers

    def ask(self, conversation: Conversation) -> tuple[str, list[int]]:
        """The name of a conversation, and the token ids of the server's answer."""
        return conversation.name, self.ids(request(conversation))

    def ids(self, body: dict[str, Any]) -> list[int]:
        """The token ids of the server's answer to a request."""
        status, answer = self.server.post(body | {"max_tokens": TOKENS, "return_token_ids": True})
        assert status == 200, (body, answer)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def check(self, answers: list[tuple[str, list[int]]]) -> None:
        """Compare answers with the reference's answers. A difference at a near tie is only counted and printed."""
        wrong: list[str] = []
        ties: list[str] = []
        for name, ids in answers:
            truth = self.truths.answers[name]
            at = differs(ids, truth)
            if at is None:
                continue
            tie = at < len(truth.margins) and truth.margins[at] < NEAR_TIE
            (ties if tie else wrong).append(f"{name} at {at}: {ids[at : at + 3]} for {truth.ids[at : at + 3]}")
        print(f"{len(answers)} answers, {len(ties)} near ties{': ' if ties else ''}{'; '.join(ties)}")
        assert not wrong, wrong


@pytest.fixture(scope="module")
def truths(kit: Kit, checkpoints: Callable[[str], Path]) -> Callable[[str], Truths]:
    """The reference's answers on a checkpoint, computed once."""

    @cache
    def of(name: str) -> Truths:
        conversations = all_conversations(kit)
        reference = Reference(checkpoints(name))
        answers = {conversation.name: reference.greedy(conversation, TOKENS) for conversation in conversations}
        return Truths(conversations, answers)

    return of


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def running(
    request: pytest.FixtureRequest,
    media_directory: Path,
    checkpoints: Callable[[str], Path],
    truths: Callable[[str], Truths],
) -> Iterator[Running]:
    checkpoint, config, step = CONFIGURATIONS[request.param]
    known = truths(checkpoint)
    expected = Truths(known.conversations[::step], known.answers)
    with serving(checkpoints(checkpoint), media_directory, config) as server:
        yield Running(server, expected, checkpoint)


def test_the_table_is_as_large_and_lively_as_it_should_be(truths: Callable[[str], Truths]) -> None:
    for name in ("tiny", "nano"):
        answers = truths(name).answers
        assert len(answers) >= 60
        # Many answers differ, so the answers depend on the input.
        assert len({tuple(answer.ids) for answer in answers.values()}) > 50
        # Some answers end before the token limit.
        assert sum(len(answer.ids) < TOKENS for answer in answers.values()) > 10


def test_alone(running: Running) -> None:
    running.check([running.ask(conversation) for conversation in running.truths.conversations])


def test_again_on_a_warm_prefix_cache(running: Running) -> None:
    """The same pictures, sounds and prompts are sent a second time, in another order."""
    order = list(running.truths.conversations)
    random.Random(3).shuffle(order)
    running.check([running.ask(conversation) for conversation in order])


def test_eight_at_once_with_staggered_arrival(running: Running) -> None:
    """There are eight clients. Each client sends a request when its previous request has been answered."""
    order = list(running.truths.conversations)
    random.Random(5).shuffle(order)
    with ThreadPoolExecutor(8) as clients:
        running.check(list(clients.map(running.ask, order)))


PATTERNS = [r'\{"n": -?(0|[1-9][0-9]{0,5}), "s": "[a-zA-Z ,]{3,40}"\}', r"(yes|no|perhaps)(, (really|[a-z]{2,9}))*\."]


@dataclass
class Constrained:
    """A conversation, and the reference's answer under the constraint that the answer matches the regular expression
    `pattern`.
    """

    conversation: Conversation
    pattern: str
    truth: Greedy


@pytest.fixture(scope="module")
def constrained(kit: Kit, checkpoints: Callable[[str], Path]) -> Callable[[str], list[Constrained]]:
    """Constrained answers of the reference on a checkpoint, computed once."""

    @cache
    def of(name: str) -> list[Constrained]:
        return constrained_answers(checkpoints(name), Reference(checkpoints(name)), all_conversations(kit)[::8])

    return of


def constrained_answers(path: Path, reference: Reference, conversations: list[Conversation]) -> list[Constrained]:
    """The reference's answers to each conversation, one for each pattern.

    Args:
        path: The reference's checkpoint.
    """
    config = reference.model.config
    size, end = config.thinker_config.text_config.vocab_size, config.im_end_token_id
    masks = [RegexMasks(path, pattern, size, end) for pattern in PATTERNS]
    return [
        Constrained(each, pattern, reference.greedy(each, TOKENS, allowed=mask.allowed))
        for each in conversations
        for pattern, mask in zip(PATTERNS, masks, strict=True)
    ]


def check_constrained(running: Running, cases: list[Constrained], neighbours: list[Conversation]) -> None:
    """Compare constrained answers with the reference's answers. Also compare the free answers that are computed at the
    same time.
    """
    masked = Running(running.server, Truths([], {}), running.checkpoint)
    bodies = {}
    for number, case in enumerate(cases):
        name = f"{case.conversation.name} by {case.pattern}"
        masked.truths.answers[name] = case.truth
        field = ("regex", "guided_regex")[number % 2]
        bodies[name] = {**request(case.conversation), field: case.pattern}
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda item: (item[0], masked.ids(item[1])), bodies.items())
        free = clients.map(running.ask, neighbours)
        masked.check(list(answers))
        running.check(list(free))


def test_constrained_answers_and_free_neighbours(
    running: Running, constrained: Callable[[str], list[Constrained]]
) -> None:
    """Constrained answers equal the answers that the reference gives under the same constraint. The constraint masks
    the reference's logits. Other answers do not change.
    """
    cases = constrained(running.checkpoint)
    assert any(any(part["type"] == "image" for part in case.conversation.messages[-1]["content"]) for case in cases)
    check_constrained(running, cases, running.truths.conversations[::3])


def test_while_neighbours_are_aborted(running: Running) -> None:
    """Four clients read whole answers. Four other clients send random requests, read a little and disconnect."""
    order = list(running.truths.conversations)
    random.Random(7).shuffle(order)
    with ThreadPoolExecutor(8) as clients:
        rude = [clients.submit(_hang_up, running, seed) for seed in range(60)]
        polite = [clients.submit(running.ask, conversation) for conversation in order]
        running.check([answer.result() for answer in polite])
        assert sum(one.result() for one in rude) > 0


def _hang_up(running: Running, seed: int) -> int:
    """Stream an endless answer, and close the connection after a random number of bytes. Returns the bytes read."""
    rng = random.Random(seed)
    body = request(rng.choice(running.truths.conversations))
    body |= {"max_tokens": 2000, "ignore_eos": True, "stream": True, "temperature": 1.0}
    host = running.server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE.request)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        return len(connection.getresponse().read(rng.choice([1, 200, 2000, 5000])))
    finally:
        connection.close()
