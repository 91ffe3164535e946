"""Texts and media are read in several processes. If a process ends, only the request on which it works fails."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from driving import PATIENCE_SECONDS
from media_files import clip_file, image_file, picture, sound_file, tone
from PIL import Image
from transformers import Qwen3OmniMoeProcessor

from omni_pipeline.contract.stage import StageBroken
from omni_pipeline.errors import ErrorInfo, bad_request
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Chunk, Start
from omni_pipeline.wire.tensor import Buffer, Tensor
from stages.grammars.vocabulary import Vocabulary
from stages.messages import AudioWork, Grammar, Media, Text, Turn, VideoOptions, VisionItem
from stages.options import PreprocessingOptions
from stages.preprocessing import media as media_module
from stages.preprocessing.conversation import ChatTokenizer
from stages.preprocessing.features import Features
from stages.preprocessing.media import MediaReader, ReadMedia
from stages.preprocessing.readers import pool as pool_module
from stages.preprocessing.readers.channel import Channel, send_all
from stages.preprocessing.readers.pool import MOST_FAILED_STARTS, NICENESS, ReaderPool, State
from stages.preprocessing.readers.process import (
    EDGES,
    READER,
    STAGE,
    Check,
    Checked,
    Question,
    Read,
    ReaderWork,
    Survey,
    Surveys,
    Tokenise,
    Tokens,
    _next_answer,
)
from stages.preprocessing.survey import MediumSurvey
from stages.preprocessing.token_limit import TextLimit, TokenLimit

VIDEO = VideoOptions(use_audio=True)
SHORT, LONG = 0.1, 100.0


def read_media(*arrays: numpy.ndarray) -> ReadMedia:
    items = [VisionItem(b"key", (1, 2, 2), Tensor.of(array)) for array in arrays]
    return ReadMedia(items, [], AudioWork([], 100), [])


class Obedient:
    """Stands in for the readers' work. The content of each media item, or the first text of a conversation, is an
    order, which this class carries out.
    """

    def __init__(self) -> None:
        self.held: list[Media] = []

    def drop(self) -> None:
        self.held = []

    def answer(self, question: Question, begin: Callable[[int], None]) -> Any:
        match question:
            case Tokenise():
                part = question.turns[0].content[0]
                assert isinstance(part, Text)
                self.obey(part.text.encode(), "messages")
                return Tokens(Tensor.of(numpy.array([os.getpid()])))
            case Survey():
                self.held = question.media
                return Surveys([MediumSurvey("image", rows=os.getpid())])
        given = self.held if question.held else question.media
        for index, medium in enumerate(given):
            if bytes(medium.data.buffer()) != b"vanish":
                begin(index)
            self.obey(bytes(medium.data.buffer()), medium.param)
        return read_media(*(numpy.frombuffer(medium.data.buffer(), numpy.uint8) for medium in given))

    def obey(self, order: bytes, param: str) -> None:
        match order.split(b" "):
            case [b"crash"]:
                faulthandler.disable()  # the handler would print to the terminal
                os.kill(os.getpid(), signal.SIGSEGV)
            case [b"noise"]:
                os.write(1, b"noise")
                os.write(2, b"noise")
            case [b"exit"] | [b"vanish"]:
                os._exit(3)
            case [b"hang"]:
                time.sleep(600)
            case [b"compute", path]:
                while not os.path.exists(path):
                    pass
            case [b"await", path]:
                while not os.path.exists(path):
                    time.sleep(0.01)
            case [b"refuse"]:
                raise bad_request("No.", param=param, code="invalid_image")
            case [b"bug"]:
                raise RuntimeError("secret")


@pytest.fixture
def processes() -> Callable[[], list[psutil.Process]]:
    """A function that lists the processes that a test has started. Processes that were already running, such as shared
    servers, are left out.
    """
    before = psutil.Process().children(recursive=True)
    return lambda: [child for child in psutil.Process().children(recursive=True) if child not in before]


def work(processor: Qwen3OmniMoeProcessor, reader: MediaReader) -> ReaderWork:
    """The readers' work, without a useful limit on text."""
    tokenizer = processor.tokenizer
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>"))
    return ReaderWork(ChatTokenizer(processor, TextLimit(TokenLimit(1), None)), reader, vocabulary)


class Driven:
    """Drives a pool of readers, as the stage does."""

    def __init__(self, work: Any, count: int = 2, seconds: float = 60.0) -> None:
        self.pool = ReaderPool(work, count, seconds)
        self.results: dict[str, Any] = {}
        self.order: list[str] = []
        # The second question of each request that has two questions for the readers. The second question is submitted
        # as soon as the first question has a result.
        self.follow: dict[str, Question] = {}

    def submit(self, request_id: str, question: Question, seconds: float = SHORT, sender: int = 0) -> None:
        self.pool.submit(request_id, question, seconds, sender)
        self.pool.dispatch()

    def drive(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            assert time.monotonic() < deadline, self.order
            if not self.pool.has_news:
                select.select([self.pool.waits_on], [], [], 0.05)
                continue
            for done in self.pool.collect():
                self.results[done.request_id] = done.result
                self.order.append(done.request_id)
                if question := self.follow.pop(done.request_id, None):
                    del self.results[done.request_id]
                    self.pool.submit(done.request_id, question, SHORT)
            self.pool.dispatch()

    def until(self, *request_ids: str) -> None:
        """Drive until these requests have results."""
        self.drive(lambda: set(request_ids) <= self.results.keys())

    def up(self) -> None:
        """Drive until all readers have started."""
        self.drive(lambda: all(reader.state is not State.STARTING for reader in self.pool._readers))

    def read(self, *given: Media, request_id: str = "r") -> Any:
        """Reads media, and returns the result."""
        self.submit(request_id, read(*given))
        self.until(request_id)
        return self.results.pop(request_id)

    def pids(self) -> list[int]:
        return [reader.pid for reader in self.pool._readers]

    def pid_of(self, request_id: str) -> int:
        """The id of the process that works on a request; 0 if no process works on it."""
        jobs = [(reader.job, reader.pid) for reader in self.pool._readers]
        return next((pid for job, pid in jobs if job is not None and job.request_id == request_id), 0)


@pytest.fixture
def driven(processes: Callable[[], list[psutil.Process]]) -> Iterator[Driven]:
    driven = Driven(Obedient())
    yield driven
    driven.pool.close()
    assert processes() == []


def media(*contents: bytes, kind: Any = "image") -> list[Media]:
    return [Media(kind, Tensor.of(content), f"{kind}s[{index}]") for index, content in enumerate(contents)]


def read(*given: Media) -> Read:
    return Read(list(given), VIDEO, 0, [])


def text(order: str) -> Tokenise:
    return Tokenise([Turn("user", [Text(order)])], [])


def contents(result: Any) -> list[bytes]:
    assert isinstance(result, ReadMedia), result
    return [bytes(item.patches.buffer()) for item in result.pictures]


def refusal(driven: Driven, *given: Media) -> tuple[int, str | None, str | None]:
    error = driven.read(*given)
    assert isinstance(error, ErrorInfo), error
    return error.status, error.code, error.param


# --- results ----------------------------------------------------------------------------------------------------------


def assert_equal(found: ReadMedia, expected: ReadMedia) -> None:
    assert found.rows == expected.rows
    for ours, theirs in [*zip(found.pictures, expected.pictures), *zip(found.clips, expected.clips)]:  # noqa: B905
        assert (ours.key, ours.grid) == (theirs.key, theirs.grid)
        assert numpy.array_equal(ours.patches.numpy(), theirs.patches.numpy())
    assert len(found.sounds.items) == len(expected.sounds.items)
    for ours, theirs in zip(found.sounds.items, expected.sounds.items, strict=True):
        assert ours.key == theirs.key
        assert numpy.array_equal(ours.mel.numpy(), theirs.mel.numpy())


def test_every_reader_gives_the_results_that_one_process_gives(processor: Qwen3OmniMoeProcessor) -> None:
    reader = MediaReader(Features(processor), PreprocessingOptions(), TokenLimit(100_000))
    given = [
        Media("image", Tensor.of(image_file(picture(), "PNG")), "images[0]"),
        Media("audio", Tensor.of(sound_file(tone(1.5))), "audios[0]"),
        Media("video", Tensor.of(clip_file(12, sound=tone(3))), "videos[0]"),
    ]
    surveys = reader.survey(given, VIDEO, 5)
    expected = reader.read(given, VIDEO, 5)
    rows = [row.visual + row.audio for row in expected.rows]
    # The sound track begins a little before the clip, so the clip's rows are only about equal.
    assert [survey.rows for survey in surveys] == pytest.approx(rows, abs=1)
    assert [survey.rows for survey in surveys[:2]] == rows[:2]
    driven = Driven(work(processor, reader), count=3)
    try:
        names = [f"r{number}" for number in range(6)]
        for name in names:
            driven.submit(name, Survey(given, VIDEO, 5))
        driven.until(*names)
        assert all(driven.results.pop(name).items == surveys for name in names)
        for name in names:
            driven.submit(name, Read(given, VIDEO, 5, surveys), SHORT if int(name[1:]) % 2 else LONG)
        driven.until(*names)
    finally:
        driven.pool.close()
    for name in names:
        assert_equal(driven.results[name], expected)


def test_media_are_sent_once_if_they_are_read_right_after_their_survey(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = Channel.send
    monkeypatch.setattr(Channel, "send", lambda self, frames: (sent.append(len(frames)), send(self, frames)))
    given = media(b"one", b"two")
    driven.follow["r"] = read(*given)
    driven.submit("r", Survey(given, VIDEO, 0))
    driven.until("r")
    assert contents(driven.results["r"]) == [b"one", b"two"]
    assert sent == [3, 1]  # the first frame of a message is its text, the others are media
    driven.submit("s", Survey(given, VIDEO, 0))
    driven.until("s")
    # The pool has ordered the reader to drop the media.
    assert all(reader.held is None for reader in driven.pool._readers)
    driven.submit("s", read(*given))
    driven.until("s")
    assert sent == [3, 1, 3, 1, 3]


def test_many_and_large_media_go_through(driven: Driven) -> None:
    given = [b"x" * 5_000_000, b"", *[b"%d" % number for number in range(1500)]]
    assert contents(driven.read(*media(*given))) == given


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [b"crash", b"exit"])
def test_a_medium_that_breaks_its_decoder_is_refused_and_the_next_request_is_read(driven: Driven, what: bytes) -> None:
    for kind in ("image", "audio", "video"):
        assert refusal(driven, *media(b"good", what, b"good", kind=kind)) == (400, f"invalid_{kind}", f"{kind}s[1]")
        assert contents(driven.read(*media(b"good"))) == [b"good"]


def test_a_decoder_that_uses_more_cpu_time_than_its_work_allows_is_ended_in_the_middle_of_a_call(
    processor: Qwen3OmniMoeProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PreprocessingOptions(reading_cpu_seconds=0.7)
    decode = media_module.decode_image

    def compute_for_hours(data: Buffer, *, max_pixels: int, param: str) -> Image.Image:
        if param == "images[1]":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        return decode(data, max_pixels=max_pixels, param=param)

    monkeypatch.setattr(media_module, "decode_image", compute_for_hours)
    reader = MediaReader(Features(processor), options, TokenLimit(100_000))
    driven = Driven(work(processor, reader))
    try:
        given = media(*[image_file(picture(), "PNG")] * 2)
        assert refusal(driven, *given) == (400, "media_too_slow", "images[1]")
        assert len(driven.read(given[0]).pictures) == 1
    finally:
        driven.pool.close()


CHAIN = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(4500)) + '\nr4500: "a"'
SLOW = json.dumps({"type": "integer", "multipleOf": 999_983})


def test_a_grammar_that_breaks_or_occupies_its_reader_is_refused_and_the_next_is_compiled(
    processor: Qwen3OmniMoeProcessor,
) -> None:
    driven = Driven(work(processor, MediaReader(Features(processor), PreprocessingOptions(), TokenLimit(100))))
    try:
        for number, (kind, source, code) in enumerate(
            [
                ("ebnf", CHAIN, "grammar_too_complex"),
                ("json_schema", SLOW, "grammar_too_complex"),
                ("regex", "(", "invalid_grammar"),
                ("regex", "a+", None),
            ]
        ):
            driven.submit(str(number), Check(Grammar(kind, source, "guided")))
            driven.until(str(number))
            result = driven.results[str(number)]
            if code is None:
                assert isinstance(result, Checked)
            else:
                assert (result.status, result.code, result.param) == (400, code, "guided")
    finally:
        driven.pool.close()


def test_a_refusal_is_passed_on(driven: Driven) -> None:
    assert refusal(driven, *media(b"good", b"refuse")) == (400, "invalid_image", "images[1]")


def test_a_bug_is_an_internal_error_that_tells_nothing(driven: Driven) -> None:
    error = driven.read(*media(b"bug"))
    assert error.status == 500
    assert error.message == "The media could not be read."
    assert contents(driven.read(*media(b"good"))) == [b"good"]


def test_a_reader_that_was_given_up_ends_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    ours, its = socket.socketpair()
    codec = Codec(EDGES)
    send_all(ours, codec.encode(Start("", STAGE, READER, read(*media(b"good")))))
    ours.close()
    with its, pytest.raises(ConnectionError):
        _next_answer(Obedient(), its, codec, lambda body: send_all(its, codec.encode(Chunk("", READER, STAGE, body))))
    assert not caplog.records


def test_what_libraries_print_about_files_is_not_in_the_log_but_what_we_say_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    driven = Driven(Obedient())
    try:
        driven.read(*media(b"noise"))
        assert isinstance(driven.read(*media(b"bug")), ErrorInfo)
    finally:
        driven.pool.close()
        logging.getLogger().removeHandler(handler)
    printed = "".join(capfd.readouterr())
    assert "noise" not in printed
    assert "a reader process could not handle a request" in printed


def test_a_job_that_takes_too_long_is_refused_and_its_reader_is_free_again() -> None:
    driven = Driven(Obedient(), seconds=0.5)
    try:
        driven.up()
        before = driven.pids()
        assert refusal(driven, *media(b"good", b"hang")) == (400, "media_too_slow", "images[1]")
        driven.submit("t", text("hang"))
        driven.until("t")
        assert (driven.results["t"].code, driven.results["t"].param) == ("text_too_slow", "messages")
        driven.up()
        assert len(set(before) - set(driven.pids())) == 2
        assert contents(driven.read(*media(b"good"))) == [b"good"]
    finally:
        driven.pool.close()


def test_a_reader_that_was_lost_while_idle_is_replaced(driven: Driven) -> None:
    driven.up()
    for pid in driven.pids():
        os.kill(pid, signal.SIGKILL)
    assert contents(driven.read(*media(b"good"))) == [b"good"]


def test_a_job_whose_reader_ends_before_it_begins_is_tried_once_more_and_then_fails(driven: Driven) -> None:
    driven.up()
    error = driven.read(*media(b"vanish"))
    assert (error.status, error.code) == (503, "reader_lost")
    assert error.message.count("exit code 3") == 2
    assert driven.pool.restarted == 2
    assert contents(driven.read(*media(b"good"))) == [b"good"]


def test_a_text_whose_reader_ends_once_is_tokenised_by_another(driven: Driven, tmp_path: Path) -> None:
    driven.submit("t", text(f"await {tmp_path}/now"))
    driven.drive(lambda: bool(driven.pid_of("t")))
    first = driven.pid_of("t")
    os.kill(first, signal.SIGKILL)
    driven.drive(lambda: driven.pid_of("t") not in (0, first))
    (tmp_path / "now").touch()
    driven.until("t")
    assert driven.results["t"].ids.numpy()[0] != first


def test_readers_that_end_as_they_start_break_the_stage_and_are_not_started_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.preprocessing.readers.process.set_title", lambda title: os._exit(9))
    driven = Driven(Obedient())
    try:
        with pytest.raises(StageBroken, match="exit code 9"):
            driven.drive(lambda: False)
        assert driven.pool.restarted < MOST_FAILED_STARTS
    finally:
        driven.pool.close()


def test_end_of_the_process_that_forks_readers_breaks_the_stage(driven: Driven) -> None:
    driven.up()
    (nursery,) = [child for child in psutil.Process().children() if child.pid == driven.pool._nursery._pid]
    readers = nursery.children()
    nursery.kill()
    with pytest.raises(StageBroken):
        driven.drive(lambda: False)
    psutil.wait_procs(readers, PATIENCE_SECONDS)
    assert not any(reader.is_running() for reader in readers)


# --- order ------------------------------------------------------------------------------------------------------------


def test_a_long_job_does_not_delay_others(driven: Driven, tmp_path: Path) -> None:
    path = tmp_path / "now"
    driven.up()
    for number in range(3):  # this is more than the number of readers
        driven.submit(f"long{number}", read(*media(b"await %s" % bytes(path))), LONG)
    for number in range(3):
        driven.submit(f"short{number}", read(*media(b"good")))
        driven.submit(f"text{number}", text("hello"))
    driven.until(*(f"{kind}{number}" for kind in ("short", "text") for number in range(3)))
    assert driven.pool.busy == 1
    path.touch()
    driven.until("long0", "long1", "long2")
    assert driven.order[-3:] == ["long0", "long1", "long2"]


def test_a_text_does_not_wait_for_media(driven: Driven, tmp_path: Path) -> None:
    path = tmp_path / "now"
    for number in range(4):
        driven.submit(f"media{number}", read(*media(b"await %s" % bytes(path))))
    driven.submit("text", text("hello"))
    driven.until("text")
    assert driven.order == ["text"]
    path.touch()
    driven.until(*(f"media{number}" for number in range(4)))


@pytest.mark.parametrize("how", ["await", "compute"])
def test_a_job_that_is_not_as_short_as_expected_makes_room_for_short_ones(
    monkeypatch: pytest.MonkeyPatch, driven: Driven, tmp_path: Path, how: str
) -> None:
    monkeypatch.setattr(pool_module, "OVERRUN_SECONDS", 0.2 if how == "await" else 600.0)
    monkeypatch.setattr(pool_module, "OVERRUN_CPU_SECONDS", 0.2 if how == "compute" else 600.0)
    path = tmp_path / "now"
    for number in range(3):
        driven.submit(f"liar{number}", read(*media(b"%s %s" % (how.encode(), bytes(path)))))
    driven.submit("honest", read(*media(b"good")))
    driven.until("honest")
    assert driven.order == ["honest"]
    path.touch()
    driven.until("liar0", "liar1", "liar2")
    assert all(contents(driven.results[f"liar{number}"]) for number in range(3))
    assert driven.pool.demoted == 2  # the third job waited, or ran in the reader that accepts jobs of any length


def test_a_client_that_fills_all_readers_gives_one_to_another_client(
    monkeypatch: pytest.MonkeyPatch, processes: Callable[[], list[psutil.Process]], tmp_path: Path
) -> None:
    monkeypatch.setattr(pool_module, "YIELD_SECONDS", 0.1)
    driven = Driven(Obedient(), count=4)
    path = tmp_path / "now"
    wait = read(*media(b"await %s" % bytes(path)))
    try:
        driven.up()
        for number in range(10):
            driven.submit(f"many{number}", wait, LONG, sender=1)
        driven.submit("one", read(*media(b"good")), LONG, sender=2)
        driven.until("one")
        assert driven.order == ["one"]
        assert driven.pool.displaced == 1
        assert driven.pid_of("many0") != 0, "the oldest job of the client is not stopped"
        path.touch()
        driven.until(*(f"many{number}" for number in range(10)))
        assert driven.pool.displaced == 1, "the jobs of one client do not stop each other"
    finally:
        driven.pool.close()
    assert processes() == []


def test_clients_that_wait_get_equal_numbers_of_readers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool_module, "YIELD_SECONDS", 0.1)
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.1)
    driven = Driven(Obedient(), count=7)
    path = tmp_path / "now"
    wait = read(*media(b"await %s" % bytes(path)))

    def shares() -> list[int]:
        running = driven.pool._running()
        return [running[sender] for sender in (1, 2, 3)]

    try:
        driven.up()
        for sender in (1, 2, 3):
            for number in range(8):
                driven.submit(f"{sender}.{number}", wait, LONG, sender=sender)
        assert shares() == [6, 0, 0]
        driven.drive(lambda: shares() == [2, 2, 2])
        assert driven.pool.displaced == 4
        path.touch()
        driven.until(*(f"{sender}.{number}" for sender in (1, 2, 3) for number in range(8)))
    finally:
        driven.pool.close()


def test_a_reader_has_a_low_priority_only_while_its_job_is_long(
    monkeypatch: pytest.MonkeyPatch, driven: Driven, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool_module, "OVERRUN_SECONDS", 0.2)
    normal, path = os.getpriority(os.PRIO_PROCESS, 0), tmp_path / "now"
    wait = read(*media(b"await %s" % bytes(path)))

    def priorities() -> list[int]:
        return [os.getpriority(os.PRIO_PROCESS, reader.pid) for reader in driven.pool._readers]

    driven.up()
    assert priorities() == [normal, normal, normal]  # the readers for texts, for short jobs, and for all jobs
    driven.submit("long", wait, LONG)
    assert priorities() == [normal, normal, NICENESS]
    driven.submit("liar", wait)
    assert priorities() == [normal, normal, NICENESS]
    driven.drive(lambda: priorities() == [normal, NICENESS, NICENESS])
    before = driven.pids()
    path.touch()
    driven.until("liar", "long")
    driven.up()
    assert priorities() == [normal, normal, normal]
    assert [old == new for old, new in zip(before, driven.pids(), strict=True)] == [True, False, False]
    assert contents(driven.read(*media(b"good"))) == [b"good"]


def test_a_reader_that_does_not_take_its_question_delays_nobody(driven: Driven) -> None:
    driven.up()
    driven.submit("first", Survey(media(b"x"), VIDEO, 0))
    driven.until("first")
    stopped = driven.results["first"].items[0].rows
    os.kill(stopped, signal.SIGSTOP)
    driven.submit("large", read(*media(b"x" * 20_000_000)))
    assert driven.pid_of("large") == stopped
    assert contents(driven.read(*media(b"good"))) == [b"good"]
    os.kill(stopped, signal.SIGCONT)
    driven.until("large")
    assert contents(driven.results["large"]) == [b"x" * 20_000_000]


# --- the end of a request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_the_end_of_a_request_frees_its_reader(driven: Driven, seconds: float) -> None:
    driven.up()
    driven.submit("gone", read(*media(b"hang")), seconds)
    pid = driven.pid_of("gone")
    driven.submit("waits", read(*media(b"hang")), LONG)
    driven.pool.cancel("waits")
    driven.pool.cancel("gone")
    driven.drive(lambda: not psutil.pid_exists(pid))
    driven.up()
    assert pid not in driven.pids()
    assert driven.pool.cancelled == 2
    assert driven.pool.queued == driven.pool.busy == 0
    driven.submit("next", read(*media(b"good")), seconds)
    driven.until("next")
    assert driven.order == ["next"]


def test_the_end_of_a_request_without_a_job_replaces_no_reader(driven: Driven) -> None:
    driven.up()
    before = driven.pids()
    assert contents(driven.read(*media(b"good"))) == [b"good"]
    driven.pool.cancel("r")
    driven.pool.cancel("unknown")
    assert driven.pids() == before
    assert driven.pool.cancelled == driven.pool.restarted == 0


def test_nothing_is_left_when_it_is_closed(driven: Driven, processes: Callable[[], list[psutil.Process]]) -> None:
    driven.up()
    assert len(processes()) == 1 + len(driven.pids())
    driven.submit("r", read(*media(b"hang")))
    driven.pool.close()
    assert processes() == []
    driven.pool.close()
