"""A served model reads texts aloud: for every client, of any length, and whatever other clients do."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import openai
import pytest
import requests
import soundfile

from tests.device import PATIENCE
from tests.gateway.api.test_speech_request import WRONG, body
from tests.server import Server

SENTENCE = "One car is red, and two cars are blue. "
SAMPLES = 1920
FRAMES = 12
GREEDY = {"stage_sampling": {"talker_ar": {"temperature": 0, "max_tokens": FRAMES + 1}}}
SHORT = {"voice": "ethan", "response_format": "pcm"} | GREEDY

# Requests of `WRONG` that exceed the limits of `test_speech_request`, but not the limits of this server.
OWN_LIMITS = {"long input", "long talker"}


@pytest.fixture(scope="module")
def voice(speaker: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def post(server: Server, **fields: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/audio/speech", json=fields, timeout=PATIENCE.request, stream=True)


def idle(server: Server) -> bool:
    """Whether all stages are free of requests within a few seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not any(server.live_requests().values()):
            return True
        time.sleep(0.2)
    return False


def test_openais_client_gets_a_file_in_every_format(voice: openai.OpenAI) -> None:
    asked: Any = {"model": "tts-1", "voice": "ethan", "input": "Hello!", "extra_body": GREEDY}
    for audio_format in ("mp3", "opus", "flac", "wav", "aac", "pcm"):
        data = voice.audio.speech.create(**asked, response_format=audio_format).content
        if audio_format in ("mp3", "opus", "wav"):
            samples, _ = soundfile.read(io.BytesIO(data))
            assert numpy.abs(samples).max() > 0.01
        assert len(data) > 100


def test_openais_client_streams(voice: openai.OpenAI) -> None:
    asked: Any = {"model": "tts-1", "voice": "ethan", "input": "Hello!", "response_format": "pcm", "extra_body": GREEDY}
    with voice.audio.speech.with_streaming_response.create(**asked) as response:
        pieces = list(response.iter_bytes())
    assert b"".join(pieces) == voice.audio.speech.create(**asked).content


@pytest.mark.parametrize("name", sorted(WRONG.keys() - OWN_LIMITS))
def test_bad_input_is_refused_by_its_field(speaker: Server, name: str) -> None:
    fields, code, param, _ = WRONG[name]
    response = post(speaker, **body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)


@pytest.mark.parametrize(
    "sent",
    [b"", b"[", b"null", b"[]", b'{"input": "\\ud800"}', b'{"input": "\xff"}', b"[" * 100_000],
    ids=["nothing", "half", "null", "a list", "half a character", "not UTF-8", "deep"],
)
def test_a_broken_body_is_refused(speaker: Server, sent: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{speaker.url}/v1/audio/speech", data=sent, headers=headers, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    response = requests.post(f"{speaker.url}/v1/audio/speech", data=sent, timeout=30)
    assert response.status_code == 415


def test_a_text_that_is_too_long_is_refused(speaker: Server) -> None:
    response = post(speaker, input="a" * 100_001)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "text_too_long")


def test_a_limit_holds_for_all_passages_of_a_long_text(speaker: Server) -> None:
    asked = {"input": SENTENCE * 100, "voice": "ethan", "response_format": "pcm"}

    def frames(**talker: Any) -> float:
        sampling = {"talker_ar": {"temperature": 0, **talker}}
        return (len(post(speaker, **asked, stage_sampling=sampling).content) / 2 + 555) / SAMPLES

    whole = frames()
    assert whole > 4 * 5, "each of the five passages has some frames"
    assert frames(max_tokens=int(whole) - 4) == whole - 5


def test_a_seed_repeats_alone_and_in_company(speaker: Server) -> None:
    asked = {"input": SENTENCE * 3, "response_format": "pcm", "stage_sampling": {"talker_ar": {"max_tokens": 31}}}
    with ThreadPoolExecutor(8) as clients:
        sounds = list(clients.map(lambda seed: post(speaker, **asked, seed=seed).content, [7, 1, 2, 3, 4, 5, 6, 7]))
    assert sounds[0] == sounds[-1] == post(speaker, **asked, seed=7).content
    assert len(set(sounds)) == 7


def test_clients_that_leave_leave_nothing(speaker: Server) -> None:
    sampling = {"talker_ar": {"max_tokens": 4000}}
    for _ in range(6):
        response = post(speaker, input=SENTENCE * 500, response_format="pcm", stage_sampling=sampling)
        assert next(response.iter_content(1000))
        response.close()
    assert idle(speaker)


def test_a_lost_worker_cuts_the_sound_off_and_the_next_text_is_read(speaker: Server) -> None:
    sampling = {"talker_ar": {"max_tokens": 4000}}
    events = post(
        speaker, input=SENTENCE * 500, response_format="pcm", stage_sampling=sampling, stream_format="sse"
    ).iter_lines()
    sound = post(speaker, input=SENTENCE * 500, response_format="pcm", stage_sampling=sampling).iter_content(1000)
    assert next(sound)
    assert b"speech.audio.delta" in next(events)
    os.kill(speaker.health()[1]["workers"]["talker_ar"]["pid"], signal.SIGKILL)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(sound)
    assert b'"worker_lost"' in [line for line in events if line][-1]
    speaker.wait_until_ready(PATIENCE.start)
    assert post(speaker, input="Hello!", **SHORT).status_code == 200
