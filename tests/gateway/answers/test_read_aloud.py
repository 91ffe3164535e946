"""When a text is read aloud, clients receive the sound in every format while it is generated."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import aiohttp
import pytest
import soundfile

from gateway.answers.audio_formats import to_pcm16
from omni_pipeline.errors import ErrorInfo, internal
from stages.messages import SpeechRequest
from tests.gateway.answers.test_audio_formats import COMPRESSED, PIECES, cut, played
from tests.gateway.scripted import ScriptedPipeline, Served, serving, tone

MEANT = to_pcm16(tone(sum(PIECES))).tobytes()
LOST = ErrorInfo(status=503, message="The worker is lost.", code="worker_lost", retry_after=1)


def speaking() -> ScriptedPipeline:
    return ScriptedPipeline([], voice=cut())


def events_of(data: bytes) -> list[dict]:
    return [json.loads(event.removeprefix("data: ")) for event in data.decode().split("\n\n") if event[:1] == "d"]


async def begun(served: Served, **fields: object) -> tuple[aiohttp.ClientResponse, str]:
    """A response whose first sound has arrived, and the id of its answer."""
    body = {"input": "Hello!", "response_format": "pcm"} | fields
    asked = asyncio.create_task(served.session.post(f"{served.url}/v1/audio/speech", json=body))
    answer_id = await served.pipeline.submitted.get()
    served.pipeline.speak(answer_id, tone(4800))
    return await asked, answer_id


@pytest.mark.parametrize(
    ("named", "media_type"),
    [(None, "audio/mpeg"), ("opus", "audio/ogg"), ("aac", "audio/aac"), ("flac", "audio/flac"), ("wav", "audio/wav"),
     ("pcm", "audio/pcm"), ("pcm16", "audio/pcm")],
)  # fmt: skip
async def test_the_body_is_the_sound_in_the_format_that_was_asked_for(named, media_type):
    async with serving(speaking(), speaks=True) as served:
        status, headers, data = await served.read_aloud(response_format=named)
    assert (status, headers["Content-Type"], headers["Transfer-Encoding"]) == (200, media_type, "chunked")
    if media_type == "audio/pcm":
        assert data == MEANT
    elif named == "wav":
        assert data[4:8] == data[40:44] == b"\xff" * 4, "the length is not known when the header is sent"
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert (rate, samples.tobytes()) == (24_000, MEANT)
    else:
        samples, rate = played(data)
        assert len(samples) / rate == pytest.approx(sum(PIECES) / 24_000, abs=0.1)


async def test_the_pipeline_gets_the_text():
    async with serving(speaking(), speaks=True) as served:
        await served.read_aloud(voice="aiden", instructions=" Slowly. ")
        [body] = [body for body in served.pipeline.bodies.values() if isinstance(body, SpeechRequest)]
    assert (body.text, body.instructions, body.speech.speaker) == ("Hello!", "Slowly.", "aiden")


@pytest.mark.parametrize("audio_format", ["pcm", "wav", *COMPRESSED])
async def test_events_together_are_one_file(audio_format):
    async with serving(speaking(), speaks=True) as served:
        status, headers, data = await served.read_aloud(stream_format="sse", response_format=audio_format)
    *deltas, done = events_of(data)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    frames = 2 * len(PIECES)
    usage = {"input_tokens": 6, "output_tokens": frames, "total_tokens": 6 + frames}
    assert done == {"type": "speech.audio.done", "usage": usage}
    file = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    if audio_format == "pcm":
        assert file == MEANT
    else:
        samples, rate = played(file)
        assert len(samples) / rate == pytest.approx(sum(PIECES) / 24_000, abs=0.1)


async def test_sound_is_sent_as_soon_as_it_is_made():
    async with serving(ScriptedPipeline(), speaks=True) as served:
        response, answer_id = await begun(served)
        assert len(await response.content.readexactly(9600)) == 9600
        served.pipeline.hush(answer_id)
        assert await response.read() == b""


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_an_error_before_the_first_sound_has_its_own_status(stream_format):
    async with serving(ScriptedPipeline(), speaks=True) as served:
        asked = asyncio.create_task(served.read_aloud(stream_format=stream_format))
        served.pipeline.fail(await served.pipeline.submitted.get(), LOST)
        status, headers, data = await asked
    assert (status, json.loads(data)["error"]["code"], headers["Retry-After"]) == (503, "worker_lost", "1")


async def test_an_error_within_the_sound_cuts_the_connection_off():
    async with serving(ScriptedPipeline(), speaks=True) as served:
        response, answer_id = await begun(served)
        await response.content.readexactly(9600)
        served.pipeline.fail(answer_id, LOST)
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        page = await (await served.session.get(f"{served.url}/metrics")).text()
    assert 'omni_requests_total{outcome="failed"} 1.0' in page
    assert 'omni_errors_total{code="worker_lost"} 1.0' in page


async def test_an_error_within_events_is_the_last_event():
    async with serving(ScriptedPipeline(), speaks=True) as served:
        response, answer_id = await begun(served, stream_format="sse")
        served.pipeline.fail(answer_id, LOST)
        *_, last = events_of(await response.read())
    assert last["error"]["code"] == "worker_lost"


async def test_a_missing_message_is_an_error():
    async with serving(ScriptedPipeline(), speaks=True) as served:
        response, answer_id = await begun(served, stream_format="sse")
        served.pipeline.lose(answer_id, "code2wav")
        served.pipeline.hush(answer_id)
        *_, last = events_of(await response.read())
    assert last["error"]["code"] == internal("", code="stream_gap").info.code


async def test_a_client_that_leaves_aborts_its_request():
    async with serving(ScriptedPipeline(), speaks=True) as served:
        response, answer_id = await begun(served)
        response.close()
        assert await served.pipeline.aborted.get() == answer_id
        response, answer_id = await begun(served)
        served.pipeline.hush(answer_id)
        await response.read()
        assert served.pipeline.aborted.empty()


async def test_a_quiet_stream_of_events_is_kept_alive_and_quiet_sound_begins():
    async with serving(ScriptedPipeline(), speaks=True, limits={"keep_alive_seconds": 0.05}) as served:
        for stream_format, first in (("sse", b": keep-alive\n\n"), ("audio", b"")):
            asked = asyncio.create_task(served.read_aloud(stream_format=stream_format, response_format="pcm"))
            answer_id = await served.pipeline.submitted.get()
            await asyncio.sleep(0.2)
            served.pipeline.speak(answer_id, tone(4800))
            served.pipeline.hush(answer_id)
            status, _, data = await asked
            assert status == 200
            assert data.startswith(first)
        assert data == to_pcm16(tone(4800)).tobytes()


async def test_a_text_may_be_silent():
    async with serving(ScriptedPipeline([]), speaks=True) as served:
        for audio_format, size in (("pcm", 0), ("wav", 44), ("mp3", 0)):
            status, _, data = await served.read_aloud(response_format=audio_format)
            assert (status, len(data)) == (200, size)


async def test_it_is_counted():
    async with serving(speaking(), speaks=True) as served:
        await served.read_aloud()
        page = await (await served.session.get(f"{served.url}/metrics")).text()
    for line in (
        'omni_requests_total{outcome="ok"} 1.0',
        "omni_prompt_tokens_total 6.0",
        f"omni_codec_frames_total {2.0 * len(PIECES)}",
        "omni_time_to_first_audio_seconds_count 1.0",
    ):
        assert line in page


async def test_voices_are_listed():
    async with serving(speaks=True) as served:
        assert await served.get("/v1/audio/voices") == (
            200, {"voices": ["chelsie", "ethan", "aiden"], "default": "ethan"},
        )  # fmt: skip
    async with serving() as served:
        assert await served.get("/v1/audio/voices") == (200, {"voices": [], "default": None})
        status, _, data = await served.read_aloud()
        assert (status, json.loads(data)["error"]["code"]) == (400, "unsupported_value")


@pytest.mark.parametrize("with_stream", [False, True])
async def test_openais_client_gets_the_sound(with_stream):
    async with serving(speaking(), speaks=True) as served, served.openai() as client:
        asked = {"model": "tts-1", "voice": "ethan", "input": "Hello!", "response_format": "pcm", "speed": 1.0}
        if with_stream:
            async with client.audio.speech.with_streaming_response.create(**asked) as response:
                data = b"".join([piece async for piece in response.iter_bytes()])
        else:
            data = (await client.audio.speech.create(**asked)).content
    assert data == MEANT
