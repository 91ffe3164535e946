"""Speech plays at once and without a gap, even while the server sends speech to other clients."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.playground.page import OpenPage
from tests.server import Server

Open = Callable[..., OpenPage]

OTHERS = 4
QUESTION = {
    "messages": [{"role": "user", "content": "How many cars are there in the picture?"}],
    "modalities": ["text", "audio"],
    "stream": True,
}


@pytest.fixture
def others(demo_server: Server, data: Path) -> Iterator[list[int]]:
    """Four clients. Each client requests spoken answers, one at a time. Yields the number of answers that each client
    has got.
    """
    picture = f"data:image/jpeg;base64,{OpenPage.base64_of(data / 'cars.jpg')}"
    done = threading.Event()
    counts = [0] * OTHERS

    def listen(number: int) -> None:
        while not done.is_set():
            request = urllib.request.Request(
                f"{demo_server.url}/v1/chat/completions",
                json.dumps(QUESTION | {"images": [picture]}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                assert b"[DONE]" in response.read()
            counts[number] += 1

    threads = [threading.Thread(target=listen, args=[number]) for number in range(OTHERS)]
    for thread in threads:
        thread.start()
    yield counts
    done.set()
    for thread in threads:
        thread.join()


def test_there_is_no_gap_that_the_server_did_not_cause(open_page: Open, others: list[int]) -> None:
    """The page delays the sound by 60 ms. On a machine that is busy with other work, the server may send a chunk even
    later. In this case, a gap is allowed.
    """
    page = open_page()
    page.listen()
    page.until(lambda: all(others))
    delays = []
    for _ in range(5):
        page.tab.get_by_role("button", name="Count the cars").click()
        answer = page.answer()
        assert answer["text"] == "There are three cars."
        print(
            f"{answer['underruns']} gaps; latest chunk {1000 * answer['late']:.0f} ms late; "
            f"first sound {1000 * answer['startDelay']:.0f} ms after it came"
        )
        delays.append(answer["startDelay"])
        assert answer["underruns"] == 0 or answer["late"] > 0.04
        assert answer["played"] == pytest.approx(answer["soundSeconds"], abs=0.01)
        page.tab.get_by_role("button", name="New chat").click()
    assert min(delays) <= 0.1
