"""Every request ends with exactly one answer or error, and leaves nothing in the pipeline."""

from __future__ import annotations

import asyncio
import gc
import math
from contextlib import AsyncExitStack

import numpy
import pytest

from gateway.admission import Admission
from gateway.answers.collector import Answer, Collector
from omni_pipeline.config.schema import Limits
from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.route import AnswerStream
from omni_pipeline.errors import ErrorInfo, OmniError
from omni_pipeline.wire.messages import Chunk, Claim, End, Failed, Paused, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    AudioDelta,
    AudioDone,
    ChatRequest,
    Media,
    Sampling,
    SpeechOptions,
    SpeechRequest,
    TextDelta,
    TextDone,
    TextOutput,
    Turn,
    VideoOptions,
)
from stages.routes import route
from tests.gateway.scripted import USAGE, ScriptedPipeline, token

REQUEST = ChatRequest(turns=[Turn("user", [])])
SPOKEN = ChatRequest(turns=[Turn("user", [])], speech=SpeechOptions("ethan", Sampling(), Sampling()))
READ_ALOUD = SpeechRequest("Hello.", "", SpeechOptions("ethan", Sampling(), Sampling()))
ERROR = ErrorInfo(status=400, message="Bad.", code="bad")
DONE = TextDone("stop", USAGE)


def chunk(text: str, seq: int, source: str = "decode") -> Chunk:
    return Chunk("r", source, COLLECTOR, TextDelta(text), seq=seq)


def end(count: int, source: str = "decode") -> End:
    return End("r", source, COLLECTOR, DONE, count=count)


def sound(samples: int, seq: int) -> Chunk:
    return Chunk("r", "code2wav", COLLECTOR, AudioDelta(Tensor.of(numpy.zeros(samples, numpy.float32))), seq=seq)


def hush(count: int) -> End:
    return End("r", "code2wav", COLLECTOR, AudioDone(2 * count, "stop"), count=count)


class Opened:
    """A collector with one request open."""

    def __init__(self, reader_bytes: int = 100_000, seconds: float = 100.0, request: ChatRequest = REQUEST) -> None:
        self.pipeline = ScriptedPipeline()
        self.collector = Collector(self.pipeline, reader_bytes=reader_bytes, restart_seconds=1)
        deadline = asyncio.get_running_loop().time() + seconds
        self.answer = self.collector.submit("r", request, route(request), deadline=deadline)

    def deliver(self, *messages) -> None:
        for message in messages:
            self.pipeline.deliver(message)

    @property
    def aborts(self) -> int:
        return self.pipeline.aborted.qsize()


async def all_of(answer: Answer) -> list:
    bodies = []
    while taken := await answer.take():
        bodies += taken
    return bodies


async def code_of(answer: Answer) -> str | None:
    with pytest.raises(OmniError) as caught:
        await all_of(answer)
    return caught.value.info.code


@pytest.mark.parametrize("error", [ValueError, OverflowError, MemoryError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_request_that_is_not_sent_leaves_nothing_open(error):
    opened = Opened()

    def fail(*_: object, **__: object) -> None:
        raise error

    opened.pipeline.submit = fail
    deadline = asyncio.get_running_loop().time() + 100
    with pytest.raises(error):
        opened.collector.submit("other", REQUEST, route(REQUEST), deadline=deadline)
    gc.collect()  # if the deadline's timer were still set, it would keep the answer in memory
    assert [answer.request_id for answer in gc.get_objects() if isinstance(answer, Answer)] == ["r"]
    opened.pipeline.deliver(Failed("other", "decode", ERROR))
    assert opened.collector.dropped_late == 1


async def test_messages_are_taken_in_order_until_the_end():
    opened = Opened()
    opened.deliver(chunk("a", 0), chunk("b", 1), end(2))
    async with opened.answer as answer:
        assert await all_of(answer) == [TextDelta("a"), TextDelta("b"), DONE]
    assert opened.aborts == 0


async def test_a_reader_waits_for_the_next_message():
    opened = Opened()
    async with opened.answer as answer:
        reading = asyncio.create_task(answer.take())
        await asyncio.sleep(0)
        opened.deliver(chunk("a", 0))
        assert await reading == [TextDelta("a")]


async def test_a_cancelled_take_loses_nothing():
    opened = Opened()
    async with opened.answer as answer:
        reading = asyncio.create_task(answer.take())
        await asyncio.sleep(0)
        opened.deliver(chunk("a", 0))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await answer.take() == [TextDelta("a")]


@pytest.mark.parametrize(
    "messages",
    [
        [chunk("b", 1)],
        [chunk("a", 0), chunk("c", 2)],
        [chunk("a", 0), chunk("a", 0)],
        [chunk("a", 0), end(2)],
        [end(1)],
        [chunk("a", 0, "thinker")],
        [Start("r", "decode", COLLECTOR, DONE)],
        [chunk("a", 0), end(1), chunk("b", 0)],
        [chunk("a", 0), sound(9, 1)],
        [sound(9, 0), sound(9, 1), hush(1)],
    ],
    ids=[
        "first lost",
        "middle lost",
        "twice",
        "last lost",
        "only one lost",
        "wrong source",
        "not a stream",
        "after the end",
        "first sound lost",
        "end after too little sound",
    ],
)
async def test_a_gap_fails_the_request_and_frees_it(messages):
    opened = Opened(request=SPOKEN)
    opened.deliver(*messages)
    async with opened.answer as answer:
        assert await code_of(answer) == "stream_gap"
    assert opened.aborts == 1


async def test_what_came_before_a_failure_is_still_taken():
    opened = Opened()
    opened.deliver(chunk("a", 0), Failed("r", "thinker", ERROR))
    async with opened.answer as answer:
        assert await answer.take() == [TextDelta("a")]
        with pytest.raises(OmniError) as caught:
            await answer.take()
    assert (caught.value.info.code, caught.value.info.stage) == ("bad", "thinker")
    assert opened.aborts == 1


async def test_only_the_first_error_counts():
    opened = Opened()
    opened.deliver(Failed("r", "thinker", ERROR), Failed("r", "decode", ErrorInfo(status=500, message="Later.")))
    async with opened.answer as answer:
        assert await code_of(answer) == "bad"
    assert (opened.aborts, opened.collector.dropped_late) == (1, 1)


async def test_the_time_of_an_abort_ends_when_the_workers_have_freed_the_data() -> None:
    opened = Opened()
    times: list[float] = []
    opened.collector.aborted = times.append
    opened.pipeline.forgets = False
    opened.collector.close(opened.answer, abandoned=True)
    await asyncio.sleep(0.02)
    assert times == []
    [freed] = opened.pipeline.unforgotten.values()
    freed()
    assert times[0] >= 0.02


async def test_an_answer_that_is_left_early_is_aborted_once():
    opened = Opened()
    opened.deliver(chunk("a", 0))
    async with opened.answer:
        pass
    opened.deliver(chunk("b", 1), end(2))
    assert (opened.aborts, opened.collector.dropped_late) == (1, 2)


async def test_messages_of_unknown_requests_are_dropped_and_counted():
    opened = Opened()
    opened.deliver(Chunk("other", "decode", COLLECTOR, TextDelta("x"), seq=0), Failed("other", "decode", ERROR))
    assert opened.collector.dropped_late == 2


async def test_a_request_that_the_pipeline_refuses_leaves_nothing():
    opened = Opened()
    opened.pipeline.refusal = ErrorInfo(status=503, message="Gone.")
    with pytest.raises(OmniError):
        opened.collector.submit("s", REQUEST, route(REQUEST), deadline=0)
    opened.deliver(Chunk("s", "decode", COLLECTOR, TextDelta("x"), seq=0))
    assert opened.collector.dropped_late == 1


@pytest.mark.parametrize(
    "messages",
    [
        [chunk("x" * 2000, 0)],
        [Chunk("r", "decode", COLLECTOR, TextDelta("", [token("x")] * 9), seq=0)],
        [chunk("x" * 100, 0), sound(500, 0)],
    ],
    ids=["text", "log-probabilities", "sound"],
)
async def test_a_reader_too_far_behind_loses_its_request(messages):
    opened = Opened(reader_bytes=2000, request=SPOKEN)
    opened.deliver(*messages)
    async with opened.answer as answer:
        assert await code_of(answer) == "slow_reader"
    assert opened.aborts == 1


async def test_a_reader_that_keeps_up_may_read_any_amount():
    opened = Opened(reader_bytes=2000)
    async with opened.answer as answer:
        for seq in range(10):
            reading = asyncio.create_task(answer.take())
            await asyncio.sleep(0)
            opened.deliver(chunk("x" * 1000, seq))
            await reading


async def test_what_a_reader_has_taken_counts_until_it_comes_back():
    opened = Opened(reader_bytes=2000)
    async with opened.answer as answer:
        opened.deliver(chunk("x" * 1000, 0))
        await answer.take()
        opened.deliver(chunk("x" * 1000, 1))
        assert await code_of(answer) == "slow_reader"


async def test_time_ends_a_request():
    opened = Opened(seconds=0.01)
    async with opened.answer as answer:
        assert await code_of(answer) == "request_timeout"
    assert opened.aborts == 1


async def test_time_ends_a_request_whose_complete_answer_was_taken_but_is_still_being_sent():
    opened = Opened(seconds=0.01)
    opened.deliver(chunk("a", 0), end(1))
    async with opened.answer as answer:
        await answer.take()
        failed = asyncio.Event()
        answer.on_error(failed.set)
        await asyncio.wait_for(failed.wait(), 10)
    assert (answer.error.code, opened.aborts) == ("request_timeout", 0)


async def test_a_failure_is_announced_to_a_reader_that_is_busy():
    opened, calls = Opened(), []
    opened.answer.on_error(lambda: calls.append("failed"))
    assert calls == []
    opened.deliver(Failed("r", "thinker", ERROR))
    assert calls == ["failed"]


@pytest.mark.parametrize(
    ("messages", "lost", "fails"),
    [
        ([], {"preprocessing"}, True),
        ([], {"thinker"}, True),
        ([], {"image_encoder", "audio_encoder"}, False),
        ([], {"image_encoder", "mm_aggregate"}, True),
        ([chunk("a", 0)], {"preprocessing", "mm_aggregate"}, False),
        ([chunk("a", 0)], {"thinker"}, True),
        ([chunk("a", 0)], {"decode"}, True),
        ([chunk("a", 0), end(1)], {"decode", "thinker"}, False),
    ],
)
async def test_a_lost_worker_ends_the_requests_that_still_need_it(messages, lost, fails):
    opened = Opened()
    opened.deliver(*messages)
    opened.pipeline.lost(frozenset(lost), ERROR)
    assert (opened.answer.error is not None, opened.aborts) == (fails, int(fails))


@pytest.mark.parametrize(("requests", "fails"), [(frozenset({"r", "s"}), True), (frozenset({"s"}), False)])
async def test_a_lost_replica_ends_only_the_requests_that_use_it(requests, fails):
    opened = Opened()
    opened.pipeline.lost(frozenset({"thinker"}), ERROR, requests)
    assert (opened.answer.error is not None, opened.aborts) == (fails, int(fails))


async def test_the_pipeline_is_told_when_an_answer_is_complete():
    opened = Opened()
    async with opened.answer as answer:
        opened.deliver(chunk("a", 0), end(1))
        await answer.take()
        assert opened.pipeline.released == []
    assert (opened.pipeline.released, opened.aborts) == (["r"], 0)


@pytest.mark.parametrize(
    ("first", "then"),
    [([chunk("a", 0), end(1)], [sound(9, 0), hush(1)]), ([sound(9, 0), hush(1)], [chunk("a", 0), end(1)])],
    ids=["text first", "sound first"],
)
async def test_a_spoken_answer_ends_with_the_later_of_its_streams(first, then):
    opened = Opened(request=SPOKEN)
    opened.deliver(*first)
    async with opened.answer as answer:
        assert await answer.take() == [message.body for message in first]
        reading = asyncio.create_task(answer.take())
        await asyncio.sleep(0)
        assert not reading.done()
        opened.deliver(*then)
        assert await reading == [message.body for message in then]
        assert await answer.take() == []
    assert opened.aborts == 0


@pytest.mark.parametrize(
    ("stop", "messages", "lost", "fails"),
    [
        ([], [], {"talker_ar"}, True),
        ([], [chunk("a", 0)], {"talker_ar"}, True),
        ([], [chunk("a", 0)], {"preprocessing", "audio_encoder"}, False),
        ([], [sound(9, 0)], {"thinker"}, True),
        ([], [sound(9, 0)], {"mm_aggregate"}, False),
        ([], [chunk("a", 0), end(1)], {"code_predictor"}, True),
        ([], [chunk("a", 0), end(1)], {"thinker"}, True),
        ([], [sound(9, 0), chunk("a", 0), end(1)], {"thinker", "decode"}, False),
        (["."], [chunk("a", 0), end(1)], {"thinker"}, True),
        (["."], [chunk("a", 0), end(1)], {"decode"}, True),
        ([], [sound(9, 0), hush(1)], {"talker_ar", "code_predictor", "code2wav"}, False),
        ([], [sound(9, 0), hush(1)], {"decode"}, True),
        ([], [chunk("a", 0), end(1), sound(9, 0), hush(1)], {"code2wav", "decode"}, False),
    ],
)
async def test_a_lost_worker_ends_a_spoken_answer_while_one_of_its_streams_needs_it(stop, messages, lost, fails):
    opened = Opened(request=ChatRequest(turns=[], text=TextOutput(stop=stop), speech=SPOKEN.speech))
    opened.deliver(*messages)
    opened.pipeline.lost(frozenset(lost), ERROR)
    assert (opened.answer.error is not None, opened.aborts) == (fails, int(fails))


@pytest.mark.parametrize(
    ("kinds", "hears_clips", "encoders"),
    [
        ([], False, set()),
        (["image"], False, {"image_encoder"}),
        (["audio"], False, {"audio_encoder"}),
        (["video"], False, {"image_encoder"}),
        (["video"], True, {"image_encoder", "audio_encoder"}),
        (["image"], True, {"image_encoder"}),
        (["image", "audio"], False, {"image_encoder", "audio_encoder"}),
    ],
)
def test_a_route_has_the_encoders_that_its_media_need(kinds, hears_clips, encoders):
    media = [Media(kind, Tensor.of(b"x"), "p") for kind in kinds]
    found = route(ChatRequest(turns=[], media=media, video=VideoOptions(use_audio=hears_clips)))
    assert found.before == {"preprocessing", "mm_aggregate"} | encoders
    assert found.outputs == {"decode": AnswerStream(frozenset({"thinker", "decode"}))}
    assert found.all == {"preprocessing", "mm_aggregate", "thinker", "decode"} | encoders


@pytest.mark.parametrize("hears", [False, True])
def test_the_options_of_a_clip_count_for_the_route(hears):
    clips = [
        Media("video", Tensor.of(b"x"), "p", video=VideoOptions()),
        Media("video", Tensor.of(b"x"), "p", video=VideoOptions(use_audio=hears)),
    ]
    found = route(ChatRequest(turns=[], media=clips, video=VideoOptions(use_audio=not hears)))
    assert ("audio_encoder" in found.before) == hears


# --- claims -----------------------------------------------------------------------------------------------------------


async def test_claims_are_granted_within_the_memory_of_all_requests():
    pipeline, admission, granted = ScriptedPipeline(), Admission(Limits(decoded_bytes=100)), []
    collector = Collector(pipeline, reader_bytes=1000, restart_seconds=1)
    deadline = asyncio.get_running_loop().time() + 100
    async with AsyncExitStack() as stack:
        for name in "abc":
            place = await stack.enter_async_context(admission.admit("x", math.inf))
            collector.submit(name, REQUEST, route(REQUEST), deadline=deadline, place=place)
            pipeline.claimed(Claim(name, "preprocessing", 50, 10), lambda name=name: granted.append(name))
        assert (granted, admission.grants.held, admission.grants.waiting) == (["a"], 60, 2)
        pipeline.fail("b", ERROR)
        assert (granted, admission.grants.held, admission.grants.waiting) == (["a"], 60, 1), "b no longer waits"
        pipeline.fail("a", ERROR)
        assert granted == ["a", "c"], "a has been forgotten"
    pipeline.fail("c", ERROR)
    assert (admission.grants.held, admission.leaving) == (0, 0)


async def test_complete_answer_holds_no_memory_while_a_slow_client_reads_it():
    pipeline, admission = ScriptedPipeline(), Admission(Limits(decoded_bytes=100))
    collector = Collector(pipeline, reader_bytes=1000, restart_seconds=1)
    deadline = asyncio.get_running_loop().time() + 100
    async with (
        admission.admit("x", math.inf) as place,
        collector.submit("r", REQUEST, route(REQUEST), deadline=deadline, place=place) as answer,
    ):
        pipeline.claimed(Claim("r", "preprocessing", 50, 10), lambda: None)
        pipeline.deliver(chunk("a", 0))
        assert admission.grants.held == 60
        pipeline.deliver(end(1))
        assert admission.grants.held == 0
        assert await all_of(answer) == [TextDelta("a"), DONE]


async def test_claim_of_the_server_itself_is_granted_at_once_and_that_of_a_closed_request_never():
    opened, granted = Opened(), []
    opened.pipeline.claimed(Claim("r", "preprocessing", 10**15, 0), lambda: granted.append("r"))
    opened.pipeline.claimed(Claim("closed", "preprocessing", 1, 0), lambda: granted.append("closed"))
    assert granted == ["r"]


# --- texts that are read aloud ----------------------------------------------------------------------------------------


async def test_a_stage_that_pauses_goes_on_when_the_client_has_read_most():
    pipeline, resumed = ScriptedPipeline(), []
    collector = Collector(pipeline, reader_bytes=40_000, restart_seconds=1)
    deadline = asyncio.get_running_loop().time() + 100
    async with collector.submit("r", READ_ALOUD, route(READ_ALOUD), deadline=deadline, played=True) as answer:
        pipeline.deliver(sound(1000, 0))
        pipeline.paused(Paused("r", "talker_ar"), lambda: resumed.append(1))
        assert resumed == [1], "little is unread"
        pipeline.deliver(sound(2000, 1))
        pipeline.paused(Paused("r", "talker_ar"), lambda: resumed.append(2))
        assert len(await answer.take()) == 2
        assert resumed == [1], "the client is still being sent what was taken"
        pipeline.deliver(sound(100, 2))
        await answer.take()
        assert resumed == [1, 2]
        pipeline.paused(Paused("closed", "talker_ar"), lambda: resumed.append(3))
    assert resumed == [1, 2]


async def test_sound_moves_the_deadline_of_a_text_that_is_read_aloud():
    pipeline = ScriptedPipeline()
    collector = Collector(pipeline, reader_bytes=10**6, restart_seconds=1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with collector.submit("r", READ_ALOUD, route(READ_ALOUD), deadline=began + 0.05, played=True) as answer:
        pipeline.deliver(sound(4800, 0))
        await answer.take()
        with pytest.raises(OmniError) as caught:
            await answer.take()
    assert caught.value.info.code == "request_timeout"
    assert 0.25 <= loop.time() - began < 1


def test_a_text_that_is_read_aloud_needs_no_thinker():
    stages = route(READ_ALOUD)
    assert stages.all == {"preprocessing", "talker_ar", "code_predictor", "code2wav"}
    [speech] = stages.outputs.values()
    assert speech.first == {"preprocessing"}, "needed until the first sound"
