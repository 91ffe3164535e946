"""Tests spoken answers as clients receive them. The tests use OpenAI's own client where that client gives enough
detail.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time

import numpy
import openai
import pytest
import soundfile
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.answers import sending
from gateway.answers.audio_formats import to_pcm16
from omni_pipeline.errors import internal
from tests.gateway.answers.test_audio_formats import COMPRESSED, PIECES, cut, played
from tests.gateway.answers.test_chat import events_of
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving, tone

ASK = {"model": "any", "messages": HELLO["messages"], "modalities": ["text", "audio"]}
PCM = {"voice": "chelsie", "format": "pcm16"}
SPOKEN = HELLO | {"modalities": ["text", "audio"], "audio": PCM}
HEARD_ONLY = SPOKEN | {"modalities": ["audio"]}
MEANT = to_pcm16(tone(sum(PIECES))).tobytes()


def speaking(voice: list[numpy.ndarray] | None = None) -> ScriptedPipeline:
    """A pipeline that answers "Hello", with `voice` as the sound."""
    return ScriptedPipeline(["Hel", "lo"], voice=cut() if voice is None else voice)


def sound_of(events: list) -> list[bytes]:
    """The decoded data of each audio event."""
    return [base64.b64decode(event["choices"][0]["delta"]["audio"]["data"]) for event in audio_events(events)]


def audio_events(events: list) -> list[dict]:
    return [event for event in events if event != "[DONE]" and event["modality"] == "audio"]


def deltas(events: list) -> list[dict]:
    return [event["choices"][0]["delta"] for event in events if event != "[DONE]" and event["choices"]]


class TestWhole:
    async def test_answers_in_openai_form(self):
        began = int(time.time())
        async with serving(speaking(), speaks=True) as served, served.openai() as client:
            completion = await client.chat.completions.create(**ASK, audio=PCM)
        ChatCompletion.model_validate(completion.model_dump(), strict=True)
        [choice] = completion.choices
        assert (choice.message.content, choice.finish_reason) == ("Hello", "stop")
        assert choice.message.audio.transcript == "Hello"
        assert choice.message.audio.id.startswith("audio_")
        assert base64.b64decode(choice.message.audio.data) == MEANT
        assert began + 3600 <= choice.message.audio.expires_at <= time.time() + 3600
        assert choice.message.audio.finish_reason == "stop"

    async def test_is_a_wav_file_by_default(self):
        async with serving(speaking(), speaks=True) as served:
            _, body = await served.post(HELLO | {"modalities": ["audio", "text"]})
        samples, rate = soundfile.read(
            io.BytesIO(base64.b64decode(body["choices"][0]["message"]["audio"]["data"])), dtype="int16"
        )
        assert (rate, samples.tobytes()) == (24_000, MEANT)

    @pytest.mark.parametrize("audio_format", COMPRESSED)
    async def test_is_coded_as_one_file_of_the_format_asked_for(self, audio_format):
        async with serving(speaking(), speaks=True) as served:
            _, body = await served.post(SPOKEN | {"audio": {"format": audio_format}})
        samples, rate = played(base64.b64decode(body["choices"][0]["message"]["audio"]["data"]))
        assert len(samples) / rate == pytest.approx(sum(PIECES) / 24_000, abs=0.1)

    async def test_has_no_content_when_only_sound_is_asked_for(self):
        async with serving(speaking(), speaks=True) as served:
            _, body = await served.post(HEARD_ONLY)
        message = body["choices"][0]["message"]
        assert message["content"] is None
        assert message["audio"]["transcript"] == "Hello"

    async def test_counts_codec_frames_beside_the_tokens_of_the_text(self):
        async with serving(speaking(), speaks=True) as served, served.openai() as client:
            usage = (await client.chat.completions.create(**ASK)).usage
        frames = 2 * len(PIECES)
        assert usage.completion_tokens_details.audio_tokens == frames
        assert usage.completion_tokens_details.model_extra == {"text_tokens": 3}
        assert (usage.completion_tokens, usage.total_tokens) == (3 + frames, 14 + frames)

    @pytest.mark.parametrize(("audio_format", "size"), [("pcm", 0), ("pcm16", 0), ("wav", 44), ("mp3", 0)])
    async def test_may_say_nothing(self, audio_format, size):
        async with serving(speaking([]), speaks=True) as served:
            status, body = await served.post(SPOKEN | {"audio": {"format": audio_format}})
        audio = body["choices"][0]["message"]["audio"]
        assert (status, len(base64.b64decode(audio["data"])), audio["transcript"]) == (200, size, "Hello")

    async def test_has_no_audio_field_when_only_text_is_asked_for(self):
        async with serving(speaking(), speaks=True) as served:
            _, body = await served.post(HELLO | {"audio": PCM})
        assert "audio" not in body["choices"][0]["message"]
        assert body["usage"]["completion_tokens_details"]["audio_tokens"] == 0


class TestStream:
    async def test_streams_in_openai_form(self):
        async with serving(speaking(), speaks=True) as served, served.openai() as client:
            stream = await client.chat.completions.create(
                **ASK, audio=PCM, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
        told = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert "".join(delta.content or "" for delta in told) == "Hello"
        audio = [delta.audio for delta in told if hasattr(delta, "audio")]
        assert b"".join(base64.b64decode(piece["data"]) for piece in audio) == MEANT
        assert chunks[-1].usage.completion_tokens_details.audio_tokens == 2 * len(PIECES)

    async def test_tells_text_then_sound_then_why_it_ended(self):
        async with serving(speaking(), speaks=True) as served:
            *events, last = await events_of(served, SPOKEN)
        assert [event["modality"] for event in events] == ["text"] * 3 + ["audio"] * (len(PIECES) + 1) + ["text"]
        assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
        assert last == "[DONE]"

    async def test_says_what_each_piece_of_sound_is(self):
        async with serving(speaking(), speaks=True) as served:
            events = await events_of(served, SPOKEN)
        assert [event["audio_metadata"] for event in audio_events(events)] == [
            {"format": "pcm16", "sample_rate_hz": 24_000, "frame_count": count, "channels": 1} for count in [*PIECES, 0]
        ]
        assert all("audio_metadata" not in event for event in events[:-1] if event["modality"] == "text")

    async def test_gives_transcript_and_expiry_with_the_last_piece(self):
        async with serving(speaking(), speaks=True) as served:
            *before, last = [delta for delta in deltas(await events_of(served, SPOKEN)) if "audio" in delta]
        assert last["audio"].keys() == {"data", "transcript", "expires_at", "finish_reason"}
        assert last["audio"]["transcript"] == "Hello"
        assert time.time() + 3590 < last["audio"]["expires_at"] <= time.time() + 3600
        assert [delta["audio"].keys() for delta in before] == [{"id", "data"}] + [{"data"}] * (len(PIECES) - 1)

    @pytest.mark.parametrize("voice", [[], None], ids=["silent", "speaking"])
    @pytest.mark.parametrize("modalities", [["text", "audio"], ["audio"]], ids="+".join)
    async def test_names_its_id_once_in_the_first_chunk_of_the_speech(self, modalities, voice):
        async with serving(speaking(voice), speaks=True) as served:
            told = deltas(await events_of(served, SPOKEN | {"modalities": modalities}))
        first, *others = [delta["audio"] for delta in told if "audio" in delta]
        assert first["id"].startswith("audio_")
        assert not any("id" in piece for piece in others)

    @pytest.mark.parametrize("modalities", [["text", "audio"], ["audio"]], ids="+".join)
    @pytest.mark.parametrize("audio_format", ["pcm16", "wav", *COMPRESSED])
    async def test_is_joined_by_the_stream_helper_of_openais_client(self, modalities, audio_format):
        ask = ASK | {"modalities": modalities, "audio": {"voice": "chelsie", "format": audio_format}}
        whole = {"extra_body": {"audio": ask["audio"] | {"chunks": "one_file"}}}
        async with (
            serving(speaking(), speaks=True) as served,
            served.openai() as client,
            client.chat.completions.stream(**ask, **whole) as stream,
        ):
            ids = [
                event.chunk.choices[0].delta.audio["id"]
                async for event in stream
                if event.type == "chunk" and "id" in (event.chunk.choices[0].delta.to_dict().get("audio") or {})
            ]
            [choice] = (await stream.get_final_completion()).choices
        message = choice.message
        assert [message.audio.id] == ids
        assert message.content == ("Hello" if "text" in modalities else None)
        assert (message.audio.transcript, message.audio.finish_reason) == ("Hello", "stop")
        assert time.time() + 3590 < message.audio.expires_at <= time.time() + 3600
        sound = base64.b64decode(message.audio.data, validate=True)
        if audio_format == "pcm16":
            assert sound == MEANT
        else:
            samples, rate = played(sound)
            assert len(samples) / rate == pytest.approx(sum(PIECES) / 24_000, abs=0.1)

    async def test_wav_is_one_file_for_each_piece(self):
        async with serving(speaking(), speaks=True) as served:
            events = await events_of(served, SPOKEN | {"audio": {"format": "wav"}})
        files = [soundfile.read(io.BytesIO(data), dtype="int16") for data in sound_of(events)]
        assert [len(samples) for samples, _ in files] == [*PIECES, 0]
        assert b"".join(samples.tobytes() for samples, _ in files) == MEANT

    @pytest.mark.parametrize("sizes", [PIECES, [2, 1, 100, 1366, 7]], ids=["usual pieces", "odd pieces"])
    async def test_wav_may_be_one_file_for_clients_that_join(self, sizes):
        ask = SPOKEN | {"audio": {"format": "wav", "chunks": "one_file"}}
        async with serving(speaking(cut(sizes)), speaks=True) as served:
            events = audio_events(await events_of(served, ask))
        pieces = [event["choices"][0]["delta"]["audio"]["data"] for event in events]
        assert not any("=" in piece for piece in pieces[:-1])
        joined = base64.b64decode("".join(pieces), validate=True)
        assert joined == b"".join(map(base64.b64decode, pieces))
        samples, rate = soundfile.read(io.BytesIO(joined), dtype="int16")
        assert (rate, samples.tobytes()) == (24_000, to_pcm16(tone(sum(sizes))).tobytes())
        header = 44
        for event, piece in zip(events, map(base64.b64decode, pieces), strict=True):
            assert event["audio_metadata"]["frame_count"] == (len(piece) - header) / 2
            header = 0

    @pytest.mark.parametrize("audio_format", COMPRESSED)
    async def test_compressed_pieces_are_one_file(self, audio_format):
        async with serving(speaking(), speaks=True) as served:
            events = await events_of(served, SPOKEN | {"audio": {"format": audio_format}})
        pieces = [event["choices"][0]["delta"]["audio"]["data"] for event in audio_events(events)]
        assert base64.b64decode("".join(pieces), validate=True) == b"".join(sound_of(events))
        samples, rate = played(b"".join(sound_of(events)))
        assert len(samples) / rate == pytest.approx(sum(PIECES) / 24_000, abs=0.1)
        counts = [event["audio_metadata"]["frame_count"] for event in audio_events(events)]
        assert sum(counts) == sum(PIECES)

    async def test_pcm_is_another_name_of_pcm16(self):
        async with serving(speaking(), speaks=True) as served:
            events = await events_of(served, SPOKEN | {"audio": {"format": "pcm"}})
        assert b"".join(sound_of(events)) == MEANT
        assert {event["audio_metadata"]["format"] for event in audio_events(events)} == {"pcm16"}

    async def test_is_the_same_sound_as_not_streamed(self):
        async with serving(speaking(), speaks=True) as served:
            streamed = b"".join(sound_of(await events_of(served, SPOKEN)))
            _, body = await served.post(SPOKEN)
        assert base64.b64decode(body["choices"][0]["message"]["audio"]["data"]) == streamed

    async def test_sends_only_a_transcript_in_pieces_when_only_sound_is_asked_for(self):
        async with serving(speaking(), speaks=True) as served:
            events = await events_of(served, HEARD_ONLY)
        told = deltas(events)
        assert told[0] == {"role": "assistant"}
        assert all("content" not in delta for delta in told)
        assert "".join(delta.get("audio", {}).get("transcript", "") for delta in told) == "Hello"
        assert b"".join(sound_of(events)) == MEANT

    async def test_sends_sound_while_the_text_goes_on(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, audio=PCM, stream=True))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "one")
            stream = await asked
            assert [(await anext(stream)).choices[0].delta.content for _ in range(2)] == ["", "one"]
            pipeline.speak(request_id, tone(1365))
            assert (await anext(stream)).modality == "audio"
            pipeline.say(request_id, "two")
            assert (await anext(stream)).choices[0].delta.content == "two"
            pipeline.hush(request_id, 1)
            pipeline.finish(request_id, "length")
            *_, last = [chunk async for chunk in stream]
        assert last.choices[0].finish_reason == "length"

    async def test_of_a_voice_that_ends_before_the_text_has_the_whole_transcript(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served:
            asked = asyncio.create_task(events_of(served, SPOKEN))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "one ")
            pipeline.speak(request_id, tone(1365))
            pipeline.hush(request_id, 1)
            pipeline.say(request_id, "two")
            pipeline.finish(request_id)
            told = deltas(await asked)
        assert told[-2]["audio"]["transcript"] == "one two"

    @pytest.mark.parametrize("audio_format", ["wav", "pcm16", *COMPRESSED])
    async def test_may_say_nothing(self, audio_format):
        async with serving(speaking([]), speaks=True) as served:
            events = await events_of(served, SPOKEN | {"audio": {"format": audio_format}})
        [event] = audio_events(events)
        assert event["audio_metadata"]["frame_count"] == 0
        assert event["choices"][0]["delta"]["audio"]["transcript"] == "Hello"
        assert events[-1] == "[DONE]"


class TestLimit:
    """If speech ends at the limit of its length, the answer reports this."""

    @pytest.mark.parametrize(
        ("modalities", "text", "speech", "ended"),
        [
            (["text", "audio"], "stop", "stop", "stop"),
            (["text", "audio"], "stop", "length", "stop"),
            (["text", "audio"], "length", "stop", "length"),
            (["audio"], "stop", "stop", "stop"),
            (["audio"], "stop", "length", "length"),
            (["audio"], "length", "stop", "length"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_is_told_beside_the_end_of_the_text(self, modalities, text, speech, ended, stream):
        pipeline = ScriptedPipeline()
        body = SPOKEN | {"modalities": modalities} | ({"stream_options": {"include_usage": True}} if stream else {})
        async with serving(pipeline, speaks=True) as served:
            asked = asyncio.create_task(events_of(served, body) if stream else served.post(body))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "Hello")
            pipeline.speak(request_id, tone(1365))
            pipeline.hush(request_id, 20, speech)
            pipeline.finish(request_id, text)
            answer = await asked
            figures = await metrics_of(served)
        if stream:
            *chunks, last, _ = answer
            reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
            assert reasons == [None] * (len(chunks) - 1) + [ended]
            told = [delta["audio"].get("finish_reason") for delta in deltas(chunks) if "audio" in delta]
            assert told == [None] * (len(told) - 1) + [speech]
        else:
            last = answer[1]
            assert last["choices"][0]["finish_reason"] == ended
            assert last["choices"][0]["message"]["audio"]["finish_reason"] == speech
        assert last["usage"]["completion_tokens_details"]["audio_tokens"] == 20
        assert figures['omni_requests_total{outcome="ok"}'] == 1


class TestRequest:
    async def test_reaches_the_pipeline_with_voice_and_sampling(self):
        async with serving(speaking(), speaks=True) as served, served.openai() as client:
            await client.chat.completions.create(
                **ASK, audio={"voice": "Aiden", "format": "wav"}, extra_body={"talker_temperature": 0}
            )
            speech = served.pipeline.bodies[await served.pipeline.submitted.get()].speech
        assert (speech.speaker, speech.talker.temperature, speech.predictor.temperature) == ("aiden", 0, 0)

    async def test_for_another_voice_is_refused_with_the_list(self):
        async with serving(speaking(), speaks=True) as served, served.openai() as client:
            with pytest.raises(openai.BadRequestError, match=r"known: chelsie, ethan \(default\), aiden") as caught:
                await client.chat.completions.create(**ASK, audio={"voice": "alloy", "format": "wav"})
        assert caught.value.param == "audio.voice"

    async def test_for_speech_is_refused_by_a_server_without(self):
        async with serving(speaking()) as served, served.openai() as client:
            with pytest.raises(openai.BadRequestError, match="does not speak") as caught:
                await client.chat.completions.create(**ASK)
        assert (caught.value.param, caught.value.code) == ("modalities", "unsupported_value")

    @pytest.mark.parametrize("speaks", [False, True])
    async def test_of_the_warm_up_is_for_speech_if_the_server_speaks(self, speaks):
        async with serving(speaking(), speaks=speaks) as served:
            await served.ready()
            speech = served.pipeline.bodies["warm-up-1"].speech
        assert (speech is not None) == speaks
        assert speech is None or speech.speaker == "ethan"


class TestEnd:
    async def test_of_a_client_in_the_middle_of_its_sound_aborts_it(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, stream=True))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "one")
            pipeline.finish(request_id)
            pipeline.speak(request_id, tone(1365))
            stream = await asked
            while (await anext(stream)).modality != "audio":
                pass
            await stream.close()
            assert await pipeline.aborted.get() == request_id

    async def test_by_an_error_in_the_middle_of_sound_is_an_event(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, audio=PCM, stream=True))
            request_id = await pipeline.submitted.get()
            pipeline.speak(request_id, tone(1365))
            stream = await asked
            pipeline.fail(request_id, internal("The voice is gone.", code="worker_lost").info, "code2wav")
            with pytest.raises(openai.APIError, match="The voice is gone"):
                [chunk async for chunk in stream]
            assert await pipeline.aborted.get() == request_id

    @pytest.mark.parametrize("stream", [False, True])
    async def test_by_a_lost_piece_of_sound_is_500(self, stream):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served:
            asked = asyncio.create_task(served.post(SPOKEN | {"stream": stream}))
            request_id = await pipeline.submitted.get()
            pipeline.lose(request_id, "code2wav")
            pipeline.speak(request_id, tone(1365))
            status, body = await asked
        assert (status, body["error"]["code"]) == (500, "stream_gap")

    async def test_by_a_slow_reader_counts_its_sound(self, monkeypatch):
        monkeypatch.setattr(sending, "GRACE_SECONDS", 0.0)
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True, limits={"reader_bytes": 1_000_000}) as served:
            reader, writer = await served.connect(SPOKEN | {"stream": True})
            request_id = await pipeline.submitted.get()
            pipeline.speak(request_id, tone(1365))
            await reader.readuntil(b"\r\n\r\n")
            piece = tone(15_360)
            # The sockets buffer some megabytes, so only longer speech has parts that wait in the server.
            while pipeline.aborted.empty():
                pipeline.speak(request_id, piece)
                await asyncio.sleep(0)
            assert await pipeline.aborted.get() == request_id
            async with served.session.get(f"{served.url}/metrics") as response:
                assert 'omni_errors_total{code="slow_reader"} 1.0' in await response.text()
            assert b"[DONE]" not in await reader.read()
            writer.close()


async def metrics_of(served: Served) -> dict[str, float]:
    async with served.session.get(f"{served.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


class TestMetrics:
    async def test_measure_sound(self):
        async with serving(speaking(), speaks=True) as served:
            await served.post(SPOKEN)
            figures = await metrics_of(served)
        seconds = sum(PIECES) / 24_000
        assert figures["omni_audio_chunks_total"] == len(PIECES)
        assert figures["omni_audio_seconds_total"] == pytest.approx(seconds)
        assert figures["omni_time_to_first_audio_seconds_count"] == 1
        assert figures["omni_inter_audio_seconds_count"] == len(PIECES) - 1
        assert figures["omni_real_time_factor_count"] == 1
        all_at_once = figures["omni_time_to_first_audio_seconds_sum"]
        assert figures["omni_real_time_factor_sum"] == pytest.approx(all_at_once / seconds)
        assert figures["omni_playback_underruns_total"] == 0

    async def test_of_a_written_answer_have_no_sound(self):
        async with serving(speaking(), speaks=True) as served:
            await served.post(HELLO)
            figures = await metrics_of(served)
        assert figures["omni_audio_chunks_total"] == 0
        assert figures["omni_real_time_factor_count"] == 0
