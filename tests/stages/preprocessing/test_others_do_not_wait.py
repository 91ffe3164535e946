"""A request with a long text or a long clip delays no other request, and the end of the request frees the reader. The
tests use real readers.
"""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import psutil
import pytest
from cases import film
from conversations import Case, Film, start_of
from driving import finish, messages
from media_files import picture, tone
from PIL import Image

from omni_pipeline.wire.messages import Failed
from stages.messages import VideoOptions
from stages.preprocessing import Preprocessing
from stages.preprocessing.readers.jobs import JobQueue
from stages.preprocessing.readers.pool import State

# The frames are small, so a clip of several hours has few tokens.
SMALL = VideoOptions(min_pixels=1024, max_pixels=4096)


@pytest.fixture(scope="module")
def long_clip() -> Film:
    """A clip that takes a long time to decode. It is made quickly, because all of its frames are the same packet."""
    frames, width, height = 4000, 1280, 720
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        frame = av.VideoFrame.from_image(Image.new("RGB", (width, height), "teal"))
        (packet,) = stream.encode(frame.reformat(format="yuvj420p"))
        for index in range(frames):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, 25), True
            copy.pts = copy.dts = index
            copy.duration = 1
            container.mux(copy)
    return Film(file.getvalue())


@pytest.fixture
def stage(stage_context: Any, request: pytest.FixtureRequest) -> Iterator[Preprocessing]:
    stage = Preprocessing(stage_context("preprocessing", readers=2, **getattr(request, "param", {})))
    pool = stage._readers
    list(messages(stage, lambda: all(reader.state is State.IDLE for reader in pool._readers)))
    yield stage
    stage.close()


def ends_of(stage: Preprocessing, count: int) -> list[str]:
    """Drives the stage until `count` requests are complete. Returns the ids of these requests in the order in which
    they were completed.
    """
    ends: list[str] = []
    for message in messages(stage, lambda: len(ends) >= count):
        assert not isinstance(message, Failed), message
        if message.target == "mm_aggregate":
            ends.append(message.request_id)
    return ends


def reader_of(stage: Preprocessing, request_id: str) -> int:
    """The id of the process that works on a request's media; 0 if no process works on them."""
    busy = [reader for reader in stage._readers._readers if reader.job is not None]
    return next((reader.pid for reader in busy if reader.job.request_id == request_id), 0)


def test_long_clips_do_not_delay_pictures_sounds_and_texts(stage: Preprocessing, long_clip: Film) -> None:
    for number in range(3):  # this is more than the number of readers
        stage.receive(start_of(Case("", [("user", [long_clip])], SMALL), f"clip{number}"))
    list(messages(stage, lambda: any(reader.job and reader.job.long for reader in stage._readers._readers)))
    stage.receive(start_of(Case("", [("user", [picture(400, 300), "?"])]), "picture"))
    stage.receive(start_of(Case("", [("user", [tone(2), "?"])]), "sound"))
    stage.receive(start_of(Case("", [("user", [film(8), "?"])]), "film"))
    stage.receive(start_of(Case("", [("user", ["word " * 10_000])]), "long text"))
    stage.receive(start_of(Case("", [("user", ["Hello."])]), "text"))
    ends = ends_of(stage, 5)
    assert set(ends) == {"picture", "sound", "film", "long text", "text"}
    assert ends[0] == "text"
    assert set(stage.live()) == {"clip0", "clip1", "clip2"}
    for number in range(3):
        stage.abort(f"clip{number}")
    assert not stage.live()


def test_end_of_a_request_frees_the_reader_that_decodes_its_clip(stage: Preprocessing, long_clip: Film) -> None:
    stage.receive(start_of(Case("", [("user", [long_clip])], SMALL), "gone"))
    stage.receive(start_of(Case("", [("user", [long_clip])], SMALL), "waits"))
    list(messages(stage, lambda: any(reader.job and reader.job.long for reader in stage._readers._readers)))
    list(messages(stage, lambda: stage._readers.queued == 1))  # only one reader accepts long jobs
    (gone,) = [name for name in ("gone", "waits") if reader_of(stage, name)]
    (other,) = {"gone", "waits"} - {gone}
    pid = reader_of(stage, gone)
    stage.abort(gone)
    list(messages(stage, lambda: bool(reader_of(stage, other))))
    assert reader_of(stage, other) != pid
    list(messages(stage, lambda: not psutil.pid_exists(pid)))
    assert stage.stats()["cancelled_readings"] == 1
    assert stage.stats()["readers_replaced"] == 1
    stage.abort(other)
    assert not stage.live()
    assert stage.stats()["readers_busy"] == 0


def test_a_client_with_many_requests_delays_another_client_by_one_request(stage: Preprocessing) -> None:
    for number in range(50):
        many = start_of(Case("", [("user", ["Hello."])]), f"many{number}")
        many.body.thinker.sender = 1
        stage.receive(many)
    one = start_of(Case("", [("user", ["Hello."])]), "one")
    one.body.thinker.sender = 2
    stage.receive(one)
    ends = ends_of(stage, 51)
    assert ends.index("one") <= 1
    assert [name for name in ends if name != "one"] == [f"many{number}" for number in range(50)]


def test_readers_and_encoders_know_the_client(stage: Preprocessing, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    put = JobQueue.put
    monkeypatch.setattr(JobQueue, "put", lambda queue, job: (asked.append(job.sender), put(queue, job)))
    start = start_of(Case("", [("user", [picture(40, 30), tone(2), "?"])]), "r")
    start.body.thinker.sender = 7
    stage.receive(start)
    sent = {message.target: message.body for message in finish(stage)}
    assert (sent["image_encoder"].sender, sent["audio_encoder"].sender) == (7, 7)
    assert asked == [7, 7], "the jobs to survey and to read the media"


@pytest.mark.parametrize("stage", [{"max_prompt_tokens": 16_384}], indirect=True)
def test_the_longest_legal_text_does_not_delay_a_short_one(stage: Preprocessing, processor: Any) -> None:
    blanks = 32_000
    tokens = len(processor.tokenizer(" " * blanks).input_ids)
    text = " " * (blanks * (stage._limit.tokens - 50) // tokens)
    stage.receive(start_of(Case("", [("user", [text])]), "long"))
    stage.receive(start_of(Case("", [("user", ["Hello."])]), "short"))
    assert ends_of(stage, 2) == ["short", "long"]


@pytest.fixture(scope="module")
def idle(stage_context: Any) -> Iterator[Preprocessing]:
    """A stage whose readers have nothing to do."""
    stage = Preprocessing(stage_context("preprocessing", readers=2))
    yield stage
    stage.close()


@pytest.mark.parametrize(
    "turns",
    [
        [("user", ["a" * (64 << 20)])],
        [("user", ["é" * (32 << 20)])],
        [("user", ["\N{KELVIN SIGN}" * (22 << 20)])],
        [("user", ["a" * (1 << 20), "b"] * 64)],
        [("user", ["a" * (1 << 20)]), ("assistant", ["b"])] * 64,
        [("a" * (64 << 20), ["hello"])],
    ],
    ids=["one word", "two bytes a letter", "not normalised", "parts", "turns", "role"],
)
def test_a_text_that_cannot_fit_is_refused_and_not_tokenised(
    idle: Preprocessing, monkeypatch: pytest.MonkeyPatch, turns: Any
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(idle._chat, "skeleton", lambda *_: asked.append("stage"))
    monkeypatch.setattr(idle._readers, "submit", lambda *_: asked.append("reader"))
    idle.receive(start_of(Case("", turns)))
    (message,) = finish(idle)
    assert isinstance(message, Failed)
    error = message.error
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert f"maximum context length is {idle._limit.tokens} tokens" in error.message
    assert asked == []
