"""Tests realtime conversations as clients see them, through OpenAI's own client, in front of a scripted pipeline."""

from __future__ import annotations

import asyncio
import io
import wave

import numpy

from gateway.answers.audio_formats import to_pcm16
from gateway.serving.warmup import png
from omni_pipeline.errors import ErrorInfo, bad_request
from stages.messages import MediaRef, Text, ToolCall
from tests.gateway.realtime.talking import Talk, encoded, kinds, sound_in, talking, text_in
from tests.gateway.scripted import ScriptedPipeline, serving, tone

SECOND = to_pcm16(tone(24_000)).tobytes()
PIXEL = f"data:image/png;base64,{encoded(png())}"


def turns_of(pipeline: ScriptedPipeline, request_id: str) -> list[tuple[str, list]]:
    return [(turn.role, turn.content) for turn in pipeline.bodies[request_id].turns]


async def asked(pipeline: ScriptedPipeline) -> str:
    """The id of the next request that the pipeline gets."""
    async with asyncio.timeout(10):
        return await pipeline.submitted.get()


class TestSession:
    async def test_begins_with_its_effective_settings(self):
        async with serving(speaks=True, model_name="qwen3-omni") as served, talking(served.url) as talk:
            session = talk.seen[0]["session"]
        assert session["type"] == "realtime"
        assert session["model"] == "qwen3-omni"
        assert session["output_modalities"] == ["audio"]
        assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is True
        assert session["audio"]["output"]["voice"] == "ethan"

    async def test_an_update_changes_only_what_it_names(self):
        async with serving(speaks=True) as served, talking(served.url) as talk:
            await talk.send("session.update", session={"type": "realtime", "instructions": "Be brief."})
            first = (await talk.until("session.updated"))["session"]
            audio = {"output": {"voice": "Chelsie"}}
            await talk.send("session.update", session={"type": "realtime", "audio": audio})
            second = (await talk.until("session.updated"))["session"]
            await talk.send("session.update", session={"type": "realtime", "instructions": ""})
            third = (await talk.until("session.updated"))["session"]
        assert (first["instructions"], first["audio"]["output"]["voice"]) == ("Be brief.", "ethan")
        assert (second["instructions"], second["audio"]["output"]["voice"]) == ("Be brief.", "chelsie")
        assert third["instructions"] == ""

    async def test_takes_what_clients_send_by_default(self):
        settings = {
            "type": "realtime",
            "model": "gpt-realtime",
            "tracing": "auto",
            "audio": {
                "input": {
                    "noise_reduction": None,
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad", "eagerness": "auto"},
                },
                "output": {"voice": "marin", "speed": 1},
            },
            "tool_choice": "auto",
            "max_output_tokens": "inf",
        }
        async with serving(speaks=True) as served, talking(served.url) as talk:
            await talk.send("session.update", session=settings)
            session = (await talk.until("session.updated"))["session"]
        assert session["audio"]["output"]["voice"] == "ethan"  # the voice that is really used
        assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is True

    async def test_a_wrong_setting_is_an_error_that_names_it_and_changes_nothing(self):
        async with serving(speaks=True) as served, talking(served.url) as talk:
            audio = {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}
            await talk.send("session.update", event_id="mine", session={"instructions": "No.", "audio": audio})
            error = await talk.error()
            await talk.send("session.update", session={})
            session = (await talk.until("session.updated"))["session"]
        assert (error["param"], error["event_id"]) == ("session.audio.input.format.rate", "mine")
        assert session["instructions"] == ""


class TestItems:
    async def test_are_turns_of_the_model_in_order(self):
        pipeline = ScriptedPipeline(["Fine."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.send("session.update", session={"instructions": "Be kind."})
            await talk.until("session.updated")
            last = await talk.say("How are you?")
            content = [{"type": "input_text", "text": "Earlier."}]
            item = {"type": "message", "role": "assistant", "content": content, "id": "early"}
            await talk.send("conversation.item.create", item=item, previous_item_id="root")
            added = await talk.until("conversation.item.added")
            await talk.respond()
            request_id = await asked(pipeline)
        assert "previous_item_id" not in added or added["previous_item_id"] is None
        assert last["content"] == [{"type": "input_text", "text": "How are you?"}]
        assert turns_of(pipeline, request_id) == [
            ("system", [Text("Be kind.")]),
            ("assistant", [Text("Earlier.")]),
            ("user", [Text("How are you?")]),
        ]

    async def test_an_answer_becomes_an_item(self):
        pipeline = ScriptedPipeline(["Fine", "."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("How are you?")
            await talk.respond()
            await talk.say("Really?")
            await talk.respond()
            await asked(pipeline)
            request_id = await asked(pipeline)
        assert turns_of(pipeline, request_id)[1] == ("assistant", [Text("Fine.")])

    async def test_calls_and_their_results_are_turns_too(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
            await talk.send("session.update", session={"tools": [tool]})
            await talk.until("session.updated")
            await talk.say("Does it rain?")
            await talk.send("response.create")
            first = await asked(pipeline)
            pipeline.call(first, ToolCall("weather", '{"city":"Ulm"}'))
            pipeline.finish(first, "tool_calls")
            done = await talk.until("response.done")
            [call] = done["response"]["output"]
            result = {"type": "function_call_output", "call_id": call["call_id"], "output": "No."}
            await talk.send("conversation.item.create", item=result)
            await talk.until("conversation.item.done")
            pipeline.answer = ["It does not."]
            await talk.respond()
            second = await asked(pipeline)
        assert pipeline.bodies[first].tools.callable == ["weather"]
        assert (call["name"], call["arguments"], call["status"]) == ("weather", '{"city":"Ulm"}', "completed")
        assert len(call["call_id"]) <= 32
        names = [event["type"] for event in talk.seen if "function_call_arguments" in event["type"]]
        assert names == ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
        turns = pipeline.bodies[second].turns
        assert [turn.role for turn in turns] == ["user", "assistant", "tool"]
        assert turns[1].calls == [ToolCall("weather", '{"city":"Ulm"}')]
        assert turns[2].content == [Text("No.")]

    async def test_have_pictures_and_sounds(self):
        pipeline = ScriptedPipeline(["A pixel."])
        content = [
            {"type": "input_image", "image_url": PIXEL},
            {"type": "input_audio", "audio": encoded(SECOND[:24_000])},
            {"type": "input_text", "text": "What is it?"},
        ]
        async with serving(pipeline) as served, talking(served.url) as talk:
            item = {"type": "message", "role": "user", "content": content}
            await talk.send("conversation.item.create", item=item)
            shown = (await talk.until("conversation.item.added"))["item"]
            await talk.respond()
            request_id = await asked(pipeline)
        assert [part["type"] for part in shown["content"]] == ["input_image", "input_audio", "input_text"]
        chat = pipeline.bodies[request_id]
        assert chat.turns[0].content == [MediaRef(0), MediaRef(1), Text("What is it?")]
        assert [medium.kind for medium in chat.media] == ["image", "audio"]
        assert bytes(chat.media[0].data.buffer()) == png()

    async def test_that_make_a_response_fail_are_deleted(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            content = [{"type": "input_text", "text": "Look."}, {"type": "input_image", "image_url": PIXEL}]
            for item_id in ("good", "bad"):
                item = {"type": "message", "role": "user", "content": content, "id": item_id}
                await talk.send("conversation.item.create", item=item)
                await talk.until("conversation.item.done")
            await talk.send("response.create")
            request_id = await asked(pipeline)
            places = [medium.param for medium in pipeline.bodies[request_id].media]
            assert places == ["good.content[1]", "bad.content[1]"]
            pipeline.fail(request_id, bad_request("'bad.content[1]' is damaged.", param=places[1]).info)
            failed = (await talk.until("response.done"))["response"]
            assert (await talk.until("conversation.item.deleted"))["item_id"] == "bad"
            pipeline.answer = ["A pixel."]
            await talk.respond()
            again = pipeline.bodies[await asked(pipeline)]
        assert failed["status_details"]["error"]["message"] == "'bad.content[1]' is damaged."
        assert [medium.param for medium in again.media] == places[:1]

    async def test_are_found_and_deleted(self):
        async with serving() as served, talking(served.url) as talk:
            item = await talk.say("Hello.")
            await talk.send("conversation.item.retrieve", item_id=item["id"])
            assert (await talk.until("conversation.item.retrieved"))["item"] == item
            await talk.send("conversation.item.delete", item_id=item["id"])
            assert (await talk.until("conversation.item.deleted"))["item_id"] == item["id"]
            for action in ("retrieve", "delete"):
                await talk.send(f"conversation.item.{action}", item_id=item["id"])
                assert (await talk.error())["code"] == f"item_{action}_invalid_item_id"

    async def test_an_id_is_given_once(self):
        async with serving() as served, talking(served.url) as talk:
            await talk.say("Hello.", id="mine")
            item = {"type": "message", "role": "user", "content": [], "id": "mine"}
            await talk.send("conversation.item.create", item=item)
            assert (await talk.error())["code"] == "item_create_duplicate_item_id"

    async def test_a_part_that_a_role_cannot_have_is_refused(self):
        async with serving() as served, talking(served.url) as talk:
            content = [{"type": "input_image", "image_url": PIXEL}]
            await talk.send("conversation.item.create", item={"type": "message", "role": "system", "content": content})
            assert (await talk.error())["param"] == "item.content[0].type"


class TestResponses:
    async def test_have_the_lengths_of_the_session(self):
        pipeline = ScriptedPipeline(["Fine."])
        lengths = {"ignore_eos": True, "max_output_tokens": 7, "stage_sampling": {"talker_ar": {"max_tokens": 9}}}
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.send("session.update", session=lengths)
            await talk.until("session.updated")
            await talk.say("How are you?")
            await talk.send("response.create")
            chat = pipeline.bodies[await asked(pipeline)]
        assert (chat.thinker.ignore_eos, chat.thinker.max_tokens) == (True, 7)
        assert chat.speech is not None
        assert (chat.speech.talker.ignore_eos, chat.speech.talker.max_tokens) == (True, 9)

    async def test_a_text_comes_in_the_order_of_the_protocol(self):
        async with serving(ScriptedPipeline(["Fi", "ne"])) as served, talking(served.url) as talk:
            await talk.say("How are you?")
            events = await talk.respond(metadata={"client_event_id": "x"})
        assert kinds(events) == [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        assert text_in(events) == "Fine"
        response = events[-1]["response"]
        assert response["status"] == "completed"
        assert response["metadata"] == {"client_event_id": "x"} == events[0]["response"]["metadata"]
        assert response["output"][0]["content"] == [{"type": "output_text", "text": "Fine"}]
        assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (11, 3)
        assert response["usage"]["input_token_details"]["cached_tokens"] == 4

    async def test_speech_comes_with_its_transcript(self):
        voice = [tone(1920), tone(1920, 1920)]
        pipeline = ScriptedPipeline(["Fine."], voice)
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.say("How are you?")
            events = await talk.respond()
        assert kinds(events) == [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        assert text_in(events) == "Fine."
        assert sound_in(events).tobytes() == to_pcm16(numpy.concatenate(voice)).tobytes()
        parts = [event["part"]["type"] for event in events if event["type"].startswith("response.content_part")]
        assert parts == ["audio", "audio"]
        assert events[-1]["response"]["output"][0]["content"] == [{"type": "output_audio", "transcript": "Fine."}]

    async def test_one_at_a_time(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("Hello.")
            await talk.send("response.create")
            await talk.until("response.created")
            await talk.send("response.create", event_id="mine")
            error = await talk.error()
            pipeline.say_all(await asked(pipeline), ["Hi."])
            await talk.until("response.done")
        assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "mine")

    async def test_outside_of_the_conversation_leave_no_item(self):
        pipeline = ScriptedPipeline(["Greeting."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("Secret.")
            content = [{"type": "input_text", "text": "Classify: hello"}]
            item = {"type": "message", "role": "user", "content": content}
            events = await talk.respond(conversation="none", input=[item], metadata={"topic": "kind"})
            await talk.respond()
            first, second = await asked(pipeline), await asked(pipeline)
        assert not any(event["type"].startswith("conversation") for event in events)
        assert turns_of(pipeline, first) == [("user", [Text("Classify: hello")])]
        assert turns_of(pipeline, second) == [("user", [Text("Secret.")])]

    async def test_with_their_own_settings_leave_those_of_the_session(self):
        pipeline = ScriptedPipeline(["Oui."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("Yes?")
            await talk.respond(instructions="Speak French.", max_output_tokens=7)
            await talk.respond()
            first, second = await asked(pipeline), await asked(pipeline)
        assert turns_of(pipeline, first)[0] == ("system", [Text("Speak French.")])
        assert pipeline.bodies[first].thinker.max_tokens == 7
        assert turns_of(pipeline, second)[0][0] == "user"
        assert pipeline.bodies[second].thinker.max_tokens is None

    async def test_that_are_cut_off_by_a_limit_say_so(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("Hello.")
            await talk.send("response.create")
            request_id = await asked(pipeline)
            pipeline.say(request_id, "Hel")
            pipeline.finish(request_id, "length")
            response = (await talk.until("response.done"))["response"]
        assert response["status"] == "incomplete"
        assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}

    async def test_that_fail_leave_the_session_alive(self):
        pipeline = ScriptedPipeline()
        lost = ErrorInfo(status=503, message="The worker ended.", type="service_unavailable_error", code="worker_lost")
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("Hello.")
            await talk.send("response.create")
            request_id = await asked(pipeline)
            pipeline.say(request_id, "Hel")
            await talk.until("response.output_text.delta")
            pipeline.fail(request_id, lost)
            response = (await talk.until("response.done"))["response"]
            pipeline.answer = ["Hello."]
            again = await talk.respond()
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "worker_lost"
        assert text_in(again) == "Hello."

    async def test_are_cancelled_at_once(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.say("Hello.")
            await talk.send("response.create")
            request_id = await asked(pipeline)
            pipeline.say(request_id, "Hel")
            await talk.until("response.output_text.delta")
            await talk.send("response.cancel")
            response = (await talk.until("response.done"))["response"]
            assert await pipeline.aborted.get() == request_id
            await talk.send("response.cancel", event_id="mine")
            error = await talk.error()
        assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "mine")
        assert error["message"].startswith("Cancellation failed")


class TestPushToTalk:
    async def test_a_committed_sound_becomes_an_item(self):
        pipeline = ScriptedPipeline(["Beep."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.push()
            await talk.append(SECOND)
            await talk.send("input_audio_buffer.commit")
            committed = await talk.until("input_audio_buffer.committed")
            item = (await talk.until("conversation.item.added"))["item"]
            await talk.until("conversation.item.done")
            await talk.respond()
            request_id = await asked(pipeline)
        assert committed["item_id"] == item["id"]
        assert item["content"][0]["type"] == "input_audio"
        [medium] = pipeline.bodies[request_id].media
        with wave.open(io.BytesIO(bytes(medium.data.buffer()))) as file:
            assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
            samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert 16_000 <= len(samples) <= 16_000 + 400
        assert len(samples) % 160 == 0
        assert not samples[-201:].any()
        assert samples[:15_000].any()

    async def test_how_a_sound_is_divided_makes_no_difference(self):
        pipeline = ScriptedPipeline(["Beep."])
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.push()
            media = []
            for piece in (4_801, 48_000):
                await talk.append(SECOND, piece)
                await talk.send("input_audio_buffer.commit")
                await talk.until("conversation.item.done")
                await talk.respond()
                media.append(pipeline.bodies[await asked(pipeline)].media[-1].data.buffer())
        assert bytes(media[0]) == bytes(media[1])

    async def test_too_little_is_refused(self):
        async with serving() as served, talking(served.url) as talk:
            await talk.push()
            await talk.append(SECOND[:4_000])
            await talk.send("input_audio_buffer.commit", event_id="mine")
            error = await talk.error()
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")

    async def test_cleared_sound_is_gone(self):
        async with serving() as served, talking(served.url) as talk:
            await talk.push()
            await talk.append(SECOND)
            await talk.send("input_audio_buffer.clear")
            await talk.until("input_audio_buffer.cleared")
            await talk.send("input_audio_buffer.commit")
            assert (await talk.error())["code"] == "input_audio_buffer_commit_empty"


class TestTruncation:
    async def test_keeps_the_words_that_were_heard(self):
        voice = [tone(24_000)] * 2
        pipeline = ScriptedPipeline(["One two ", "three four."], voice)
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.say("Count.")
            done = (await talk.respond())[-1]
            await talk.send(
                "conversation.item.truncate",
                item_id=done["response"]["output"][0]["id"],
                content_index=0,
                audio_end_ms=1_000,
            )
            truncated = await talk.until("conversation.item.truncated")
            await talk.respond()
            await asked(pipeline)
            request_id = await asked(pipeline)
        assert truncated["audio_end_ms"] == 1_000
        assert turns_of(pipeline, request_id)[1] == ("assistant", [Text("One two")])

    async def test_past_the_end_keeps_all(self):
        pipeline = ScriptedPipeline(["One two."], [tone(24_000)])
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            await talk.say("Count.")
            item = (await talk.respond())[-1]["response"]["output"][0]
            await talk.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=60_000)
            await talk.until("conversation.item.truncated")
            await talk.send("conversation.item.retrieve", item_id=item["id"])
            assert (await talk.until("conversation.item.retrieved"))["item"] == item

    async def test_of_what_is_no_answer_is_refused(self):
        async with serving() as served, talking(served.url) as talk:
            for item_id in ("nowhere", (await talk.say("Hello."))["id"]):
                await talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1)
                assert (await talk.error())["code"] == "item_truncate_invalid_item_id"


async def test_a_client_that_leaves_ends_its_response():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        async with talking(served.url) as talk:
            await talk.say("Hello.")
            await talk.send("response.create")
            request_id = await asked(pipeline)
        async with asyncio.timeout(10):
            assert await pipeline.aborted.get() == request_id


class TestTranscription:
    async def commit(self, talk: Talk) -> str:
        transcription = {"model": "gpt-4o-mini-transcribe", "language": "en"}
        audio = {"input": {"turn_detection": None, "transcription": transcription}}
        await talk.send("session.update", session={"audio": audio})
        await talk.until("session.updated")
        await talk.append(SECOND)
        await talk.send("input_audio_buffer.commit")
        return (await talk.until("conversation.item.done"))["item"]["id"]

    async def test_comes_after_the_answer(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            item_id = await self.commit(talk)
            await talk.send("response.create")
            response_id = await asked(pipeline)
            pipeline.answer = ["A beep."]
            await asyncio.sleep(0.3)
            assert pipeline.submitted.empty()
            pipeline.say_all(response_id, ["Beep."])
            await talk.until("response.done")
            completed = await talk.until("conversation.item.input_audio_transcription.completed")
            await talk.send("conversation.item.retrieve", item_id=item_id)
            item = (await talk.until("conversation.item.retrieved"))["item"]
        assert completed["transcript"] == item["content"][0]["transcript"] == "A beep."
        assert completed["item_id"] == item_id
        assert completed["usage"] == {"type": "duration", "seconds": 1.0}

    async def test_makes_way_for_a_response(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await self.commit(talk)
            recording = await asked(pipeline)
            piece = await asked(pipeline)
            await talk.send("response.create")
            response_id = await asked(pipeline)
            assert {await pipeline.aborted.get(), await pipeline.aborted.get()} == {recording, piece}
            pipeline.answer = ["A beep."]
            pipeline.say_all(response_id, ["Beep."])
            await talk.until("response.done")
            completed = await talk.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == "A beep."

    async def test_that_fails_says_so(self):
        pipeline = ScriptedPipeline()
        pipeline.ends = None
        error = ErrorInfo(status=400, message="No such language.", code="invalid_value", param="language")
        async with serving(pipeline) as served, talking(served.url) as talk:
            item_id = await self.commit(talk)
            pipeline.fail(await asked(pipeline), error)
            failed = await talk.until("conversation.item.input_audio_transcription.failed")
        assert (failed["item_id"], failed["error"]["code"]) == (item_id, "invalid_value")


class TestLongConversation:
    LONG = ErrorInfo(status=400, message="It is too long.", code="context_length_exceeded", param="messages")

    async def test_is_answered_without_its_oldest_items(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            content = [{"type": "input_text", "text": "Be kind."}]
            await talk.send("conversation.item.create", item={"type": "message", "role": "system", "content": content})
            await talk.until("conversation.item.done")
            for number in range(8):
                await talk.say(f"Number {number}.")
            await talk.send("response.create")
            pipeline.fail(await asked(pipeline), self.LONG)
            second = await asked(pipeline)
            pipeline.answer = ["Fine."]
            pipeline.say_all(second, ["Fine."])
            done = (await talk.until("response.done"))["response"]
            await talk.say("And now?")
            await talk.respond()
            third = await asked(pipeline)
        assert done["status"] == "completed"
        kept = [f"Number {number}." for number in range(3, 8)]
        assert [turn.content[0].text for turn in pipeline.bodies[second].turns] == ["Be kind.", *kept]
        later = [turn.content[0].text for turn in pipeline.bodies[third].turns]
        assert later == ["Be kind.", *kept, "Fine.", "And now?"]

    async def test_fails_once_if_its_text_has_begun(self):
        """The talker refuses the prompt when the thinker has already begun to answer."""
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            for number in range(8):
                await talk.say(f"Number {number}.")
            await talk.send("response.create")
            first = await asked(pipeline)
            pipeline.say(first, "Some")
            delta = await talk.until("response.output_text.delta")
            pipeline.fail(first, self.LONG, "talker_ar")
            failed = (await talk.until("response.done"))["response"]
            pipeline.answer = ["Fine."]
            await talk.say("And now?")
            done = (await talk.respond())[-1]["response"]
            second = await asked(pipeline)
        assert delta["delta"] == "Some"
        assert failed["status_details"]["error"]["code"] == "context_length_exceeded"
        assert done["status"] == "completed"
        texts = [turn.content[0].text for turn in pipeline.bodies[second].turns if turn.role == "user"]
        assert texts == [*(f"Number {number}." for number in range(4, 8)), "And now?"]

    async def test_fails_if_the_session_wants_all_items(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            await talk.send("session.update", session={"truncation": "disabled"})
            await talk.until("session.updated")
            for number in range(4):
                await talk.say(f"Number {number}.")
            await talk.send("response.create")
            pipeline.fail(await asked(pipeline), self.LONG)
            done = (await talk.until("response.done"))["response"]
        assert done["status_details"]["error"]["code"] == "context_length_exceeded"

    async def test_fails_if_the_last_turn_alone_is_too_long(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, talking(served.url) as talk:
            for number in range(2):
                await talk.say(f"Number {number}.")
            await talk.send("response.create")
            for _ in range(2):
                pipeline.fail(await asked(pipeline), self.LONG)
            done = (await talk.until("response.done"))["response"]
        assert done["status"] == "failed"
