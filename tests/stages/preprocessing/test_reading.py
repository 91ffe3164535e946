"""Media are read in a separate process, whose crash harms only their own request."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import psutil
import pytest
from media_files import clip_file, image_file, picture, sound_file, tone
from transformers import Qwen3OmniMoeProcessor

from omni_pipeline.errors import OmniError, bad_request
from omni_pipeline.wire.tensor import Tensor
from stages.messages import AudioWork, Media, VideoOptions, VisionItem
from stages.options import PreprocessingOptions
from stages.preprocessing.features import Features
from stages.preprocessing.media import MediaReader, ReadMedia
from stages.preprocessing.reading import ReadingProcess
from stages.preprocessing.token_limit import TokenLimit

VIDEO = VideoOptions(use_audio=True)


def read_media(*arrays: numpy.ndarray) -> ReadMedia:
    items = [VisionItem(b"key", (1, 2, 2), Tensor.of(array)) for array in arrays]
    return ReadMedia(items, [], AudioWork([], 100), [])


class Obedient:
    """A reader that does what each media item's content says."""

    def read(
        self, media: list[Media], video: VideoOptions, text_tokens: int, begin: Callable[[int], None]
    ) -> ReadMedia:
        for index, medium in enumerate(media):
            begin(index)
            match bytes(medium.data.buffer()):
                case b"crash":
                    faulthandler.disable()  # the handler would print to the terminal
                    os.kill(os.getpid(), signal.SIGSEGV)
                case b"noise":
                    os.write(1, b"noise")
                    os.write(2, b"noise")
                case b"exit":
                    os._exit(3)
                case b"hang":
                    time.sleep(600)
                case b"refuse":
                    raise bad_request("No.", param=medium.param, code="invalid_image")
                case b"bug":
                    raise RuntimeError("secret")
        return read_media(*(numpy.frombuffer(medium.data.buffer(), numpy.uint8) for medium in media))


@pytest.fixture
def readers() -> Callable[[], list[psutil.Process]]:
    """Lists the processes that a test has started; servers that other tests share may already run."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture
def reading(readers: Callable[[], list[psutil.Process]]) -> Iterator[ReadingProcess]:
    process = ReadingProcess(Obedient(), 60)  # type: ignore[arg-type]
    yield process
    process.close()


def media(*contents: bytes, kind: Any = "image") -> list[Media]:
    return [Media(kind, Tensor.of(content), f"{kind}s[{index}]") for index, content in enumerate(contents)]


def contents(read: ReadMedia) -> list[bytes]:
    return [bytes(item.patches.buffer()) for item in read.pictures]


def refusal(reading: ReadingProcess, *given: Media) -> tuple[int, str | None, str | None]:
    with pytest.raises(OmniError) as caught:
        reading.read(list(given), VIDEO, 0)
    return caught.value.info.status, caught.value.info.code, caught.value.info.param


def test_every_kind_of_medium_is_read_as_without_the_process(processor: Qwen3OmniMoeProcessor) -> None:
    reader = MediaReader(Features(processor), PreprocessingOptions(), TokenLimit(100_000))
    given = [
        Media("image", Tensor.of(image_file(picture(), "PNG")), "images[0]"),
        Media("audio", Tensor.of(sound_file(tone(1.5))), "audios[0]"),
        Media("video", Tensor.of(clip_file(12, sound=tone(3))), "videos[0]"),
    ]
    expected = reader.read(given, VIDEO, 5)
    process = ReadingProcess(reader, 60)
    try:
        found = process.read(given, VIDEO, 5)
    finally:
        process.close()
    assert found.rows == expected.rows
    for ours, theirs in [*zip(found.pictures, expected.pictures), *zip(found.clips, expected.clips)]:  # noqa: B905
        assert (ours.key, ours.grid) == (theirs.key, theirs.grid)
        assert numpy.array_equal(ours.patches.numpy(), theirs.patches.numpy())
    assert len(found.sounds.items) == 2
    for ours, theirs in zip(found.sounds.items, expected.sounds.items, strict=True):
        assert ours.key == theirs.key
        assert numpy.array_equal(ours.mel.numpy(), theirs.mel.numpy())


def test_many_and_large_media_go_through(reading: ReadingProcess) -> None:
    given = [b"x" * 5_000_000, b"", *[b"%d" % number for number in range(1500)]]
    assert contents(reading.read(media(*given), VIDEO, 0)) == given


@pytest.mark.parametrize("what", [b"crash", b"exit"])
def test_a_medium_that_breaks_its_decoder_is_refused_and_the_next_request_is_read(
    reading: ReadingProcess, what: bytes
) -> None:
    for kind in ("image", "audio", "video"):
        assert refusal(reading, *media(b"good", what, b"good", kind=kind)) == (400, f"invalid_{kind}", f"{kind}s[1]")
        assert contents(reading.read(media(b"good"), VIDEO, 0)) == [b"good"]


def test_a_refusal_is_passed_on(reading: ReadingProcess) -> None:
    assert refusal(reading, *media(b"good", b"refuse")) == (400, "invalid_image", "images[1]")


def test_a_bug_is_an_internal_error_that_tells_nothing(reading: ReadingProcess) -> None:
    with pytest.raises(OmniError, match="could not be read") as caught:
        reading.read(media(b"bug"), VIDEO, 0)
    assert caught.value.info.status == 500
    assert contents(reading.read(media(b"good"), VIDEO, 0)) == [b"good"]


def test_what_libraries_print_about_files_is_not_in_the_log_but_what_we_say_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    process = ReadingProcess(Obedient(), 60)  # type: ignore[arg-type]
    try:
        process.read(media(b"noise"), VIDEO, 0)
        with pytest.raises(OmniError):
            process.read(media(b"bug"), VIDEO, 0)
    finally:
        process.close()
        logging.getLogger().removeHandler(handler)
    printed = "".join(capfd.readouterr())
    assert "noise" not in printed
    assert "media could not be read" in printed


def test_a_medium_that_takes_too_long_is_refused_and_given_up(readers: Callable[[], list[psutil.Process]]) -> None:
    process = ReadingProcess(Obedient(), 0.5)  # type: ignore[arg-type]
    try:
        (reader,) = readers()
        assert refusal(process, *media(b"good", b"hang")) == (400, "media_too_slow", "images[1]")
        assert not reader.is_running()
        assert contents(process.read(media(b"good"), VIDEO, 0)) == [b"good"]
    finally:
        process.close()


def test_a_process_that_was_lost_meanwhile_is_started_again(
    reading: ReadingProcess, readers: Callable[[], list[psutil.Process]]
) -> None:
    (reader,) = readers()
    reader.kill()
    assert contents(reading.read(media(b"good"), VIDEO, 0)) == [b"good"]


def test_nothing_is_left_when_it_is_closed(
    reading: ReadingProcess, readers: Callable[[], list[psutil.Process]]
) -> None:
    assert len(readers()) == 1
    reading.close()
    assert readers() == []
