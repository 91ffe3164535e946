"""With ``OMNI_CUDA_HABITS=1``, a server on a CPU treats memory as CUDA code does (see `stages.cuda_habits`). Such a
server gives the reference's answers and speech, even when SGLang takes memory back from running requests.

The tests compare the text and the speech of a sample of conversations. Both engines and the predictor are in one
worker, which starts in a new interpreter, like a worker with a GPU. A server refuses to start if utterances could run
out of memory. So these tests cannot make SGLang take memory back from utterances. `test_talker_ar.py` tests this case
without a server. These tests set ``OMNI_CUDA_HABITS=1`` for their own server. If pytest's environment has this setting,
the servers of all other test modules treat memory in this way too.
"""

from __future__ import annotations

import itertools
import random
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stages import cuda_habits
from tests.equality import test_served as text
from tests.equality import test_spoken as speech
from tests.equality.conversations import Kit, request
from tests.equality.sample import CLIENTS, sample, spoken_truths, text_truths
from tests.reference import Conversation
from tests.server import Server, colocated

# The smallest memory with which a server starts. With these settings, SGLang does not reserve the memory that answers
# may need later, but takes memory back from running requests.
ENGINE = {"chunked_prefill_size": 24, "schedule_conservativeness": 0.01}
THINKER = {"max_total_tokens": 2560, "engine": ENGINE}
TALKER = {"max_total_tokens": 4105, "engine": ENGINE}
# Long answers that outgrow the memory of the thinker while the sample is requested.
FILLERS, FILLER_TOKENS = 12, 250


@pytest.fixture(scope="module")
def conversations(kit: Kit) -> list[Conversation]:
    return sample(kit)


def habitual() -> dict[str, Any]:
    """A configuration with both engines and the predictor in one worker, and with little memory for each engine."""
    config = colocated()
    stages = config["stages"]
    stages["thinker"] |= {"environment": {cuda_habits.VARIABLE: "1"}, "options": THINKER}
    stages["talker_ar"] |= {"options": TALKER}
    return config


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, media_directory: Path) -> Iterator[Server]:
    with Server(tiny_checkpoint, media_directory, habitual(), speech=True) as server:
        yield server


def preemptions(server: Server, stage: str) -> float:
    """The number of times that a stage's engine has preempted a request, that is, has taken its memory back."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        [count] = re.findall(
            rf'^\S*preemptions_total{{[^}}]*stage="{stage}"[^}}]*}} (\S+)$', page.read().decode(), re.M
        )
    return float(count)


def test_text_while_memory_is_taken_back(
    server: Server, conversations: list[Conversation], tiny_checkpoint: Path
) -> None:
    running = text.Running(server, text_truths(conversations, tiny_checkpoint))
    filler = request(conversations[0]) | {"max_tokens": FILLER_TOKENS, "min_tokens": FILLER_TOKENS}
    with ThreadPoolExecutor(FILLERS + CLIENTS) as clients:
        fillers = [clients.submit(server.post, filler) for _ in range(FILLERS)]

        def keep_asking(seed: int) -> list[tuple[str, list[int]]]:
            order = random.Random(seed).sample(conversations, len(conversations))
            still = itertools.takewhile(lambda _: not all(one.done() for one in fillers), itertools.cycle(order))
            return [running.ask(conversation) for conversation in still]

        running.check([answer for some in clients.map(keep_asking, range(CLIENTS)) for answer in some])
    assert all(one.result()[0] == 200 for one in fillers)
    server.until(lambda: preemptions(server, "thinker") > 0, 5)


def test_voices(server: Server, conversations: list[Conversation], tiny_checkpoint: Path) -> None:
    running = speech.Running(server, spoken_truths(conversations, tiny_checkpoint))
    with ThreadPoolExecutor(CLIENTS) as clients:
        running.check(list(clients.map(running.listen, running.truths.conversations * 3)))
