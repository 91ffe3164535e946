"""Tests sessions in which the server finds the user's turns, with recorded speech, in front of a scripted pipeline."""

from __future__ import annotations

import asyncio
import io
import wave
from pathlib import Path

import numpy
import pytest

from omni_pipeline.errors import bad_request
from stages.messages import ChatRequest, MediaRef, Text
from tests.gateway.realtime.talking import kinds, sound_of_file, talking
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving, tone

SILENCE = bytes(2 * 24_000)  # a second
PAUSE = bytes(2 * 7_200)
WINDOW = 8 * 16_000


@pytest.fixture(scope="module")
def question() -> bytes:
    """A spoken question."""
    return sound_of_file(Path(__file__).parents[2] / "data" / "query_to_cars.wav")


@pytest.fixture(scope="module")
def words(question: bytes) -> bytes:
    """The last second of speech in the question. There is no pause in this second."""
    samples = numpy.frombuffer(question, "<i2")
    loud = numpy.flatnonzero(numpy.abs(samples) > 1_000)
    return samples[max(loud[-1] - 24_000, 0) : loud[-1]].tobytes()


@pytest.fixture(scope="module")
def speech(question: bytes) -> bytes:
    """Nine seconds of speech in which no pause is long enough for an answer to be prepared."""
    samples = numpy.frombuffer(question, "<i2")
    loud = numpy.flatnonzero(numpy.abs(samples) > 1_000)
    return (samples[loud[0] : loud[-1]].tobytes() * 9)[: 9 * 48_000]


async def asked(pipeline: ScriptedPipeline) -> str:
    async with asyncio.timeout(20):
        return await pipeline.submitted.get()


async def test_a_turn_is_an_item_and_is_answered(question):
    pipeline = ScriptedPipeline(["Three."])
    async with serving(pipeline) as served, talking(served.url) as talk:
        await talk.append(SILENCE + question + SILENCE)
        response = (await talk.until("response.done"))["response"]
        [medium] = pipeline.bodies[response["id"]].media
    assert kinds(talk.seen[1:7]) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
    ]
    started, stopped, committed, added = talk.seen[1:5]
    assert started["item_id"] == stopped["item_id"] == committed["item_id"] == added["item"]["id"]
    with wave.open(io.BytesIO(bytes(medium.data.buffer()))) as file:
        seconds = file.getnframes() / 16_000
    assert abs(seconds - (stopped["audio_end_ms"] - started["audio_start_ms"]) / 1000) < 0.05
    assert seconds < len(question) / 48_000 + 1


async def test_how_the_sound_is_divided_makes_no_difference(question):
    found = []
    for piece in (960, 100_000):
        pipeline = ScriptedPipeline(["Three."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.append(SILENCE + question + SILENCE, piece)
            response = (await talk.until("response.done"))["response"]
            [medium] = pipeline.bodies[response["id"]].media
        found.append((bytes(medium.data.buffer()), talk.seen[1]["audio_start_ms"], talk.seen[2]["audio_end_ms"]))
    assert found[0] == found[1]


async def test_silence_makes_no_turn():
    async with serving() as served, talking(served.url) as talk:
        await talk.append(10 * SILENCE)
        await talk.send("input_audio_buffer.clear")
        await talk.until("input_audio_buffer.cleared")
    assert kinds(talk.seen) == ["session.created", "input_audio_buffer.cleared"]


async def test_a_turn_may_wait_for_its_answer(question):
    async with serving() as served, talking(served.url) as talk:
        turns = {"type": "server_vad", "create_response": False}
        await talk.send("session.update", session={"audio": {"input": {"turn_detection": turns}}})
        await talk.until("session.updated")
        await talk.append(question + SILENCE)
        await talk.until("conversation.item.done")
        events = await talk.respond()
    assert kinds(events)[0] == "response.created"


class TestSpeculation:
    """A pause of 300 ms is a candidate for the end of a turn; after 500 ms the turn has ended."""

    async def test_prepares_the_answer_in_the_pause_and_sends_it_when_the_turn_has_ended(self, words):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.append(words + PAUSE)
            prepared = await asked(pipeline)
            pipeline.say(prepared, "Three.")
            pipeline.speak(prepared, tone(1920))
            await talk.append(SILENCE)
            response = (await talk.until("response.created"))["response"]
            await talk.until("response.output_audio.delta")
            pipeline.finish(prepared)
            pipeline.hush(prepared, 1)
            done = (await talk.until("response.done"))["response"]
            assert pipeline.submitted.empty()
            assert 'omni_realtime_speculations_total{outcome="kept"} 1.0' in await metrics_of(served)
        assert response["id"] == done["id"] == prepared
        assert done["status"] == "completed"
        order = kinds(talk.seen)
        assert order.index("input_audio_buffer.committed") < order.index("response.created")

    async def test_sends_a_prepared_answer_that_is_complete_already(self, words):
        pipeline = ScriptedPipeline(["Three."], [tone(1920)])
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.append(words + PAUSE)
            await asked(pipeline)
            await asyncio.sleep(0.1)
            await talk.append(SILENCE)
            done = (await talk.until("response.done"))["response"]
        assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "Three."}]

    async def test_is_thrown_away_when_the_user_goes_on(self, words):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.append(words + PAUSE)
            prepared = await asked(pipeline)
            await talk.append(words)
            assert await pipeline.aborted.get() == prepared
            pipeline.answer = ["Three."]
            await talk.append(SILENCE)
            done = (await talk.until("response.done"))["response"]
            assert 'omni_realtime_speculations_total{outcome="dropped"} 1.0' in await metrics_of(served)
        assert done["id"] != prepared
        assert kinds(talk.seen).count("response.created") == 1

    async def test_is_thrown_away_when_the_client_changes_something(self, words):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.append(words + PAUSE)
            prepared = await asked(pipeline)
            await talk.send("session.update", session={"instructions": "Be brief."})
            await talk.until("session.updated")
            assert await pipeline.aborted.get() == prepared
            pipeline.answer = ["Three."]
            await talk.append(SILENCE)
            done = (await talk.until("response.done"))["response"]
            assert pipeline.bodies[done["id"]].turns[0].content == [Text("Be brief.")]

    @pytest.mark.parametrize("limits", [{"realtime_speculations": 0}, {"requests": 1}])
    async def test_may_be_turned_off_and_leaves_room_for_others(self, words, limits):
        pipeline = ScriptedPipeline(["Three."])
        async with serving(pipeline, limits=limits) as served, talking(served.url) as talk:
            holder = None
            if "requests" in limits:
                pipeline.answer = None
                holder = asyncio.create_task(served.post(HELLO))
                other = await asked(pipeline)
            await talk.append(words + PAUSE)
            await talk.send("conversation.item.retrieve", item_id="nothing")
            await talk.error()
            assert pipeline.submitted.empty()
            if holder is not None:
                pipeline.say_all(other, ["Hello."])
                assert (await holder)[0] == 200
            pipeline.answer = ["Three."]
            await talk.append(SILENCE)
            await talk.until("response.done")


class TestEarlyParts:
    """Windows of eight seconds are computed while the user continues to speak."""

    @pytest.mark.parametrize("pushed", [False, True])
    async def test_each_complete_window_is_computed_while_the_user_speaks(self, speech, pushed):
        pipeline = ScriptedPipeline(["Three."], [tone(1920)])
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            if pushed:
                await talk.push()
            early = []
            for _ in range(2):
                await talk.append(speech)
                early.append(pipeline.bodies[await asked(pipeline)])
                assert f"omni_realtime_early_parts_total {len(early)}.0" in await metrics_of(served)
            if pushed:
                await talk.send("input_audio_buffer.commit")
                await talk.send("response.create")
            await talk.append(SILENCE)
            response = (await talk.until("response.done"))["response"]
            answered = pipeline.bodies[response["id"]]
        whole = sound_in_item(answered)
        assert [request.thinker.max_tokens for request in early] == [1, 1]
        assert [request.speech for request in early] == [None, None]
        for number, request in enumerate(early, 1):
            sound = sound_in_item(request)
            final = number * WINDOW + 40
            assert numpy.array_equal(sound[:final], whole[:final])
            assert not sound[final:].any()
            assert len(sound) < final + 500
        assert [len(request.turns) for request in (*early, answered)] == [1, 1, 1]

    async def test_stops_when_the_answer_begins(self, speech):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.append(speech)
            early = await asked(pipeline)
            pipeline.answer = ["Three."]
            await talk.append(SILENCE)
            assert await pipeline.aborted.get() == early
            response = (await talk.until("response.done"))["response"]
        assert response["status"] == "completed"

    @pytest.mark.parametrize("ending", ["close", "clear"])
    async def test_leaves_nothing_behind(self, speech, ending):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            async with talking(served.url) as talk:
                await talk.append(speech)
                early = await asked(pipeline)
                if ending == "clear":
                    await talk.send("input_audio_buffer.clear")
                    assert await pipeline.aborted.get() == early
            if ending == "close":
                assert await pipeline.aborted.get() == early

    async def test_a_failure_is_not_reported(self, speech):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.append(speech)
            pipeline.fail(await asked(pipeline), bad_request("too long").info)
            pipeline.answer = ["Three."]
            await talk.append(SILENCE)
            await talk.until("response.done")

    async def test_may_be_turned_off(self, speech):
        pipeline = ScriptedPipeline(["Three."])
        async with serving(pipeline, limits={"realtime_speculations": 0}) as served, talking(served.url) as talk:
            await talk.append(speech + SILENCE)
            response = (await talk.until("response.done"))["response"]
            assert await asked(pipeline) == response["id"]
            assert pipeline.submitted.empty()


def sound_in_item(request: ChatRequest) -> numpy.ndarray:
    """The last sound of a request: int16 [n] at 16 kHz."""
    with wave.open(io.BytesIO(bytes(request.media[-1].data.buffer()))) as file:
        return numpy.frombuffer(file.readframes(file.getnframes()), "<i2")


async def metrics_of(served: Served) -> str:
    return await (await served.session.get(f"{served.url}/metrics")).text()


class TestInterruption:
    async def test_ends_the_response_and_forgets_what_was_not_heard(self, question):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.append(question + SILENCE)
            first = await asked(pipeline)
            pipeline.say(first, "One two three four five six seven eight nine ten. " * 20)
            for begin in range(0, 240_000, 24_000):
                pipeline.speak(first, tone(24_000, begin))
            await talk.until("response.output_audio.delta")
            begin = len(talk.seen)
            await talk.append(question)
            response = (await talk.until("response.done"))["response"]
            assert await pipeline.aborted.get() == first
            cut = talk.seen[begin:]
            await talk.append(SILENCE)
            second = await asked(pipeline)
            pipeline.say_all(second, ["Yes?"])
            await talk.until("response.done")
            turns = pipeline.bodies[second].turns
        assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        order = kinds(cut)
        after = order[order.index("input_audio_buffer.speech_started") :]
        assert after == [
            "input_audio_buffer.speech_started",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        assert [turn.role for turn in turns] == ["user", "assistant", "user"]
        [kept] = turns[1].content
        # Only the text of the first one or two seconds is kept. The whole text has a thousand characters.
        assert len(kept.text) < 200
        assert "One two three four five six seven eight nine ten. ".startswith(kept.text[:40])

    async def test_may_be_turned_off(self, question):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            turns = {"type": "server_vad", "interrupt_response": False}
            await talk.send("session.update", session={"audio": {"input": {"turn_detection": turns}}})
            await talk.until("session.updated")
            await talk.append(question + SILENCE)
            first = await asked(pipeline)
            await talk.append(question + SILENCE)
            await talk.until("input_audio_buffer.committed")
            await talk.until("input_audio_buffer.committed")
            pipeline.say_all(first, ["Three."])
            response = (await talk.until("response.done"))["response"]
            second = await asked(pipeline)
            pipeline.say_all(second, ["Still three."])
            await talk.until("response.done")
            turns = [(turn.role, turn.content) for turn in pipeline.bodies[second].turns]
        assert response["status"] == "completed"
        assert turns == [("user", [MediaRef(0)]), ("assistant", [Text("Three.")]), ("user", [MediaRef(1)])]

    async def test_after_the_last_delta_is_truncated_by_the_client(self, question):
        pipeline = ScriptedPipeline(["One two three four."], [tone(24_000)] * 4)
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.append(question + SILENCE)
            done = (await talk.until("response.done"))["response"]
            await talk.append(question)
            await talk.until("input_audio_buffer.speech_started")
            [item] = done["output"]
            await talk.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=2_100)
            await talk.until("conversation.item.truncated")
            await talk.append(SILENCE)
            await talk.until("response.done")
            await asked(pipeline)
            turns = pipeline.bodies[await asked(pipeline)].turns
        assert turns[1].content == [Text("One two")]


async def test_an_idle_user_is_spoken_to():
    pipeline = ScriptedPipeline(["Still there?"])
    async with serving(pipeline) as served, talking(served.url) as talk:
        turns = {"type": "server_vad", "idle_timeout_ms": 5_000}
        await talk.send("session.update", session={"audio": {"input": {"turn_detection": turns}}})
        await talk.until("session.updated")
        await talk.say("Hello.")
        await talk.respond()
        begin = len(talk.seen)
        await talk.append(6 * SILENCE)
        await talk.until("response.done")
        events = talk.seen[begin:]
    timeout = events[0]
    assert kinds(events)[:3] == [
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.committed",
        "conversation.item.added",
    ]
    assert timeout["audio_end_ms"] - timeout["audio_start_ms"] >= 5_000
