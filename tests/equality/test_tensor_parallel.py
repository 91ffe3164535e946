"""If two ranks share the thinker, answers and speech still equal the reference's answers and speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.equality import test_served as text
from tests.equality import test_spoken as speech
from tests.equality.conversations import Kit, all_conversations
from tests.reference import Conversation, Reference, SpokenReference
from tests.server import Server, split

RANKS = 2


@pytest.fixture(scope="module")
def conversations(kit: Kit) -> list[Conversation]:
    """Every sixth conversation of the table. Together, these conversations have every kind of media."""
    return all_conversations(kit)[::6]


@pytest.fixture(scope="module")
def server(media_directory: Path, tiny_checkpoint: Path) -> Iterator[Server]:
    config = split(text.TINY_CHUNKS)
    config["stages"]["thinker"]["tp_size"] = RANKS
    server = Server(tiny_checkpoint, media_directory, config, speech=True).start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


@pytest.fixture(scope="module")
def answering(server: Server, reference: Reference, conversations: list[Conversation]) -> text.Running:
    answers = {conversation.name: reference.greedy(conversation, text.TOKENS) for conversation in conversations}
    return text.Running(server, text.Truths(conversations, answers))


@pytest.fixture(scope="module")
def speaking(server: Server, tiny_checkpoint: Path, conversations: list[Conversation]) -> speech.Running:
    reference = SpokenReference(tiny_checkpoint)
    spoken = {one.name: reference.speak(one, speech.TOKENS, speech.FRAMES, "ethan") for one in conversations}
    answers = {name: answer for name, answer in spoken.items() if answer is not None}
    told = [one for one in conversations if one.name in answers]
    return speech.Running(server, speech.Truths(told, dict.fromkeys(answers, "ethan"), answers))


def test_text_alone_and_from_the_prefix_cache(answering: text.Running) -> None:
    table = answering.truths.conversations
    answering.check([answering.ask(conversation) for conversation in (*table, *reversed(table))])


def test_text_in_company_that_leaves_early(answering: text.Running) -> None:
    """All ranks must remove an aborted request in the same step. Otherwise, the ranks would no longer have the same
    batches.
    """
    table = answering.truths.conversations * 2
    with ThreadPoolExecutor(8) as clients:
        rude = [clients.submit(text._hang_up, answering, seed) for seed in range(16)]
        polite: list[Callable[[], tuple[str, list[int]]]] = [
            clients.submit(answering.ask, conversation).result for conversation in table
        ]
        answering.check([answer() for answer in polite])
        assert sum(one.result() for one in rude) > 0


def test_constrained_answers_and_free_neighbours(
    answering: text.Running, tiny_checkpoint: Path, reference: Reference
) -> None:
    """Only rank 0 has grammars. The other ranks must continue with the tokens that rank 0 picks."""
    table = answering.truths.conversations
    cases = text.constrained_answers(tiny_checkpoint, reference, table[::3])
    assert len(cases) >= 6
    text.check_constrained(answering, cases, table)


def test_voices(speaking: speech.Running) -> None:
    """The talker gets complete tapped states of the prompt, although each rank has only a part of the model."""
    with ThreadPoolExecutor(4) as clients:
        speaking.check(list(clients.map(speaking.listen, speaking.truths.conversations)))
