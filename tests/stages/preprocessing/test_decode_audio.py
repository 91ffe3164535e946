"""Sounds of every format are decoded to one waveform at 16 kHz. A bad sound is refused with the right error code."""

import contextlib
import io
import struct
import tracemalloc
from collections.abc import Callable

import av
import numpy
import pytest
import soundfile
import soxr
from heard_sounds import MAX_SECONDS, decoded, refused
from media_files import RATE, clip_file, sound_file, tone

from omni_pipeline.errors import OmniError
from stages.preprocessing.decode_audio import BLOCK_SAMPLES

WAVE_HEADER = 44


def similar(heard: numpy.ndarray, played: numpy.ndarray) -> float:
    """The similarity of two sounds: their highest correlation over the delays that codecs cause."""
    length = min(len(heard), len(played)) - 2400
    best = max(
        numpy.correlate(heard, played[start : start + length], "valid").max()
        / numpy.linalg.norm(played[start : start + length])
        for start in (0, 1200)
    )
    return best / (numpy.linalg.norm(heard) + 1e-9)


def in_container(sound: numpy.ndarray, layout: str, *, format: str, codec: str, rate: int = 48_000) -> bytes:
    """A file that FFmpeg writes from `sound`, float32 [samples, channels] at `rate`."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            fifo.write(part)
        while (part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def wav_claiming(size: int) -> bytes:
    """A WAV file with one second of 16-bit sound. The header of the file claims that the sound has `size` bytes."""
    data = bytearray(sound_file(tone(1), subtype="PCM_16"))
    struct.pack_into("<I", data, WAVE_HEADER - 4, size)
    return bytes(data)


def test_mono_at_16_khz_passes_unchanged() -> None:
    sound = tone(1.5)
    assert numpy.array_equal(decoded(sound_file(sound, subtype="FLOAT")), sound)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_every_sample_format_of_wav_is_read(subtype: str) -> None:
    sound = tone(1)
    step = {"PCM_U8": 1 / 64, "ULAW": 1 / 20, "ALAW": 1 / 20}.get(subtype, 1e-4)
    assert numpy.abs(decoded(sound_file(sound, subtype=subtype)) - sound).max() < step


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged_and_any_rate_is_resampled(rate: int, channels: int) -> None:
    sound = tone(2, rate, channels=channels)
    expected = soxr.resample(sound if channels == 1 else sound.mean(axis=1, dtype=numpy.float32), rate, RATE)
    heard = decoded(sound_file(sound, rate, subtype="FLOAT"))
    assert heard.dtype == numpy.float32
    assert abs(len(heard) - 2 * RATE) <= 1
    assert numpy.abs(heard - expected[: len(heard)]).max() < 1e-6


def test_what_16_khz_cannot_hold_is_filtered_not_folded() -> None:
    times = numpy.arange(48_000) / 48_000
    whistle = 0.5 * numpy.sin(2 * numpy.pi * 11_000 * times)
    assert numpy.abs(decoded(sound_file(whistle, 48_000))[800:-800]).max() < 1e-3


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")],
)
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_formats_of_libsndfile_are_read(format: str, subtype: str, rate: int) -> None:
    heard = decoded(sound_file(tone(2, rate), rate, format, subtype))
    assert abs(len(heard) - 2 * RATE) < 0.1 * RATE
    assert similar(heard, tone(2)) > 0.9


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [
        ("ipod", "aac", 44_100),
        ("adts", "aac", 16_000),
        ("mp4", "aac", 8_000),
        ("webm", "libopus", 48_000),
        ("matroska", "pcm_s16le", 24_000),
    ],
)
def test_formats_of_ffmpeg_are_read(format: str, codec: str, rate: int) -> None:
    heard = decoded(clip_file(0, sound=tone(2, rate), sound_rate=rate, format=format, sound_codec=codec))
    assert abs(len(heard) - 2 * RATE) < 0.2 * RATE
    assert similar(heard, tone(2)) > 0.9


def test_the_sound_of_a_video_is_taken() -> None:
    sound = tone(2)
    file = clip_file(8, sound=sound, format="matroska", sound_codec="pcm_s16le")
    assert numpy.abs(decoded(file) - sound).max() < 1e-4


@pytest.mark.parametrize(("format", "codec"), [("mov", "pcm_s16le"), ("avi", "pcm_s16le"), ("mov", "adpcm_ima_qt")])
def test_a_sound_whose_packets_hold_many_of_the_frames_that_its_header_counts_is_read(format: str, codec: str) -> None:
    file = in_container(tone(1)[:, None], "mono", format=format, codec=codec, rate=RATE)
    assert len(decoded(file)) == pytest.approx(RATE, rel=0.01)


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "6.1", "7.1"])
@pytest.mark.parametrize(("format", "codec"), [("adts", "aac"), ("matroska", "flac"), ("matroska", "pcm_f32le")])
def test_any_number_of_channels_is_heard(format: str, codec: str, layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    sound = numpy.repeat(tone(1, rate=48_000)[:, None], channels, axis=1)
    file = in_container(sound, layout, format=format, codec=codec)
    assert similar(decoded(file), tone(1)) > 0.9


def test_channels_may_change_within_a_file() -> None:
    file = b"".join(
        in_container(numpy.repeat(tone(1, rate=48_000)[:, None], channels, axis=1), layout, format="adts", codec="aac")
        for channels, layout in ((1, "mono"), (8, "7.1"), (2, "stereo"))
    )
    assert len(decoded(file)) == pytest.approx(3 * RATE, rel=0.1)


def test_the_rate_may_change_within_a_file() -> None:
    parts = [
        in_container(tone(1, rate=rate)[:, None], "mono", format="adts", codec="aac", rate=rate)
        for rate in (48_000, 16_000, 44_100)
    ]
    heard, pieces = decoded(b"".join(parts)), [decoded(part) for part in parts]
    assert len(heard) == pytest.approx(sum(map(len, pieces)), rel=0.01)
    assert numpy.corrcoef(heard[-RATE // 2 :], pieces[-1][-RATE // 2 :])[0, 1] > 0.95  # AAC makes up some noise


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_offsets_that_lead_before_the_beginning_are_damage() -> None:
    for seed in range(300):
        rng = numpy.random.default_rng(seed)
        data = bytearray(sound_file(tone(0.2), format="AIFF" if seed % 2 else "CAF"))
        place = rng.integers(4, 100)
        data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\0"])
        with contextlib.suppress(OmniError):
            decoded(bytes(data))


@pytest.mark.parametrize("samples", [1, 160, 200])
def test_a_moment_of_sound_is_sound(samples: int) -> None:
    assert len(decoded(sound_file(tone(1)[:samples]))) == samples


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_longer_sound_than_allowed_is_refused(format: str) -> None:
    info = refused(sound_file(tone(MAX_SECONDS + 0.5), format=format))
    assert (info.status, info.code, info.param) == (400, "audio_too_long", "media[0]")


def test_silence_at_the_highest_rate_in_many_channels_is_refused_before_it_takes_long() -> None:
    bomb = io.BytesIO()
    soundfile.write(bomb, numpy.zeros((655_350, 8), numpy.float32), 655_350, format="FLAC", subtype="PCM_16")
    assert len(bomb.getvalue()) < 20_000
    info = refused(bomb.getvalue())
    assert (info.status, info.code) == (400, "audio_too_long")


def test_no_more_is_decoded_at_a_time_for_a_header_that_claims_very_many_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames, **how: blocks.append(frames * file.channels) or read(file, frames, **how),
    )
    sound = numpy.repeat(tone(0.2)[:, None], 1000, axis=1)
    assert numpy.abs(decoded(sound_file(sound, subtype="PCM_16")) - tone(0.2)).max() < 1e-4
    assert max(blocks) <= BLOCK_SAMPLES


def test_very_many_packets_of_another_stream_are_refused() -> None:
    def file(packets: int) -> bytes:
        result = io.BytesIO()
        with av.open(result, "w", format="matroska") as container:
            sound, other = container.add_stream("pcm_s16le", rate=RATE, layout="mono"), container.add_stream("mjpeg")
            other.width, other.height, other.pix_fmt = 64, 48, "yuvj420p"
            container.start_encoding()
            for stream, count, data in ((sound, 10, bytes(320)), (other, packets, b"\0")):
                for time in range(count):
                    packet = av.Packet(data)
                    packet.stream, packet.pts, packet.dts = stream, time, time
                    packet.time_base = stream.time_base
                    container.mux(packet)
        return result.getvalue()

    assert len(decoded(file(1000))) == 1600
    info = refused(file(10_000))
    assert (info.status, info.code, info.param) == (400, "audio_too_long", "media[0]")


@pytest.mark.parametrize("size", [3_000_000_000, 0xFFFFFFF0, 0xFFFF0000, 100_000])
def test_a_wav_that_promises_more_than_there_is_is_refused_without_making_room_for_it(size: int) -> None:
    data = wav_claiming(size)
    tracemalloc.start()
    info = refused(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (info.status, info.code) == (400, "invalid_audio")
    assert peak < 2_000_000


def test_a_wav_written_to_a_pipe_is_read_to_its_end() -> None:
    assert len(decoded(wav_claiming(0xFFFFFFFF))) == RATE


def webm_sound(seconds: float) -> bytes:
    return clip_file(0, sound=tone(seconds, rate=48_000), sound_rate=48_000, format="webm", sound_codec="libopus")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a sound" * 50, id="text"),
        pytest.param(sound_file(tone(1))[:30], id="half a header"),
        pytest.param(sound_file(tone(0)), id="no samples"),
        pytest.param(sound_file(tone(2), format="FLAC")[:9000], id="truncated flac"),
        pytest.param(clip_file(0, sound=tone(2), format="mp4")[:4000], id="truncated m4a"),
        pytest.param(webm_sound(4)[:9000], id="truncated webm"),
        pytest.param(clip_file(4), id="video without sound"),
        pytest.param(sound_file(numpy.array([0.1, numpy.nan, 0.2]), subtype="FLOAT"), id="not a number"),
        pytest.param(sound_file(numpy.array([0.1, 1e30]), subtype="FLOAT"), id="overflow"),
        pytest.param(sound_file(tone(1), rate=8), id="absurd rate"),
        pytest.param(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", id="playlist"),
        pytest.param(b"ffconcat version 1.0\nfile /etc/hostname\n", id="concat script"),
    ],
)
def test_what_cannot_be_heard_is_refused(data: bytes) -> None:
    info = refused(data)
    assert (info.status, info.code, info.param) == (400, "invalid_audio", "media[0]")


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG", "mp4", "webm"])
def test_damage_anywhere_is_an_error_of_the_request(format: str, damaged: Callable[[bytes], list[bytes]]) -> None:
    if format.isupper():
        whole = sound_file(tone(0.3), format=format)
    else:
        codec, rate = ("aac", RATE) if format == "mp4" else ("libopus", 48_000)
        whole = clip_file(0, sound=tone(0.3, rate), sound_rate=rate, format=format, sound_codec=codec)
    for data in damaged(whole):
        try:
            decoded(data)
        except OmniError as error:
            assert error.info.status == 400  # noqa: PT017 (whether it is refused depends on the damage)
