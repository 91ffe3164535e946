"""A sound is decoded to its end, whatever size its header states. All pieces of a joined file are decoded."""

import io

import av
import numpy
import pytest
import soundfile
from fuzzing.odd_files import EMPTY_TRACKS, RATE, TAGS, clip, piped, sound_file, unsized_sounds, wav_of_size
from heard_sounds import MAX_SECONDS, decoded, refused
from media_files import clip_file, tone

from gateway.answers.audio_formats import stream_encoder
from gateway.api.schema import AudioFormat
from stages.preprocessing import decode_audio as decoder
from stages.preprocessing import mpeg_pieces
from stages.preprocessing.decode_audio import decode_sound_track
from stages.preprocessing.headers import sound_length
from stages.preprocessing.sound_pieces import find_pieces
from stages.preprocessing.waveform import sound_budget
from tests.reference import sound as reference_sound

SOUNDS = [tone(0.5, seed=seed) for seed in range(3)]
STEP = 1 / 16_000  # the tolerance: more than one step of 16 bits, which is 1 / 32768

# Data between pieces: silence, text, and data that begins like frames of an MP3.
BETWEEN = {
    "nothing": b"",
    "zeros": bytes(3000),
    "text": b"junk" * 5000,
    "half frames": b"\xff\xfb\x90\x64" * 500,
} | TAGS


def difference(heard: numpy.ndarray, expected: numpy.ndarray) -> float:
    assert heard.shape == expected.shape
    return float(numpy.abs(heard - expected).max())


UNSIZED = unsized_sounds(SOUNDS[0])


@pytest.mark.parametrize("name", UNSIZED)
def test_a_sound_whose_writer_did_not_know_its_size_is_heard_to_its_end(name: str) -> None:
    data = UNSIZED[name]
    assert difference(decoded(data), SOUNDS[0]) < STEP
    length = sound_length(data, MAX_SECONDS)
    assert 0 <= length.least_seconds <= length.seconds == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("name", UNSIZED)
def test_a_sound_of_unknown_size_that_was_cut_off_is_heard_as_far_as_it_goes(name: str) -> None:
    data = UNSIZED[name][:-3000]
    heard = decoded(data)
    assert 0.5 * len(SOUNDS[0]) < len(heard) < len(SOUNDS[0])
    assert difference(heard, SOUNDS[0][: len(heard)]) < STEP


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_the_speech_that_this_server_streams_is_heard(format: AudioFormat) -> None:
    encoder = stream_encoder(format)
    pieces = [encoder.feed(sound) for sound in SOUNDS] + [encoder.finish()]
    whole = io.BytesIO()
    soundfile.write(whole, numpy.concatenate(SOUNDS), 24_000, format="WAV", subtype="PCM_16")
    assert difference(decoded(b"".join(pieces)), decoded(whole.getvalue())) < STEP


@pytest.mark.parametrize("format", ["WAV", "W64", "RF64", "AU", "AIFF", "CAF", "FLAC"])
def test_a_file_that_is_shorter_than_its_header_promises_is_refused(format: str) -> None:
    data = sound_file(SOUNDS[0], format)
    for length in (len(data) // 2, len(data) * 8 // 10):
        info = refused(data[:length])
        assert (info.status, info.code, info.param) == (400, "invalid_audio", "media[0]")
        assert "cut short" in info.message
    assert difference(decoded(data), SOUNDS[0]) < STEP


@pytest.mark.parametrize("format", ["WAV", "AIFF"])
def test_an_empty_file_with_further_chunks_holds_no_sound(format: str) -> None:
    chunk = b"LIST\0\0\0\4ABCD" if format == "AIFF" else b"LIST\4\0\0\0ABCD"
    info = refused(sound_file(SOUNDS[0][:0], format) + chunk)
    assert (info.status, info.code) == (400, "invalid_audio")
    assert "no sound" in info.message


def test_ffmpeg_reads_what_libsndfile_cannot_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: soundfile.SoundFile, wave: decoder.Waveform) -> None:
        wave.begin(source.samplerate)
        wave.add(source.read(1000, dtype="float32", always_2d=True))
        raise soundfile.LibsndfileError(29)

    monkeypatch.setattr(decoder, "_read_soundfile", fail)
    data = sound_file(SOUNDS[0], "FLAC")
    assert difference(decoded(data), SOUNDS[0]) < STEP
    assert "cut short" in refused(data[: len(data) // 2]).message
    assert refused(sound_file(tone(MAX_SECONDS + 0.5), "FLAC")).code == "audio_too_long"


@pytest.mark.parametrize("format", ["WAV", "W64", "RF64", "AU", "AIFF", "CAF", "FLAC", "OGG", "MP3"])
def test_all_pieces_of_a_joined_file_are_heard(format: str) -> None:
    pieces = [sound_file(sound, format) for sound in SOUNDS]
    expected = numpy.concatenate([decoded(piece) for piece in pieces])
    data = b"".join(pieces)
    assert difference(decoded(data), expected) < 1e-6
    assert sound_length(data, MAX_SECONDS).seconds == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("between", BETWEEN)
def test_tags_and_junk_between_the_pieces_of_an_mp3_are_left_out(between: str) -> None:
    pieces = [sound_file(sound, "MP3") for sound in SOUNDS]
    expected = numpy.concatenate([decoded(piece) for piece in pieces])
    assert difference(decoded(BETWEEN[between].join(pieces)), expected) < 1e-6
    headerless = [piped(sound, "mp3", "libmp3lame", write_xing="0", id3v2_version="0") for sound in SOUNDS]
    assert difference(decoded(BETWEEN[between].join(headerless)), decoded(b"".join(headerless))) < 1e-6
    assert len(decoded(b"".join(headerless))) > 1.5 * RATE


def test_an_mp3_goes_on_after_the_frames_that_its_header_counts() -> None:
    first = sound_file(SOUNDS[0], "MP3")
    rest = piped(SOUNDS[1], "mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    assert difference(decoded(first + rest), numpy.concatenate([decoded(first), decoded(rest)])) < 1e-6


def test_an_mp3_whose_header_miscounts_by_some_frames_is_one_piece() -> None:
    data = bytearray(sound_file(SOUNDS[0], "MP3"))
    place = data.index(b"Xing") + 8
    count = int.from_bytes(data[place : place + 4], "big")
    data[place : place + 4] = (count - 3).to_bytes(4, "big")
    assert len(find_pieces(bytes(data), sound_budget(MAX_SECONDS, ""), "")) == 1


def test_an_mp3_whose_frames_are_overwritten_is_refused() -> None:
    data = sound_file(numpy.concatenate(SOUNDS), "MP3")
    third = len(data) // 3
    info = refused(data[:third] + bytes(third) + data[2 * third :])
    assert (info.status, info.code, info.param) == (400, "invalid_audio", "media[0]")
    assert "fewer frames" in info.message


@pytest.mark.parametrize("format", ["MP3", "OGG", "WAV"])
def test_the_rate_and_the_channels_may_change_between_pieces(format: str) -> None:
    pieces = []
    for rate, channels in ((16_000, 1), (44_100, 1), (16_000, 2)):
        file = io.BytesIO()
        soundfile.write(file, tone(0.5, rate, channels=channels), rate, format=format)
        pieces.append(file.getvalue())
    expected = numpy.concatenate([decoded(piece) for piece in pieces])
    assert difference(decoded(b"".join(pieces)), expected) < 1e-6


def test_chained_opus_is_heard() -> None:
    pieces = []
    for sound in SOUNDS:
        file = io.BytesIO()
        soundfile.write(file, sound, RATE, format="OGG", subtype="OPUS")
        pieces.append(file.getvalue())
    expected = numpy.concatenate([decoded(piece) for piece in pieces])
    assert difference(decoded(b"".join(pieces)), expected) < 1e-6


@pytest.mark.parametrize(("format", "codec"), [("matroska", "pcm_s16le"), ("webm", "libopus"), ("mpegts", "mp2")])
def test_joined_containers_that_ffmpeg_reads_to_their_end_are_heard(format: str, codec: str) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    data = clip_file(0, sound=tone(0.5, rate), sound_rate=rate, format=format, sound_codec=codec)
    assert len(decoded(data + data)) == pytest.approx(2 * len(decoded(data)), rel=0.02)


@pytest.mark.parametrize(("format", "codec"), [("ipod", "aac"), ("mov", "pcm_s16le"), ("flv", "aac")])
def test_joined_containers_of_which_only_the_first_would_be_heard_are_refused(format: str, codec: str) -> None:
    rate = 44_100 if format == "flv" else RATE
    data = clip_file(0, sound=tone(0.5, rate), sound_rate=rate, format=format, sound_codec=codec)
    assert len(decoded(data)) > 0.5 * RATE - 1
    info = refused(data + data)
    assert (info.status, info.code, info.param) == (400, "invalid_audio", "media[0]")
    assert "several files" in info.message


def test_very_many_pieces_are_refused_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(decoder, "open_sound", lambda piece: opened.append(piece))
    info = refused(sound_file(SOUNDS[0][:10], "WAV") * 1000)
    assert (info.status, info.code, info.param) == (400, "audio_too_long", "media[0]")
    assert not opened


def test_what_looks_like_many_frames_is_looked_at_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    read = mpeg_pieces._read_frame
    monkeypatch.setattr(mpeg_pieces, "_read_frame", lambda file, at: looks.append(at) or read(file, at))
    first = sound_file(SOUNDS[0], "MP3")
    info = refused(first + b"\xff\xfb\x90\x64" * 200_000)
    assert (info.status, info.code) == (400, "audio_too_long")
    assert len(looks) < 100_000


@pytest.mark.parametrize("name", EMPTY_TRACKS)
def test_an_empty_sound_track_is_no_error(name: str) -> None:
    data = clip(**EMPTY_TRACKS[name])
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.audio) == 1
    found = decode_sound_track(data, rate=RATE, max_seconds=MAX_SECONDS, param="media[0]", code="invalid_video")
    assert found is None


@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("mp4", "aac"), ("mov", "pcm_s16le")])
@pytest.mark.parametrize("begins", [0, 0.7, -0.2])
def test_a_sound_track_is_heard_from_its_first_sample(
    container: str, codec: str, begins: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The reference's loaders do not fill the time before the first sample with silence."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(clip(container, sound_codec=codec, sounds=SOUNDS, begins=begins))
    heard = decode_sound_track(
        path.read_bytes(), rate=RATE, max_seconds=MAX_SECONDS, param="media[0]", code="invalid_video"
    )
    assert heard is not None
    assert difference(heard, reference_sound(path)) < 1e-6


@pytest.mark.parametrize("size", [0x7FFE_0000, 0x8001_0000, 0xFFFE_0000, 0xFFFF_FFF0, 3_000_000_000, 1_000_000])
def test_a_size_that_no_writer_uses_for_unknown_is_a_promise(size: int) -> None:
    assert "cut short" in refused(wav_of_size(SOUNDS[0], size)).message
