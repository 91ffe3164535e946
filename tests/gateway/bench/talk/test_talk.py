"""The bench's talkers (simulated users) measure a scripted server of the realtime API. The server's times are known."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
import soundfile
from aiohttp import WSMsgType, web

from gateway.bench.talk.report import TalkReport
from gateway.bench.talk.run import TalkPlan, run_talk
from gateway.bench.talk.session import TalkSettings
from gateway.bench.talk.utterances import load_utterances
from omni_pipeline.errors import StartupError
from tests.gateway.bench.test_command import bench_scripted
from tests.server import Server

RATE = 24_000
SPEED = 10.0  # all talkers in these tests send sound this many times faster than in real time
SILENCE_MS = 500


class NoProgress:
    def begin(self, what: str, total: int) -> None: ...
    def advance(self) -> None: ...
    def note(self, result: str) -> None: ...


class ScriptedTalker:
    """A server that treats loud samples as speech, and answers each turn with `chunks` chunks of 100 ms.

    Attributes:
        pause: Seconds between the chunks of an answer.
        beta: Whether to use the event names of the API's beta version.
        fault: If this is a dictionary, it is the error that is sent for each turn instead of an answer. If the
            dictionary is empty, nothing is sent. If `fault` is a string, it is the status of each response, and the
            responses have no chunks.
    """

    def __init__(self, *, chunks: int = 5, pause: float = 0.01, beta: bool = False, fault: Any = None) -> None:
        self.chunks, self.pause, self.beta, self.fault = chunks, pause, beta, fault
        self.sessions: list[dict[str, Any]] = []
        self.truncations: list[int] = []
        self.open = self.most = self.responses = 0

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.open += 1
        self.most = max(self.most, self.open)
        answer: asyncio.Task[None] | None = None
        silent, is_speaking = 0, False
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            event = json.loads(message.data)
            if event["type"] == "session.update":
                self.sessions.append(event["session"])
                await socket.send_json({"type": "session.updated"})
            elif event["type"] == "conversation.item.truncate":
                self.truncations.append(event["audio_end_ms"])
            else:
                pcm = numpy.frombuffer(base64.b64decode(event["audio"]), "<i2")
                assert len(pcm) == 480
                silent = 0 if numpy.abs(pcm.astype(int)).max() > 100 else silent + 20
                if not silent and not is_speaking:
                    is_speaking = True
                    await socket.send_json({"type": "input_audio_buffer.speech_started"})
                    if answer is not None:
                        answer.cancel()
                        await asyncio.gather(answer, return_exceptions=True)
                if is_speaking and silent >= SILENCE_MS:
                    is_speaking = False
                    await socket.send_json({"type": "input_audio_buffer.speech_stopped"})
                    answer = asyncio.create_task(self._answer(socket))
        self.open -= 1
        return socket

    async def _answer(self, socket: web.WebSocketResponse) -> None:
        if isinstance(self.fault, dict):
            if self.fault:
                await socket.send_json({"type": "error", "error": self.fault})
            return
        self.responses += 1
        response = {"id": f"resp_{self.responses}", "status": "completed"}
        usage = {"input_tokens": 100, "input_token_details": {"cached_tokens": 75}}
        await socket.send_json({"type": "response.created", "response": response})
        try:
            delta = base64.b64encode(bytes(2 * RATE // 10)).decode()
            kind = "response.audio.delta" if self.beta else "response.output_audio.delta"
            for _ in range(0 if self.fault else self.chunks):
                await socket.send_json(
                    {"type": kind, "response_id": response["id"], "item_id": "item_1", "delta": delta}
                )
                await asyncio.sleep(self.pause)
            response |= {"status": self.fault or "completed", "usage": usage}
        except asyncio.CancelledError:
            response |= {"status": "cancelled", "usage": usage}
        await socket.send_json({"type": "response.done", "response": response})


@asynccontextmanager
async def serving(talker: ScriptedTalker) -> AsyncIterator[str]:
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "scripted"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/realtime", talker.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield str(site.name)
    finally:
        await runner.cleanup()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two recordings: 0.2 s of silence, a tone, and 0.3 s of silence."""
    for name, seconds in (("one.wav", 0.5), ("two.wav", 1.0)):
        tone = 0.5 * numpy.sin(2 * numpy.pi * 300 * numpy.arange(int(16_000 * seconds)) / 16_000)
        sound = numpy.concatenate([numpy.zeros(3_200), tone, numpy.zeros(4_800)])
        soundfile.write(tmp_path / name, sound, 16_000)
    return tmp_path


async def talk(url: str, recordings: Path, *, interrupted: float = 0.0, **plan: Any) -> TalkReport:
    settings = TalkSettings(
        url=url, model="", api_key=None, voice="ethan", silence_ms=SILENCE_MS, speed=SPEED, timeout=5.0
    )
    settings = msgspec.structs.replace(settings, **plan.pop("settings", {}))
    fields = {"sessions": [1], "turns": 4, "warmup": 0, "seed": 0} | plan
    made = TalkPlan(settings=settings, media_dir=recordings, interrupted_share=interrupted, **fields)
    return await run_talk(made, NoProgress())


def test_speech_is_found_in_recordings(recordings: Path) -> None:
    one, two = load_utterances(recordings)
    assert (one.seconds, two.seconds) == (1.0, 1.5)
    assert (one.first_voiced, two.first_voiced) == pytest.approx((0.2, 0.2), abs=0.0101)
    assert (one.last_voiced, two.last_voiced) == pytest.approx((0.7, 1.2), abs=0.0101)


def test_silent_recordings_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", numpy.zeros(16_000), 16_000)
    with pytest.raises(StartupError, match="silent"):
        load_utterances(tmp_path)


async def test_answers_are_timed_from_the_end_of_speech(recordings: Path) -> None:
    talker = ScriptedTalker()
    async with serving(talker) as url:
        report = await talk(url, recordings)
    [level] = report.levels
    assert (report.model, level.turns, level.answered, level.split, level.errors) == ("scripted", 4, 4, 0, {})
    assert level.stopped.count == level.first_audio.count == 4
    # The talkers send silence SPEED times faster than in real time. The server cannot detect the end of the turn before
    # all of the silence has arrived.
    assert SILENCE_MS / 1000 / SPEED - 0.003 < level.stopped.p50 <= level.first_audio.p50
    assert level.after_stop.max == pytest.approx(level.first_audio.max - level.stopped.max, abs=0.1)
    assert (level.cached_share, level.continuous, level.interruptions) == (0.75, 1.0, 0)
    [session] = talker.sessions
    assert session["audio"]["input"]["turn_detection"] == {"type": "server_vad", "silence_duration_ms": SILENCE_MS}
    assert session["audio"]["output"]["voice"] == "ethan"


async def test_fixed_lengths_are_asked_for(recordings: Path) -> None:
    talker = ScriptedTalker()
    async with serving(talker) as url:
        await talk(url, recordings, settings={"lengths": (30, 100)})
    [session] = talker.sessions
    assert (session["ignore_eos"], session["max_output_tokens"]) == (True, 30)
    assert session["stage_sampling"] == {"talker_ar": {"max_tokens": 101}}


async def test_the_names_of_the_beta_are_understood(recordings: Path) -> None:
    async with serving(ScriptedTalker(beta=True)) as url:
        report = await talk(url, recordings)
    assert report.levels[0].answered == 4


async def test_interruptions_are_timed(recordings: Path) -> None:
    talker = ScriptedTalker(chunks=200)
    async with serving(talker) as url:
        report = await talk(url, recordings, interrupted=1.0, turns=5)
    [level] = report.levels
    assert (level.turns, level.answered, level.interruptions) == (5, 5, 4)  # nothing follows the last turn
    assert level.noticed.count == level.last_sound.count == level.ended.count == 4
    assert 0 < level.noticed.p50 <= level.ended.p50
    assert level.last_sound.max <= level.ended.max
    assert len(talker.truncations) == 4
    assert all(0 < milliseconds < 2_000 for milliseconds in talker.truncations)


async def test_complete_answers_are_no_interruptions_of_the_server(recordings: Path) -> None:
    async with serving(ScriptedTalker(chunks=1, pause=0.0)) as url:
        report = await talk(url, recordings, interrupted=1.0, turns=3)
    [level] = report.levels
    assert level.interruptions == 2
    assert level.last_sound is level.ended is None


async def test_sessions_share_the_turns(recordings: Path) -> None:
    talker = ScriptedTalker()
    async with serving(talker) as url:
        report = await talk(url, recordings, sessions=[1, 3], turns=9, warmup=2)
    assert [(level.sessions, level.turns, level.answered) for level in report.levels] == [(1, 9, 9), (3, 9, 9)]
    assert talker.most == 3
    assert talker.responses == 22


async def test_the_command_prints_and_writes_the_results(recordings: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    async with serving(ScriptedTalker(chunks=50)) as url:
        status, output, errors = await bench_scripted(
            *["--url", url, "--realtime", "--concurrency", "2", "--requests", "6", "--interruptions", "0.5"],
            *["--talk-speed", str(SPEED), "--media-dir", str(recordings), "--json", str(figures)],
        )
    assert status == 0, errors
    [level] = json.loads(figures.read_text())["levels"]
    assert (level["sessions"], level["answered"]) == (2, 6)
    assert "6 of 6 turns answered" in output
    assert "end of speech → first audio" in output
    assert "75% of the prompts' tokens came from the prefix cache" in output


async def test_an_utterance_with_a_long_pause_is_split(recordings: Path, tmp_path: Path) -> None:
    first, rate = soundfile.read(recordings / "one.wav")
    (recordings / "two.wav").unlink()
    soundfile.write(recordings / "one.wav", numpy.concatenate([first, numpy.zeros(16_000), first]), rate)
    async with serving(ScriptedTalker()) as url:
        report = await talk(url, recordings, turns=2)
    assert (report.levels[0].answered, report.levels[0].split) == (2, 2)


async def test_errors_of_the_server_are_counted(recordings: Path) -> None:
    fault = {"type": "server_error", "code": "worker_lost", "message": "The worker is lost."}
    talker = ScriptedTalker(fault=fault)
    async with serving(talker) as url:
        report = await talk(url, recordings, turns=3)
    [level] = report.levels
    assert (level.turns, level.answered) == (3, 0)
    assert [(code, error.count) for code, error in level.errors.items()] == [("worker_lost", 3)]
    assert len(talker.sessions) == 3  # a new session after each error


async def test_a_failed_response_fails_its_turn_only(recordings: Path) -> None:
    talker = ScriptedTalker(fault="failed")
    async with serving(talker) as url:
        report = await talk(url, recordings, turns=3)
    assert report.levels[0].answered == 0
    assert report.levels[0].errors["failed"].count == 3
    assert len(talker.sessions) == 1


async def test_a_server_that_never_answers_times_out(recordings: Path) -> None:
    async with serving(ScriptedTalker(fault={})) as url:
        report = await talk(url, recordings, turns=2, settings={"timeout": 0.5})
    assert report.levels[0].errors["timeout"].count == 2


async def test_a_warm_up_without_answers_ends_the_run(recordings: Path) -> None:
    async with serving(ScriptedTalker(fault="failed")) as url:
        with pytest.raises(StartupError, match="no turn of the warm-up"):
            await talk(url, recordings, warmup=1)


async def test_the_demo_model_is_measured(demo_server: Server, data: Path) -> None:
    report = await talk(demo_server.url, data, interrupted=0.5, turns=4, warmup=1, settings={"speed": 4.0})
    [level] = report.levels
    assert (level.answered, level.errors) == (4, {})
    assert level.first_audio.count == 4
    assert level.first_audio.p50 > SILENCE_MS / 1000 / 4 / 2  # no answer before the end of the silence
    assert level.noticed.count == level.interruptions > 0
    assert level.cached_share > 0.5  # the earlier turns of a conversation are not computed again


async def test_without_a_server_the_run_ends(recordings: Path) -> None:
    with pytest.raises(StartupError, match="No server answers"):
        await talk("http://127.0.0.1:9", recordings)
