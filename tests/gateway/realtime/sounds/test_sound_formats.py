"""Realtime sound is converted exactly, in chunks of any length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import numpy
import pytest
import soundfile
import soxr

from gateway.answers.audio_formats import to_pcm16
from gateway.realtime.sounds.sound_formats import (
    RATES,
    SOUND_FORMATS,
    InputSound,
    OutputSound,
    SoundFormat,
    decode,
    encode,
)

FFMPEG_NAMES = {"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
ALL_SAMPLES = numpy.arange(-32_768, 32_768).astype("<i2")
CHUNKS = (1, 2, 3, 479, 480, 481, 4_801, 1 << 20)


def ffmpeg_decodes(data: bytes, codec: str) -> numpy.ndarray:
    context = av.CodecContext.create(codec, "r")
    context.sample_rate, context.layout = 8_000, "mono"
    return numpy.concatenate([frame.to_ndarray()[0] for frame in context.decode(av.Packet(data))])


def ffmpeg_encodes(pcm: numpy.ndarray, codec: str) -> bytes:
    context = av.CodecContext.create(codec, "w")
    context.sample_rate, context.layout, context.format = 8_000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
    frame.sample_rate = 8_000
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.fixture(scope="module")
def question(data: Path) -> numpy.ndarray:
    """float32 [n] at 24 kHz."""
    samples, rate = soundfile.read(data / "query_to_cars.wav", dtype="float32")
    return soxr.resample(samples, rate, 24_000)


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
def test_all_codes_of_g711_are_read_as_ffmpeg_reads_them(law: SoundFormat) -> None:
    codes = bytes(range(256))
    assert (decode(codes, law) == ffmpeg_decodes(codes, FFMPEG_NAMES[law])).all()


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
def test_all_samples_are_written_in_g711_as_ffmpeg_writes_them_but_at_borders(law: SoundFormat) -> None:
    """At a border between two segments, FFmpeg chooses the nearest value. G.711 chooses a value in the segment of the
    sample.
    """
    scale = numpy.unique(decode(bytes(range(256)), law))
    written, by_ffmpeg = (
        numpy.searchsorted(scale, decode(codes, law))
        for codes in (encode(ALL_SAMPLES, law), ffmpeg_encodes(ALL_SAMPLES, FFMPEG_NAMES[law]))
    )
    assert numpy.abs(written - by_ffmpeg).max() == 1
    assert (written != by_ffmpeg).mean() < 0.015


@pytest.mark.filterwarnings("ignore:'audioop' is deprecated")
@pytest.mark.parametrize(("law", "function"), [("audio/pcmu", "lin2ulaw"), ("audio/pcma", "lin2alaw")])
def test_all_samples_are_written_in_g711_as_python_writes_them(law: SoundFormat, function: str) -> None:
    audioop = pytest.importorskip("audioop", reason="Python 3.13 has no audioop")
    assert encode(ALL_SAMPLES, law) == getattr(audioop, function)(ALL_SAMPLES.tobytes(), 2)


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
def test_a_code_survives_reading_and_writing(law: SoundFormat) -> None:
    codes = bytes(range(256))
    read = decode(codes, law)
    assert (decode(encode(read, law), law) == read).all()


@pytest.mark.parametrize("sound_format", SOUND_FORMATS)
def test_chunks_of_any_length_give_the_same_input(sound_format: SoundFormat, question: numpy.ndarray) -> None:
    sound = to_pcm16(soxr.resample(question, 24_000, RATES[sound_format]))[: RATES[sound_format]]
    data = encode(sound, sound_format)
    heard = []
    for size in CHUNKS:
        stream = InputSound(sound_format)
        heard.append(numpy.concatenate([*(stream.feed(piece) for piece in pieces(data, size)), stream.finish()]))
    assert all(numpy.array_equal(one, other) for one, other in itertools.pairwise(heard))
    assert len(heard[0]) == 16_000
    assert numpy.array_equal(to_pcm16(heard[0]).astype(numpy.float32) / 32_768, heard[0])


@pytest.mark.parametrize("sound_format", SOUND_FORMATS)
def test_input_is_delayed_by_little(sound_format: SoundFormat) -> None:
    stream = InputSound(sound_format)
    packet = encode(numpy.zeros(RATES[sound_format] // 100, numpy.int16), sound_format)
    assert sum(len(stream.feed(packet)) for _ in range(100)) == 16_000 - 64
    assert len(stream.finish()) == 64


def test_a_finished_input_begins_again(question: numpy.ndarray) -> None:
    data = to_pcm16(question).tobytes()
    stream = InputSound("audio/pcm")
    first, second = (numpy.concatenate([stream.feed(data[:4801]), stream.finish()]) for _ in range(2))
    assert numpy.array_equal(first, second)


def test_loud_input_is_clipped() -> None:
    square = (numpy.arange(2_400) // 100 % 2 * 2 - 1) * 32_767
    heard = InputSound("audio/pcm").feed(square.astype("<i2").tobytes())
    assert heard.max() == numpy.float32(32_767 / 32_768)
    assert heard.min() == -1


@pytest.mark.parametrize("sound_format", SOUND_FORMATS)
def test_pieces_of_any_length_give_the_same_output(sound_format: SoundFormat, question: numpy.ndarray) -> None:
    outputs = set()
    for size in (1, 1_920, 5_001, len(question)):
        stream = OutputSound(sound_format)
        output = [stream.feed(question[start : start + size]) for start in range(0, len(question), size)]
        outputs.add(b"".join([*output, stream.finish()]))
    [output] = outputs
    played = decode(output, sound_format).astype(numpy.float32) / 32_768
    assert len(played) == pytest.approx(len(question) * RATES[sound_format] / 24_000, abs=1)
    again = soxr.resample(played, RATES[sound_format], 24_000)[: len(question)]
    reference = soxr.resample(soxr.resample(question, 24_000, RATES[sound_format]), RATES[sound_format], 24_000)
    noise = again - reference[: len(again)]
    assert 10 * numpy.log10((reference**2).mean() / (noise**2).mean()) > (25 if sound_format != "audio/pcm" else 70)
