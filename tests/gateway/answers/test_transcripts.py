"""Transcripts and translations over HTTP: the whole and the streamed answer, the order of pieces, and how a request
ends.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jsonschema
import openai
import pytest

from gateway.api.openapi import openapi_document
from gateway.bench.events import DONE, EventSplitter
from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.messages import Claim
from stages.messages import PieceRequest, Recording, TranscriptTask
from tests.gateway.scripted import ScriptedPipeline, Served, serving, token

SOUND = b"RIFF, as far as the gateway knows"
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
ENDS = [20.0, 41.5, 50.0]


def form(file: bytes | None = SOUND, **fields: Any) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        data.add_field(name.replace("__", "[]"), str(value))
    if file is not None:
        data.add_field("file", file, filename="a.wav")
    return data


@asynccontextmanager
async def post(served: Served, path: str = TRANSCRIPTIONS, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    async with served.session.post(served.url + path, data=form(**fields)) as response:
        yield response


async def answer(served: Served, path: str = TRANSCRIPTIONS, **fields: Any) -> tuple[int, Any]:
    async with post(served, path, **fields) as response:
        return response.status, await response.json()


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    splitter = EventSplitter()
    found = [data for piece in [await response.read()] for data in splitter.feed(piece)]
    return [data if data == DONE else json.loads(data) for data in found]


def says(texts: Sequence[str], ends: Sequence[float] = ENDS) -> ScriptedPipeline:
    """A pipeline that returns these texts as the transcripts of the pieces of every recording."""

    class Pipeline(ScriptedPipeline):
        def say_all(self, request_id: str, pieces: list[str]) -> None:
            body = self.bodies[request_id]
            if isinstance(body, PieceRequest):
                pieces = texts[body.index].split("|")
            super().say_all(request_id, pieces)

    pipeline = Pipeline([""])
    pipeline.ends = list(ends)
    return pipeline


@pytest.mark.parametrize(("path", "task"), [(TRANSCRIPTIONS, "transcribe"), (TRANSLATIONS, "translate")])
async def test_a_recording_and_its_piece_are_sent_to_the_pipeline(path: str, task: TranscriptTask):
    async with serving() as served:
        status, body = await answer(served, path, language="fr", prompt="Ships.", seed=7)
        assert status == 200
        assert body == {
            "text": "Hello",
            "usage": {
                "input_tokens": 11,
                "output_tokens": 3,
                "total_tokens": 14,
                "input_token_details": {"audio_tokens": 2, "text_tokens": 9},
                "type": "tokens",
            },
            "finish_reason": "stop",
        }
        first, second = [await served.pipeline.submitted.get() for _ in range(2)]
        recording, piece = served.pipeline.bodies[first], served.pipeline.bodies[second]
        assert isinstance(recording, Recording)
        assert bytes(recording.sound.data.buffer()) == SOUND
        assert (recording.sound.kind, recording.sound.param) == ("audio", "file")
        assert (recording.task, recording.language, recording.context) == (task, "fr", "Ships.")
        assert isinstance(piece, PieceRequest)
        assert (piece.index, piece.thinker.seed, piece.text.stream) == (0, 7, False)
        assert (piece.recording, second) == (first, f"{first}-0")
        assert await served.pipeline.aborted.get() == first, "the pipeline does not keep the recording any longer"
        assert served.pipeline.aborted.empty()


async def test_pieces_are_joined_in_order():
    async with serving(
        says(
            [
                "Once| upon",
                "a time",
                " there",
            ]
        )
    ) as served:
        status, body = await answer(served)
        assert (status, body["text"]) == (200, "Once upon a time there")
        assert body["usage"]["input_tokens"] == 33
        assert body["usage"]["output_tokens"] == 9


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["你好。", "再见。"], "你好。再见。"),
        (["はい", "ok"], "はい ok"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["a", "", "b"], "a b"),
        (["", "a"], "a"),
        (["a\n", "b"], "a\nb"),
        (["", ""], ""),
    ],
)
async def test_a_space_is_between_pieces_where_the_script_has_spaces(texts: list[str], whole: str):
    ends = ENDS[: len(texts)]
    async with serving(says(texts, ends)) as served:
        assert (await answer(served))[1]["text"] == whole
        async with post(served, stream="true") as response:
            *deltas, done, _ = await events(response)
        assert "".join(event["delta"] for event in deltas) == done["text"] == whole


async def test_plain_text():
    async with serving(says(["é", "b", "c"])) as served, post(served, response_format="text") as response:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await response.text() == "é b c"


async def test_verbose_json_says_what_is_known():
    pipeline = ScriptedPipeline()
    pipeline.ends, pipeline.language = [20.0, 30.5], "French"
    async with serving(pipeline) as served:
        request = asyncio.create_task(answer(served, response_format="verbose_json", temperature=0.5))
        recording = await pipeline.submitted.get()
        for index in range(2):
            piece = await pipeline.submitted.get()
            assert piece == f"{recording}-{index}"
            body = pipeline.bodies[piece]
            assert isinstance(body, PieceRequest)
            assert body.text.logprobs
            assert body.text.return_token_ids
            pipeline.say(piece, "Oui oui oui oui oui oui", [token("Oui", -0.5), token(" oui", -1.5)])
            pipeline.finish(piece, "length" if index else "stop")
        status, body = await request
    assert status == 200
    first, second = body.pop("segments")
    assert body == {
        "task": "transcribe",
        "language": "french",
        "duration": 30.5,
        "text": "Oui oui oui oui oui oui Oui oui oui oui oui oui",
        "usage": {"type": "duration", "seconds": 30.5},
    }
    assert first.pop("compression_ratio") > 1
    assert first == {
        "id": 0,
        "start": 0.0,
        "end": 20.0,
        "text": "Oui oui oui oui oui oui",
        "tokens": [],
        "temperature": 0.5,
        "avg_logprob": -1.0,
        "finish_reason": "stop",
    }
    assert (second["start"], second["end"], second["finish_reason"]) == (20.0, 30.5, "length")


async def test_a_piece_that_is_cut_off_shows():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        request = asyncio.create_task(answer(served, max_tokens=2))
        await pipeline.submitted.get()
        piece = await pipeline.submitted.get()
        assert pipeline.bodies[piece].thinker.max_tokens == 2
        pipeline.say(piece, "Hm")
        pipeline.finish(piece, "length")
        assert (await request)[1]["finish_reason"] == "length"


async def test_a_stream_has_deltas_and_the_whole():
    async with serving(says(["On|ce", "upon"], ENDS[:2])) as served, post(served, stream="true") as response:
        found = await events(response)
    usage = {
        "input_tokens": 22,
        "output_tokens": 6,
        "total_tokens": 28,
        "input_token_details": {"audio_tokens": 4, "text_tokens": 18},
        "type": "tokens",
    }
    assert found == [
        *({"type": "transcript.text.delta", "delta": text} for text in ("On", "ce", " upon")),
        {"type": "transcript.text.done", "text": "Once upon", "usage": usage, "finish_reason": "stop"},
        DONE,
    ]


async def test_log_probabilities_come_with_the_text():
    pipeline = ScriptedPipeline()
    wanted = [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}]
    async with serving(pipeline) as served:
        for stream in ("false", "true"):
            request = asyncio.create_task(_read(served, include__="logprobs", stream=stream))
            await pipeline.submitted.get()
            piece = await pipeline.submitted.get()
            assert pipeline.bodies[piece].text.logprobs
            pipeline.say(piece, "Hi", [token("Hi", -0.5, (("Ho", -1.0),))])
            pipeline.finish(piece)
            received = await request
            if stream == "false":
                assert json.loads(received)["logprobs"] == wanted
            else:
                delta, done = (json.loads(data) for data in list(EventSplitter().feed(received))[:2])
                assert delta["logprobs"] == done["logprobs"] == wanted


async def _read(served: Served, **fields: Any) -> bytes:
    async with post(served, **fields) as response:
        return await response.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_s_client_understands_the_answers(stream: bool):
    async with serving(says(["One", "two", "three"])) as served:
        client = served.openai()
        sound = ("a.wav", io.BytesIO(SOUND))
        if not stream:
            whole = await client.audio.transcriptions.create(file=sound, model="m", language="en", include=["logprobs"])
            assert whole.text == "One two three"
            assert whole.logprobs == []
            assert whole.usage is not None
            assert whole.usage.type == "tokens"
            text = await client.audio.transcriptions.create(file=sound, model="m", response_format="text")
            assert text == "One two three"
            verbose = await client.audio.transcriptions.create(file=sound, model="m", response_format="verbose_json")
            assert [segment.end for segment in verbose.segments or ()] == ENDS
            english = await client.audio.translations.create(file=sound, model="m", prompt="Ships.")
            assert english.text == "One two three"
            return
        events = await client.audio.transcriptions.create(file=sound, model="m", response_format="text", stream=True)
        kinds = [event async for event in events]
        assert [event.type for event in kinds] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
        assert kinds[-1].text == "One two three"


async def test_openai_s_client_raises_errors():
    async with serving() as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await served.openai().audio.transcriptions.create(
                file=SOUND, model="m", response_format="verbose_json", timestamp_granularities=["word"]
            )
        assert caught.value.param == "timestamp_granularities"


async def test_a_few_pieces_are_in_the_pipeline_at_a_time():
    pipeline = ScriptedPipeline()
    pipeline.ends = [10.0 * index for index in range(1, 6)]
    async with serving(pipeline, limits={"recording_pieces": 2}) as served:
        request = asyncio.create_task(answer(served))
        recording = await pipeline.submitted.get()
        assert pipeline.bodies[recording].at_once == 2
        first, second = [await pipeline.submitted.get() for _ in range(2)]
        await settle()
        assert pipeline.submitted.empty()
        pipeline.say_all(second, ["b"])  # the text of the second piece must wait for the first piece
        await settle()
        assert pipeline.submitted.empty()
        pipeline.say_all(first, ["a"])
        third, fourth = [await pipeline.submitted.get() for _ in range(2)]
        pipeline.say_all(third, ["c"])
        fifth = await pipeline.submitted.get()
        pipeline.say_all(fifth, ["e"])
        pipeline.say_all(fourth, ["d"])
        assert (await request)[1]["text"] == "a b c d e"


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_an_error_of_a_piece_fails_the_request_and_aborts_the_others(stream: str):
    pipeline = ScriptedPipeline()
    pipeline.ends = ENDS
    async with serving(pipeline) as served:
        request = asyncio.create_task(_read(served, stream=stream))
        recording, first, second, third = [await pipeline.submitted.get() for _ in range(4)]
        pipeline.say(first, "Once")
        await settle()
        pipeline.fail(second, ErrorInfo(status=400, message="It is bad.", code="bad", param="prompt"))
        received = (await request).decode()
        assert '"code":"bad"' in received
        assert ('"delta":"Once"' in received) == (stream == "true")
        assert DONE not in received
        aborted = {await pipeline.aborted.get() for _ in range(4)}
        assert aborted == {recording, first, second, third}


@pytest.mark.parametrize("broken", ["recording", "first piece"])
async def test_an_early_error_has_its_own_status_even_in_a_stream(broken: str):
    pipeline = ScriptedPipeline()
    pipeline.ends = None if broken == "recording" else ENDS
    async with serving(pipeline) as served:
        request = asyncio.create_task(answer(served, stream="true"))
        failing = await pipeline.submitted.get()
        if broken == "first piece":
            failing = await pipeline.submitted.get()
        pipeline.fail(failing, ErrorInfo(status=400, message="No.", code="invalid_audio", param="file"))
        status, body = await request
        assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_audio", "file")


async def test_a_request_ends_when_its_client_leaves():
    pipeline = ScriptedPipeline()
    pipeline.ends = ENDS
    async with serving(pipeline, limits={"recording_pieces": 2}) as served:
        request = asyncio.create_task(_read(served))
        sent = {await pipeline.submitted.get() for _ in range(3)}
        request.cancel()
        assert {await pipeline.aborted.get() for _ in range(3)} == sent
        await settle()
        assert await held(served) == (0, 0)


async def held(served: Served) -> tuple[float, float]:
    """The number of bytes that requests hold, and the number of requests in flight."""
    async with served.session.get(f"{served.url}/metrics") as response:
        lines = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
    return float(lines["omni_held_bytes"]), float(lines["omni_requests_in_flight"])


async def test_the_file_is_held_until_the_first_text():
    pipeline = ScriptedPipeline()
    pipeline.ends = None
    async with serving(pipeline) as served:
        request = asyncio.create_task(answer(served, file=b"x" * 10_000))
        recording = await pipeline.submitted.get()
        assert (await held(served))[0] > 10_000
        pipeline.cut(recording, [5.0])
        piece = await pipeline.submitted.get()
        pipeline.say(piece, "Hm")
        await settle()
        assert (await held(served))[0] == 0
        pipeline.finish(piece)
        assert (await request)[0] == 200
        assert await held(served) == (0, 0)


async def test_the_place_is_kept_until_every_part_is_forgotten():
    pipeline = ScriptedPipeline()
    pipeline.forgets = False
    async with serving(pipeline, limits={"requests": 1, "queued": 0}) as served:
        request = asyncio.create_task(_read(served))
        recording, piece = [await pipeline.submitted.get() for _ in range(2)]
        request.cancel()
        for part in (piece, recording):
            assert part == await pipeline.aborted.get()
            assert (await answer(served))[0] == 429
            pipeline.unforgotten.pop(part)()
        pipeline.answer, pipeline.forgets = ["Hello"], True
        assert (await answer(served))[1]["text"] == "Hello"


async def test_a_recording_takes_memory_and_its_pieces_take_none():
    pipeline = ScriptedPipeline()
    pipeline.ends = None
    granted: list[str] = []
    async with serving(pipeline, limits={"decoded_bytes": 1000}) as served:
        request = asyncio.create_task(answer(served))
        recording = await pipeline.submitted.get()
        _claim(pipeline, recording, 400, 600, granted)
        assert granted == [recording]
        pipeline.cut(recording, [5.0])
        piece = await pipeline.submitted.get()
        _claim(pipeline, piece, 400, 600, granted)
        assert granted == [recording, piece]
        other = asyncio.create_task(answer(served))
        waiting = await pipeline.submitted.get()
        _claim(pipeline, waiting, 1, 0, granted)
        assert granted == [recording, piece]
        pipeline.say_all(piece, ["Hm"])
        assert (await request)[0] == 200
        assert granted == [recording, piece, waiting]
        other.cancel()


def _claim(pipeline: ScriptedPipeline, request_id: str, passing: int, lasting: int, granted: list[str]) -> None:
    pipeline.claimed(Claim(request_id, "preprocessing", passing, lasting), lambda: granted.append(request_id))


LOST = ErrorInfo(status=503, message="Lost.", code="worker_lost")


@pytest.mark.parametrize("begun", [0, 2])
async def test_a_lost_recording_fails_a_request_whose_pieces_still_need_it(begun: int):
    pipeline = ScriptedPipeline()
    pipeline.ends = ENDS
    async with serving(pipeline) as served:
        request = asyncio.create_task(answer(served))
        _, *pieces = [await pipeline.submitted.get() for _ in range(4)]
        for piece in pieces[:begun]:
            pipeline.say(piece, "Hm")
        pipeline.lost(frozenset({"preprocessing"}), LOST)
        status, body = await request
        assert (status, body["error"]["code"]) == (503, "worker_lost")


async def test_a_lost_recording_fails_a_request_with_pieces_that_are_not_sent():
    pipeline = ScriptedPipeline()
    pipeline.ends = ENDS
    async with serving(pipeline, limits={"recording_pieces": 2}) as served:
        request = asyncio.create_task(answer(served))
        _, first, second = [await pipeline.submitted.get() for _ in range(3)]
        pipeline.say(first, "Hm")
        pipeline.say(second, "Hm")
        pipeline.lost(frozenset({"preprocessing"}), LOST)
        status, body = await request
        assert (status, body["error"]["code"]) == (503, "worker_lost")


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_lost_recording_does_no_harm_after_all_pieces_have_left_it(stream: str):
    pipeline = ScriptedPipeline()
    pipeline.ends = ENDS
    async with serving(pipeline) as served:
        request = asyncio.create_task(_read(served, stream=stream))
        _, *pieces = [await pipeline.submitted.get() for _ in range(4)]
        for piece in pieces:
            pipeline.say(piece, "Hm")
        pipeline.lost(frozenset({"preprocessing"}), LOST)
        await settle()
        for piece in pieces:
            pipeline.finish(piece)
        text = (await request).decode()
        assert text.count("Hm") >= 3
        assert "error" not in text
        await settle()
        assert await held(served) == (0, 0)


async def test_a_lost_thinker_fails_a_request_whose_recording_is_lost_too():
    pipeline = ScriptedPipeline()
    pipeline.ends = ENDS
    async with serving(pipeline) as served:
        request = asyncio.create_task(answer(served))
        _, *pieces = [await pipeline.submitted.get() for _ in range(4)]
        for piece in pieces:
            pipeline.say(piece, "Hm")
        pipeline.lost(frozenset({"preprocessing"}), LOST)
        pipeline.lost(frozenset({"thinker"}), LOST)
        status, body = await request
        assert (status, body["error"]["code"]) == (503, "worker_lost")


async def test_a_request_has_a_deadline():
    pipeline = ScriptedPipeline()
    async with serving(pipeline, limits={"request_seconds": 0.3}) as served:
        status, body = await answer(served)
        assert (status, body["error"]["code"]) == (504, "request_timeout")
        assert await held(served) == (0, 0)


async def test_a_form_that_does_not_arrive_is_given_up():
    async with serving(limits={"receive_seconds": 0.2}) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()


async def test_a_file_beyond_the_limits_is_refused_while_it_arrives():
    async with serving(media={"max_bytes": 1000}, limits={"body_bytes": 5000}) as served:
        for size, code in ((1001, "media_too_large"), (6000, "body_too_large")):
            status, body = await answer(served, file=b"x" * size)
            assert (status, body["error"]["code"]) == (413, code)
        assert (await answer(served, file=b"x" * 1000))[0] == 200
    async with serving(limits={"held_bytes": 500}) as served:
        assert (await answer(served, file=b"x" * 1000))[0] == 429
        assert await held(served) == (0, 0)


async def test_recordings_are_counted():
    async with serving(says(["a", "b", "c"])) as served:
        await answer(served)
        async with served.session.get(f"{served.url}/metrics") as response:
            lines = (await response.text()).splitlines()
    assert "omni_recording_seconds_total 50.0" in lines
    assert "omni_recording_pieces_total 3.0" in lines
    assert "omni_prompt_tokens_total 33.0" in lines
    assert f'omni_media_bytes_total{{kind="audio"}} {float(len(SOUND))}' in lines


DOCUMENT = json.loads(json.dumps(openapi_document(with_keys=False)))


def conforms(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


@pytest.mark.parametrize("path", [TRANSCRIPTIONS, TRANSLATIONS])
async def test_answers_are_as_described(path: str):
    described = DOCUMENT["paths"][path]["post"]["responses"]
    async with serving(says(["a", "b", "c"])) as served:
        for fields in ({}, {"include__": "logprobs"}, {"response_format": "verbose_json"}, {"temperature": "hot"}):
            status, body = await answer(served, path, **fields)
            assert status == (400 if "temperature" in fields else 200)
            conforms(body, described[str(status)]["content"]["application/json"]["schema"])
        async with post(served, path, stream="true", include__="logprobs") as response:
            *found, last = await events(response)
        assert last == DONE
        for event in found:
            conforms(event, described["200"]["content"]["text/event-stream"]["x-event"])
