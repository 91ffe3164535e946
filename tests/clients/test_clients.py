"""Popular client libraries, with their default settings, get right answers from the server."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import soundfile

from tests.clients.conftest import LIBRARIES

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="the client libraries are not installed: run make test-clients")

Answers = Callable[[str], dict[str, Any]]

FOLLOWED_UP = "Yes, there is a red car."
RIGHT = {
    "picture": "There are three cars.",
    "sound": "There are three cars.",
    "standard blocks": "There are three cars.",
    "stream": "There are three cars.",
    "stream helper": "There are three cars.",
    "follow-up": FOLLOWED_UP,
    "follow-up to speech": FOLLOWED_UP,
    "follow-up to sound": FOLLOWED_UP,
}
CASES = {
    "langchain_chat.py": [
        "picture",
        "sound",
        "standard blocks",
        "stream",
        "follow-up",
        "follow-up to speech",
        "follow-up to sound",
    ],
    "litellm_chat.py": ["picture", "sound", "stream", "follow-up", "follow-up to speech"],
    "agents_chat.py": ["picture", "sound", "stream", "follow-up"],
    "openai_node.mjs": ["picture", "sound", "stream", "stream helper", "follow-up", "follow-up to speech"],
    "vercel_ai.mjs": [
        f"{case}, {provider}"
        for provider in ("compatible", "openai")
        for case in ("picture", "sound", "stream", "follow-up")
    ],
}


def needs_node(program: str) -> None:
    if program.endswith(".mjs") and not shutil.which("node"):
        pytest.skip("Node is not installed")


@pytest.mark.parametrize(("program", "case"), [(program, case) for program, cases in CASES.items() for case in cases])
def test_a_library_gets_the_right_answer(program: str, case: str, answers: Answers) -> None:
    needs_node(program)
    assert answers(program)[case] == RIGHT[case.partition(",")[0]]


@pytest.mark.parametrize("program", ["langchain_chat.py", "litellm_chat.py", "openai_node.mjs"])
def test_a_library_gets_a_spoken_answer(program: str, answers: Answers) -> None:
    needs_node(program)
    speech = answers(program)["speech"]
    assert speech["text"] == RIGHT["picture"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(speech["sound"])))
    assert rate == 24000
    assert 1 < len(samples) / rate < 4
    assert numpy.abs(samples).max() > 0.1


def test_a_stream_helper_joins_a_spoken_answer(answers: Answers) -> None:
    needs_node("openai_node.mjs")
    speech = answers("openai_node.mjs")["streamed speech"]
    assert speech["text"] == speech["transcript"] == RIGHT["picture"]
    assert speech["id"].count("audio_") == 1
    samples = numpy.frombuffer(base64.b64decode(speech["sound"]), "<i2")
    assert 1 < len(samples) / 24000 < 4
    assert numpy.abs(samples).max() > 3000
