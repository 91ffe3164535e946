"""Every format yields pieces that can be joined to one playable file, and this file has the samples that were
encoded.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import wave
from concurrent.futures import ThreadPoolExecutor

import av
import numpy
import pytest
import soundfile

from gateway.answers.audio_formats import SpeechEncoder, ThreadedEncoder, file_encoder, stream_encoder, to_pcm16
from gateway.api.speech_format import SAMPLE_RATE
from tests.gateway.scripted import tone

# Sizes of pieces in samples, as the vocoder makes them. The first frame is shorter, because its look-ahead is missing;
# later pieces are larger.
PIECES = [1365, 3840, 7680, *[15_360] * 5]
COMPRESSED = ["flac", "mp3", "opus", "aac"]
LOSSY = ["mp3", "opus", "aac"]


def cut(sizes=PIECES) -> list[numpy.ndarray]:
    """A tone that is cut into pieces of these sizes, in samples."""
    starts = itertools.accumulate(sizes, initial=0)
    return [tone(size, start) for size, start in zip(sizes, starts, strict=False)]


def coded(encoder: SpeechEncoder, pieces: list[numpy.ndarray]) -> list[bytes]:
    return [*map(encoder.feed, pieces), encoder.finish()]


def played(data: bytes) -> tuple[numpy.ndarray, int]:
    """The samples of `data` as a player with FFmpeg decodes them (float [n], one channel), and their rate."""
    with av.open(io.BytesIO(data)) as container:
        [stream] = container.streams
        resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
        return numpy.concatenate([frame.to_ndarray()[0] for frame in frames]), stream.rate


def quantised(samples: numpy.ndarray) -> numpy.ndarray:
    """`samples` rounded to 16 bits, computed without the code under test."""
    return numpy.array([round(float(sample) * 32768) for sample in samples]) / 32768


def likeness(heard: numpy.ndarray, rate: int, meant: numpy.ndarray) -> tuple[float, float, float]:
    """Shift `heard` against `meant` until they correlate best. Returns this correlation, the shift in seconds, and the
    ratio of the energies.
    """
    positions = numpy.arange(int(len(heard) * SAMPLE_RATE / rate)) * rate / SAMPLE_RATE
    heard = numpy.interp(positions, numpy.arange(len(heard)), heard)
    size = len(heard) + len(meant)
    product = numpy.fft.irfft(numpy.fft.rfft(heard, size) * numpy.conj(numpy.fft.rfft(meant, size)), size)
    scale = numpy.linalg.norm(heard) * numpy.linalg.norm(meant)
    shift = int(product.argmax())
    energies = float(numpy.square(heard).sum() / numpy.square(meant).sum())
    return float(product.max() / scale), (shift if shift < len(heard) else shift - size) / SAMPLE_RATE, energies


@pytest.mark.parametrize(
    ("sample", "step"),
    [
        (0.0, 0),
        (1 / 32768, 1),
        (0.4 / 32768, 0),
        (0.6 / 32768, 1),
        (-0.6 / 32768, -1),
        (0.5 / 32768, 0),
        (1.5 / 32768, 2),
        (-1.0, -32768),
        (1.0, 32767),
        (1.5, 32767),
        (-1.5, -32768),
    ],
)
def test_samples_are_rounded_to_the_nearest_step_and_clipped(sample, step):
    assert to_pcm16(numpy.array([sample], numpy.float32)).tolist() == [step]


@pytest.mark.parametrize("make", [stream_encoder, file_encoder])
def test_pcm16_is_the_bare_samples_in_little_endian(make):
    pieces = coded(make("pcm16"), cut())
    assert [len(piece) for piece in pieces] == [*(2 * size for size in PIECES), 0]
    samples = numpy.frombuffer(b"".join(pieces), "<i2") / 32768
    assert numpy.array_equal(samples, quantised(tone(sum(PIECES))))


def test_a_streamed_wav_is_a_whole_file_for_each_piece_and_an_empty_one_at_the_end():
    heard = []
    for data in coded(stream_encoder("wav"), cut()):
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
            heard.append(numpy.frombuffer(file.readframes(-1), "<i2"))
            assert len(heard[-1]) == file.getnframes()
    assert [len(samples) for samples in heard] == [*PIECES, 0]
    assert numpy.array_equal(numpy.concatenate(heard) / 32768, quantised(tone(sum(PIECES))))


def heard_by_wave(data: bytes) -> numpy.ndarray:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        return numpy.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def heard_by_libsndfile(data: bytes) -> numpy.ndarray:
    return soundfile.read(io.BytesIO(data))[0]


def heard_by_ffmpeg(data: bytes) -> numpy.ndarray:
    return played(data)[0]


# Sizes of pieces in samples. Most of these sizes are not divisible by three.
ODD = [1, 2, 100, 1366, 1, 3840, 7]


@pytest.mark.parametrize("decode", [heard_by_wave, heard_by_libsndfile, heard_by_ffmpeg])
@pytest.mark.parametrize("sizes", [PIECES, ODD, [1]], ids=str)
def test_a_streamed_wav_of_one_file_is_decoded_to_its_end_by(decode, sizes):
    pieces = coded(stream_encoder("wav", one_file=True), cut(sizes))
    assert all(len(piece) % 2 == 0 for piece in pieces), "no sample is divided"
    heard = decode(b"".join(pieces))
    assert numpy.array_equal(heard, quantised(tone(sum(sizes))).astype(heard.dtype))


@pytest.mark.parametrize("decode", [heard_by_wave, heard_by_libsndfile])
def test_a_streamed_wav_of_one_file_may_be_empty(decode):
    assert len(decode(b"".join(coded(stream_encoder("wav", one_file=True), [])))) == 0


@pytest.mark.parametrize("sizes", [PIECES, ODD], ids=["usual pieces", "odd pieces"])
@pytest.mark.parametrize("audio_format", ["wav", "pcm16", *COMPRESSED])
def test_the_base64_of_streamed_pieces_can_be_joined_before_it_is_decoded(audio_format, sizes):
    pieces = coded(stream_encoder(audio_format, one_file=True), cut(sizes))
    joined = b"".join(map(base64.b64encode, pieces))
    assert base64.b64decode(joined, validate=True) == b"".join(pieces)


@pytest.mark.parametrize(("audio_format", "header"), [("wav", 44), ("pcm16", 0)])
def test_an_encoder_without_compression_says_how_many_samples_it_holds(audio_format, header):
    encoder = stream_encoder(audio_format, one_file=True)
    fed = given = 0
    for piece in cut(ODD):
        fed, given = fed + len(piece), given + len(encoder.feed(piece))
        assert encoder.held == fed - max(given - header, 0) // 2
    assert given + len(encoder.finish()) == header + 2 * fed
    assert encoder.held == 0


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_a_lossless_file_gives_back_every_sample(audio_format):
    data = b"".join(coded(file_encoder(audio_format), cut()))
    samples, rate = soundfile.read(io.BytesIO(data))
    assert rate == 24_000
    assert numpy.array_equal(samples, quantised(tone(sum(PIECES))))


def test_a_streamed_flac_gives_back_every_sample():
    samples, rate = played(b"".join(coded(stream_encoder("flac"), cut())))
    assert rate == 24_000
    assert numpy.array_equal(samples, quantised(tone(sum(PIECES))).astype(numpy.float32))


@pytest.mark.parametrize("make", [stream_encoder, file_encoder])
@pytest.mark.parametrize(("audio_format", "rate"), [("mp3", 24_000), ("opus", 48_000), ("aac", 24_000)])
def test_a_lossy_format_sounds_like_what_went_in(make, audio_format, rate):
    heard, heard_rate = played(b"".join(coded(make(audio_format), cut())))
    correlation, shift, energies = likeness(heard, heard_rate, tone(sum(PIECES)))
    assert heard_rate == rate
    assert correlation > 0.99
    assert 0 <= shift < 0.1, "a coder's delay, at most"
    assert energies == pytest.approx(1, abs=0.1), "LAME turns the volume down by half a decibel against clipping"
    assert 0 <= len(heard) / rate - sum(PIECES) / 24_000 < 0.1, "nothing cut off, little appended"


@pytest.mark.parametrize("audio_format", ["mp3", "opus"])
def test_a_file_of_a_format_that_can_tell_its_length_has_the_length_of_the_voice(audio_format):
    heard, rate = played(b"".join(coded(file_encoder(audio_format), cut())))
    assert len(heard) == sum(PIECES) * rate / 24_000


@pytest.mark.parametrize("audio_format", COMPRESSED)
def test_a_compressed_stream_flows_while_it_is_fed(audio_format):
    pieces = coded(stream_encoder(audio_format), cut())
    assert all(pieces[1:-1]), "each piece after the first gives something"
    held_back = len(pieces[-1]) / len(b"".join(pieces))
    assert held_back < 0.1, "what comes at the end is a small rest"


@pytest.mark.parametrize("audio_format", COMPRESSED)
def test_a_compressed_stream_does_not_depend_on_how_it_is_cut(audio_format):
    cuts = (PIECES, [sum(PIECES)], [1] * 100 + [sum(PIECES) - 100])
    first, *others = [played(b"".join(coded(stream_encoder(audio_format), cut(sizes))))[0] for sizes in cuts]
    assert all(numpy.array_equal(first, other) for other in others)


@pytest.mark.parametrize("audio_format", ["pcm16", *LOSSY])
def test_no_speech_is_no_bytes(audio_format):
    for make in (stream_encoder, file_encoder):
        assert coded(make(audio_format), []) == [b""]


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_no_speech_is_an_empty_file_in_the_lossless_formats(audio_format):
    data = b"".join(coded(file_encoder(audio_format), []))
    with av.open(io.BytesIO(data)) as container:
        [stream] = container.streams
        assert (stream.rate, stream.channels, sum(frame.samples for frame in container.decode(stream))) == (
            24_000,
            1,
            0,
        )


@pytest.mark.parametrize("audio_format", ["wav", "pcm16", *COMPRESSED])
def test_a_piece_without_samples_adds_nothing(audio_format):
    encoder = stream_encoder(audio_format)
    assert encoder.feed(numpy.zeros(0, numpy.float32)) == b""


async def test_encoders_in_threads_give_what_they_give_alone():
    voices = [[0.1 * number * piece for piece in cut([1365, 3840])] for number in range(1, 9)]

    async def one(threads: ThreadPoolExecutor, pieces: list[numpy.ndarray]) -> bytes:
        encoder = ThreadedEncoder(lambda: stream_encoder("mp3"), threads)
        return b"".join([*[await encoder.feed(piece) for piece in pieces], await encoder.finish()])

    with ThreadPoolExecutor(2) as threads:
        together = await asyncio.gather(*(one(threads, pieces) for pieces in voices))
    assert together == [b"".join(coded(stream_encoder("mp3"), pieces)) for pieces in voices]
