"""On GPUs, each worker starts in a new interpreter. A server with such workers gives the same answers as a server with
forked workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server, colocated

STAGES = ("preprocessing", "image_encoder", "audio_encoder", "mm_aggregate", "thinker", "decode", "talker_ar",
          "code_predictor", "code2wav")  # fmt: skip

DRAWN: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "modalities": ["text", "audio"],
    "audio": {"voice": "ethan", "format": "pcm16"},
    "temperature": 0.9,
    "seed": 5,
    "max_tokens": 12,
    "talker_max_new_tokens": 21,
}
SEEN: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is this?"}],
    "images": ["tests/data/cars.jpg"],
    "audios": ["tests/data/query_to_cars.wav"],
    "videos": ["tests/data/draw.mp4"],
    "temperature": 0,
    "max_tokens": 12,
}


@pytest.fixture(scope="module")
def fresh(tiny_checkpoint: Path, repository: Path) -> Iterator[Server]:
    """A server with all computing stages in one worker, as on one GPU. `Server.stop` detects files and processes that
    the server leaves behind.
    """
    config = colocated()
    for name in STAGES:
        config["stages"].setdefault(name, {})["environment"] = {"FRESH": "yes"}
    with Server(tiny_checkpoint, repository, config, speech=True) as server:
        yield server
    assert "Traceback" not in server.log.read_text()


def message(server: Server, request: dict[str, Any]) -> tuple[str, str | None]:
    """A server's answer to a fixed request, with text and speech."""
    status, answer = server.post(request)
    assert status == 200, answer
    said = answer["choices"][0]["message"]
    return said["content"], (said.get("audio") or {}).get("data")


@pytest.mark.parametrize("request_", [DRAWN, SEEN], ids=["a drawn spoken answer", "all media"])
def test_fresh_workers_say_the_same_as_forked_ones(fresh: Server, speaker: Server, request_: dict[str, Any]) -> None:
    """Answers are equal to the byte, although the two servers divide the stages into workers differently."""
    assert message(fresh, request_) == message(speaker, request_)


def test_fresh_worker_that_is_killed_comes_back(fresh: Server) -> None:
    before = message(fresh, DRAWN)
    pid = fresh.health()[1]["workers"]["decode"]["pid"]
    os.kill(pid, signal.SIGKILL)
    fresh.until(lambda: fresh.healthy() and fresh.health()[1]["workers"]["decode"]["pid"] != pid, 60)
    assert fresh.health()[1]["workers"]["decode"]["restarts"] == 1
    assert message(fresh, DRAWN) == before
