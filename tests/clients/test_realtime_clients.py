"""Popular clients of OpenAI's Realtime API hold spoken conversations with the server, with their default settings."""

from __future__ import annotations

import base64
from typing import Any

import numpy
import pytest

from tests.clients.conftest import LIBRARIES
from tests.clients.test_clients import FOLLOWED_UP, RIGHT, Answers, needs_node

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="the client libraries are not installed: run make test-clients")

PROGRAMS = [
    "openai_realtime.py",
    "agents_realtime.py",
    "agents_realtime.mjs",
    "livekit_realtime.py",
    "pipecat_realtime.py",
]
RATE = 24_000


@pytest.fixture(params=PROGRAMS)
def results(request: pytest.FixtureRequest, answers: Answers) -> dict[str, Any]:
    needs_node(request.param)
    return answers(request.param)


def check_speech(answer: dict[str, Any]) -> None:
    """Check that the sound of an answer is loud, and between 1 and 6 seconds long, as is expected of speech."""
    assert 1 < len(check_loud(answer)) / RATE < 6


def check_loud(answer: dict[str, Any]) -> numpy.ndarray:
    """Check that the sound of an answer is loud. Returns its samples, int16 [samples].

    If the demo model was not trained for a prompt, the length of the sound is not checked, because the length varies:
    for the same words, the talker makes between 1 and 9 seconds of sound, depending on the random samples.
    """
    samples = numpy.frombuffer(base64.b64decode(answer["sound"]), "<i2")
    assert numpy.abs(samples.astype(int)).max() > 3_000
    return samples


def test_a_spoken_question_about_a_picture_is_answered(results: dict[str, Any]) -> None:
    answer = results["picture"]
    assert answer["text"] == RIGHT["picture"]
    check_speech(answer)


def test_an_interrupted_answer_keeps_what_was_heard(results: dict[str, Any]) -> None:
    answer = results["barge-in"]
    assert answer["text"] == RIGHT["picture"]
    check_speech(answer)
    if "heard" in answer:  # LiveKit does not request this transcript
        assert len(answer["heard"]) < len(answer["before"])
        assert answer["before"].startswith(answer["heard"])


@pytest.mark.parametrize("program", ["agents_realtime.py", "agents_realtime.mjs", "pipecat_realtime.py"])
def test_an_answer_that_was_played_in_part_keeps_its_first_words(program: str, answers: Answers) -> None:
    needs_node(program)
    assert answers(program)["barge-in"]["heard"].strip()


def test_a_tool_is_called_and_its_result_is_spoken_about(results: dict[str, Any]) -> None:
    """The words of the answer are not judged, because the demo model was not trained for tools."""
    answer = results["tool"]
    assert answer["called"] == {"name": "in_stock", "arguments": {"kind": "car"}}
    assert answer["text"].strip()
    check_loud(answer)


def test_the_history_of_an_earlier_session_is_understood(
    request: pytest.FixtureRequest, results: dict[str, Any]
) -> None:
    answer = results["history"]
    if "pipecat" in request.node.callspec.params["results"]:
        assert answer["text"].strip()  # Pipecat puts the history into one message, which the demo model cannot read
        check_loud(answer)
    else:
        assert answer["text"] == FOLLOWED_UP
        check_speech(answer)
