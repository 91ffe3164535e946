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
    "agents_responses.py": ["picture", "sound", "stream", "follow-up"],
    "openai_responses.py": ["picture", "sound", "stream", "stream helper", "follow-up"],
    "openai_responses.mjs": ["picture", "sound", "stream", "stream helper", "follow-up"],
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


LOOPS = ["text", "picture", "sound", "streamed"]


@pytest.mark.parametrize(
    ("program", "case"),
    [
        *((program, case) for program in ("openai_tools.py", "openai_tools.mjs", "agents_chat.py") for case in LOOPS),
        ("openai_tools.py", "speech"),
        ("openai_tools.mjs", "speech"),
    ],
)
def test_a_library_runs_a_tool_loop(program: str, case: str, answers: Answers) -> None:
    """The answers after the result of the tool are not judged, because the demo model was not trained for tools."""
    needs_node(program)
    answer = answers(program)[f"tools, {case}"]
    assert answer["called"] == {"name": "in_stock", "arguments": {"kind": "car"}}
    assert answer["text"].strip()
    if case == "speech":
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(answer["sound"])))
        assert len(samples) / rate > 0.5
        assert numpy.abs(samples).max() > 0.1


@pytest.mark.parametrize("program", ["langchain_chat.py", "litellm_chat.py", "openai_node.mjs"])
def test_a_library_gets_a_spoken_answer(program: str, answers: Answers) -> None:
    needs_node(program)
    speech = answers(program)["speech"]
    assert speech["text"] == RIGHT["picture"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(speech["sound"])))
    assert rate == 24000
    assert 1 < len(samples) / rate < 4
    assert numpy.abs(samples).max() > 0.1


def test_a_text_is_read_aloud(answers: Answers) -> None:
    needs_node("openai_node.mjs")
    read = answers("openai_node.mjs")["read aloud"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(read["sound"])))
    assert rate == 24000
    assert 1 < len(samples) / rate < 4
    assert numpy.abs(samples).max() > 0.1
    assert read["pieces"] > 1


def test_a_stream_helper_joins_a_spoken_answer(answers: Answers) -> None:
    needs_node("openai_node.mjs")
    speech = answers("openai_node.mjs")["streamed speech"]
    assert speech["text"] == speech["transcript"] == RIGHT["picture"]
    assert speech["id"].count("audio_") == 1
    samples = numpy.frombuffer(base64.b64decode(speech["sound"]), "<i2")
    assert 1 < len(samples) / 24000 < 4
    assert numpy.abs(samples).max() > 3000


def test_openai_s_library_for_node_gets_transcripts(answers: Answers) -> None:
    needs_node("openai_node.mjs")
    found = answers("openai_node.mjs")["transcripts"]
    assert found["whole"] == found["streamed"] == found["done"] != ""
    assert found["translated"]
    assert found["heard"] > 10
