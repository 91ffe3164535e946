"""Tests who may open a realtime session, its event names and sound formats, and how sessions end."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import numpy
import openai
import pytest
from aiohttp import WSMsgType

from gateway.answers.audio_formats import to_pcm16
from gateway.realtime.sounds.sound_formats import decode
from stages.messages import Text
from tests.gateway.realtime.talking import PATIENCE, encoded, kinds, sound_in, talking, text_in
from tests.gateway.scripted import ScriptedPipeline, Served, serving, tone


async def events_until_close(socket: aiohttp.ClientWebSocketResponse) -> list[dict]:
    """All events until the server closes the connection."""
    async with asyncio.timeout(PATIENCE):
        return [json.loads(message.data) async for message in socket]


def connect(served: Served, **options):
    return served.session.ws_connect(f"{served.url}/v1/realtime?model=any", **options)


async def refusal(served: Served, **options) -> tuple[int, dict]:
    """Status and error of a refused request for a WebSocket."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | options.pop("headers", {})
    async with served.session.get(f"{served.url}/v1/realtime", headers=headers, **options) as response:
        return response.status, (await response.json())["error"]


class TestAccess:
    async def test_needs_a_websocket(self):
        async with serving() as served:
            status, body = await served.get("/v1/realtime")
        assert (status, body["error"]["code"]) == (426, "upgrade_required")

    async def test_needs_a_key_where_there_are_keys(self):
        async with serving(api_keys=["secret"]) as served:
            assert (await refusal(served))[0] == 401
            async with talking(served.url, api_key="secret") as talk:
                assert talk.seen[0]["type"] == "session.created"

    async def test_takes_the_key_of_a_page_as_a_subprotocol(self):
        async with serving(api_keys=["secret"]) as served:
            protocols = ("realtime", "openai-insecure-api-key.secret", "openai-agents-sdk.0.20.0")
            async with connect(served, protocols=protocols) as socket:
                assert socket.protocol == "realtime"
                assert json.loads((await socket.receive()).data)["type"] == "session.created"
            wrong = {"Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.other"}
            assert (await refusal(served, headers=wrong))[0] == 401

    async def test_refuses_pages_of_other_origins(self):
        async with serving(allowed_origins=["https://app.example"]) as served:
            for origin in ("https://evil.example", "null", "http://[", f"http://127.0.0.1:{served.port + 1}"):
                status, error = await refusal(served, headers={"Origin": origin})
                assert (status, error["code"]) == (403, "origin_not_allowed"), origin
            for origin in ("https://app.example", served.url):
                async with connect(served, headers={"Origin": origin}) as socket:
                    assert json.loads((await socket.receive()).data)["type"] == "session.created"

    async def test_counts_sessions(self):
        async with serving(limits={"realtime_sessions": 1}) as served:
            async with talking(served.url):
                status, error = await refusal(served)
                assert (status, error["code"]) == (503, "too_many_sessions")
                assert await figure(served, "omni_realtime_sessions") == 1
            await figure_is(served, "omni_realtime_sessions", 0)
            async with talking(served.url):
                pass

    async def test_leaves_sessions_to_other_clients(self):
        async with (
            serving(limits={"realtime_sessions": 4}, api_keys=["one", "other"]) as served,
            talking(served.url, api_key="one"),
            talking(served.url, api_key="one"),
        ):
            status, error = await refusal(served, headers={"Authorization": "Bearer one"})
            assert (status, error["code"]) == (503, "too_many_sessions")
            async with talking(served.url, api_key="other"):
                pass


class TestClientSecrets:
    async def test_open_sessions_with_their_settings_and_nothing_else(self):
        async with serving(api_keys=["secret"]) as served, served.openai("secret") as client:
            made = await client.realtime.client_secrets.create(
                expires_after={"anchor": "created_at", "seconds": 60},
                session={"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"turn_detection": None}}},
            )
            async with talking(served.url, api_key=made.value) as talk:
                session = talk.seen[0]["session"]
            with pytest.raises(openai.AuthenticationError):
                await served.openai(made.value).models.list()
        assert made.value.startswith("ek_")
        assert 0 < made.expires_at - time.time() <= 60
        assert made.session.instructions == session["instructions"] == "Be brief."
        assert session["audio"]["input"].get("turn_detection") is None

    async def test_expire(self, monkeypatch):
        async with serving(api_keys=["secret"]) as served, served.openai("secret") as client:
            made = await client.realtime.client_secrets.create()
            later = time.time() + 601
            monkeypatch.setattr("gateway.realtime.client_secrets.time.time", lambda: later)
            assert (await refusal(served, headers={"Authorization": f"Bearer {made.value}"}))[0] == 401

    async def test_wrong_settings_are_refused(self):
        async with serving() as served, served.openai() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.realtime.client_secrets.create(session={"type": "realtime", "instruktions": "No."})
            assert caught.value.param == "session.instruktions"


class TestForms:
    async def test_the_beta_names_come_to_those_who_ask(self):
        voice = [tone(1920)]
        pipeline = ScriptedPipeline(["Fine."], voice)
        async with (
            serving(pipeline, speaks=True) as served,
            connect(served, headers={"OpenAI-Beta": "realtime=v1"}) as socket,
        ):
            session = {"modalities": ["text", "audio"], "voice": "chelsie", "input_audio_format": "g711_ulaw"}
            await socket.send_json({"type": "session.update", "session": session | {"turn_detection": None}})
            text = "Long " + 5_000 * "text " + "end"
            content = [{"type": "input_text", "text": text}]
            item = {"type": "message", "role": "user", "content": content}
            await socket.send_json({"type": "conversation.item.create", "item": item})
            await socket.send_json({"type": "response.create", "response": {"modalities": ["audio", "text"]}})
            events = []
            while not events or events[-1]["type"] != "response.done":
                events.append(json.loads((await socket.receive()).data))
            request_id = await pipeline.submitted.get()
        created, updated = events[0]["session"], events[1]["session"]
        assert created["voice"] == "ethan"
        assert (updated["voice"], updated["turn_detection"]) == ("chelsie", None)
        assert (updated["input_audio_format"], updated["output_audio_format"]) == ("g711_ulaw", "pcm16")
        assert kinds(events[2:]) == [
            "conversation.item.created",
            "response.created",
            "response.output_item.added",
            "conversation.item.created",
            "response.content_part.added",
            "response.audio_transcript.delta",
            "response.audio.delta",
            "response.audio.done",
            "response.audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]
        [output] = events[-1]["response"]["output"]
        assert output["content"] == [{"type": "audio", "transcript": "Fine."}]
        assert pipeline.bodies[request_id].turns[0].content == [Text(text)]

    @pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
    async def test_telephones_are_understood_and_answered(self, law):
        voice = [tone(24_000)]
        pipeline = ScriptedPipeline(["Fine."], voice)
        async with serving(pipeline, speaks=True) as served, talking(served.url) as talk:
            form = {"format": {"type": law}}
            audio = {"input": form | {"turn_detection": None}, "output": form}
            await talk.send("session.update", session={"type": "realtime", "audio": audio})
            session = (await talk.until("session.updated"))["session"]
            await talk.append(bytes([0xD5 if law == "audio/pcma" else 0xFF]) * 8_000, 160)
            await talk.send("input_audio_buffer.commit")
            await talk.until("conversation.item.done")
            events = await talk.respond()
            [medium] = pipeline.bodies[await pipeline.submitted.get()].media
        assert session["audio"]["input"]["format"] == session["audio"]["output"]["format"] == {"type": law}
        sound = decode(sound_in(events).tobytes(), law)
        assert len(sound) == 8_000
        power = [float(numpy.square(samples.astype(float)).mean()) for samples in (sound, to_pcm16(voice[0]))]
        assert 0.4 < power[0] / power[1] < 1.2  # the frequencies above 4 kHz are lost
        assert medium.nbytes == 44 + 2 * 16_320  # a second, and the zeros after it


class TestEnd:
    async def test_comes_at_the_longest_duration(self):
        async with serving(limits={"realtime_session_seconds": 0.2}) as served, connect(served) as socket:
            events = await events_until_close(socket)
        assert [event["type"] for event in events] == ["session.created", "error"]
        assert events[-1]["error"]["code"] == "session_expired"
        assert socket.close_code == 1001

    async def test_comes_after_idle_time_but_not_during_a_response(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"realtime_idle_seconds": 0.3}) as served, connect(served) as socket:
            await socket.send_json({"type": "response.create"})
            request_id = await pipeline.submitted.get()
            await asyncio.sleep(0.8)
            pipeline.say_all(request_id, ["Hello."])
            events = await events_until_close(socket)
        assert "response.done" in kinds(events)
        assert events[-1]["error"]["code"] == "session_idle"
        assert socket.close_code == 1001

    async def test_of_the_server_lets_the_response_end(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, connect(served) as socket:
            await socket.send_json({"type": "response.create"})
            request_id = await pipeline.submitted.get()
            served.stopping.set()
            await asyncio.sleep(0.1)
            pipeline.say_all(request_id, ["Hello."])
            events = await events_until_close(socket)
            await served.task
        assert kinds(events)[-2:] == ["response.done", "error"]
        assert events[-2]["response"]["status"] == "completed"
        assert events[-1]["error"]["code"] == "shutting_down"
        assert socket.close_code == 1001

    async def test_of_the_server_does_not_wait_for_ever(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, drain_seconds=0.2) as served, connect(served) as socket:
            await socket.send_json({"type": "response.create"})
            await pipeline.submitted.get()
            served.stopping.set()
            events = await events_until_close(socket)
            await served.task
        assert events[-2]["response"]["status_details"]["error"]["code"] == "shutting_down"
        assert socket.close_code == 1001


class TestBadEvents:
    @pytest.mark.parametrize(
        ("sent", "code", "param"),
        [
            ("{", "invalid_json", None),
            ("[]", "invalid_json", None),
            ('{"type": 5}', "invalid_value", "type"),
            ('{"type": "session.upgrade"}', "invalid_value", "type"),
            ('{"event_id": "x"}', "missing_required_parameter", "type"),
            ('{"type": "response.create", "responce": {}}', "unknown_parameter", "responce"),
            ('{"type": "input_audio_buffer.append"}', "missing_required_parameter", "audio"),
            ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_base64", "audio"),
            ('{"type": "conversation.item.create", "item": {"type": "thing"}}', "invalid_value", "item.type"),
            ('{"type": "response.create", "response": {"max_output_tokens": 0}}', "invalid_value", None),
            ("[" * 100, "invalid_json", None),
            ('{"type": "session.update", "session": {"seed": ' + "9" * 500 + "}}", "invalid_json", None),
        ],
    )
    async def test_get_an_error_and_the_session_lives_on(self, sent, code, param):
        async with serving() as served, connect(served) as socket:
            await socket.receive()
            await socket.send_str(sent)
            error = json.loads((await socket.receive()).data)["error"]
            await socket.send_json({"type": "session.update", "session": {}})
            assert json.loads((await socket.receive()).data)["type"] == "session.updated"
        assert error["code"] == code
        assert param is None or error["param"] == param

    async def test_that_are_binary_get_an_error(self):
        async with serving() as served, connect(served) as socket:
            await socket.receive()
            await socket.send_bytes(b'{"type": "response.create"}')
            assert json.loads((await socket.receive()).data)["error"]["code"] == "invalid_event"

    async def test_that_are_too_large_end_the_session(self):
        async with serving(limits={"realtime_event_bytes": 10_000}) as served, connect(served) as socket:
            await socket.receive()
            await socket.send_json({"type": "input_audio_buffer.append", "audio": "A" * 20_000})
            message = await socket.receive()
            assert message.type is WSMsgType.CLOSE
            assert message.data == 1009

    async def test_beyond_what_a_session_may_keep_are_refused(self):
        limits = {"realtime_bytes": 100_000, "realtime_items": 2}
        async with serving(limits=limits) as served, talking(served.url) as talk:
            await talk.push()
            await talk.send("input_audio_buffer.append", audio=encoded(bytes(60_000)))
            assert (await talk.error())["code"] == "session_too_large"
            for _ in range(2):
                await talk.say("Hello.")
            await talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": []})
            assert (await talk.error())["code"] == "too_many_items"

    async def test_what_a_session_keeps_is_given_back(self):
        async with serving() as served:
            async with talking(served.url) as talk:
                await talk.push()
                await talk.append(bytes(96_000))
                await talk.send("input_audio_buffer.commit")
                await talk.until("conversation.item.done")
                await talk.append(bytes(48_000))
                await talk.respond()
                assert await figure(served, "omni_held_bytes") > 64_000
            await figure_is(served, "omni_held_bytes", 0)


async def test_a_client_that_does_not_read_is_cut_off_and_hurts_nobody():
    voice = [tone(24_000)] * 400
    pipeline = ScriptedPipeline(["Long."], voice)
    limits = {"receive_seconds": 0.5, "reader_bytes": 256 * 1024 * 1024}
    async with serving(pipeline, speaks=True, buffers=4096, limits=limits) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(
            b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(masked(b'{"type":"response.create"}'))
        await figure_is(served, "omni_realtime_sessions", 1)
        await figure_is(served, "omni_realtime_sessions", 0)
        pipeline.voice = voice[:1]
        async with talking(served.url) as talk:
            assert text_in(await talk.respond()) == "Long."
        writer.close()


async def figure(served: Served, name: str) -> float:
    """The value of a metric without labels."""
    page = await (await served.session.get(f"{served.url}/metrics")).text()
    [line] = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


async def figure_is(served: Served, name: str, value: float) -> None:
    """Wait until a metric has this value."""
    async with asyncio.timeout(PATIENCE):
        while await figure(served, name) != value:  # noqa: ASYNC110 (the server does not say when it changes)
            await asyncio.sleep(0.01)


def masked(text: bytes) -> bytes:
    """A WebSocket frame with a short text, as clients send it."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
