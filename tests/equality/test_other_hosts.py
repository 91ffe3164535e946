"""A server whose model is on two other hosts gives the reference's answers and speech, for a sample of conversations.

``OMNI_TEST_HOSTS=1`` in pytest's environment puts the servers of `test_served` and `test_spoken` on these hosts too.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.equality import test_served as text
from tests.equality import test_spoken as speech
from tests.equality.conversations import Kit
from tests.equality.sample import CLIENTS, sample, spoken_truths, text_truths
from tests.equality.serving import serving
from tests.reference import Conversation
from tests.server import Server


@pytest.fixture(scope="module")
def conversations(kit: Kit) -> list[Conversation]:
    return sample(kit)


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, media_directory: Path) -> Iterator[Server]:
    with serving(tiny_checkpoint, media_directory, {}, speech=True, on_hosts=True) as server:
        yield server


def test_the_model_is_on_the_other_hosts(server: Server) -> None:
    workers = server.health()[1]["workers"]
    hosts = {name.partition("@")[0]: report["host"] for name, report in workers.items() if report["host"]}
    assert hosts == {
        "image_encoder": "b",
        "audio_encoder": "b",
        "thinker": "c",
        "talker_ar": "b",
        "code_predictor": "b",
        "code2wav": "c",
    }


def test_texts(server: Server, conversations: list[Conversation], tiny_checkpoint: Path) -> None:
    running = text.Running(server, text_truths(conversations, tiny_checkpoint))
    running.check([running.ask(one) for one in conversations])
    with ThreadPoolExecutor(CLIENTS) as clients:
        running.check(list(clients.map(running.ask, conversations * 3)))


def test_voices(server: Server, conversations: list[Conversation], tiny_checkpoint: Path) -> None:
    running = speech.Running(server, spoken_truths(conversations, tiny_checkpoint))
    spoken = running.truths.conversations
    running.check([running.listen(one) for one in spoken])
    with ThreadPoolExecutor(CLIENTS) as clients:
        running.check(list(clients.map(running.listen, spoken * 3)))
