"""Decodes sounds of any common format to a mono waveform at the model's sampling rate."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

import av
import numpy
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer

from omni_pipeline.errors import bad_request
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import PACKET_WORK
from stages.preprocessing.container import Extent, open_container, truncated
from stages.preprocessing.waveform import Waveform

# Samples that libsndfile decodes at a time, and of one channel. A header may claim a thousand channels.
BLOCK_SAMPLES = 524_288
BLOCK_FRAMES = 65_536

# First bytes of the files that libsndfile reads: WAV and its 64-bit variants, AIFF, AU, FLAC, Ogg, CAF, MP3. The
# library knows two dozen more formats, which nobody sends in good faith.
_FOR_LIBSNDFILE = re.compile(rb"RIFF|RIFX|RF64|riff|FORM|\.snd|fLaC|OggS|caff|ID3|\xff[\xe0-\xff]")

# Writers that do not know the end of a data chunk yet, for instance because they stream, write one of these sizes.
_UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFFFFF, 0)


def decode_audio(data: Buffer, *, rate: int, max_seconds: float, param: str) -> numpy.ndarray:
    """The whole sound as float32 [samples] at `rate`, with channels averaged and band-limited resampling.

    libsndfile reads the formats in `_FOR_LIBSNDFILE`; FFmpeg reads the others, such as m4a and webm, and the sound of a
    video. Memory grows with the sound that is really present, not with a header's claims.

    Raises:
        OmniError: 400 ``invalid_audio`` or ``audio_too_long``.
    """
    if not memoryview(data).nbytes:
        raise bad_request("The audio is empty.", param=param, code="invalid_audio")
    try:
        source = soundfile.SoundFile(_File(data)) if _FOR_LIBSNDFILE.match(data) else None
    except soundfile.LibsndfileError:
        source = None
    if source is None:
        return decode_sound_track(data, rate=rate, max_seconds=max_seconds, param=param, code="invalid_audio")
    with source:
        _check_wav_size(data, param)
        return _read_soundfile(source, rate, max_seconds, param)


def decode_sound_track(data: Buffer, *, rate: int, max_seconds: float, param: str, code: str) -> numpy.ndarray:
    """The first sound track of a container, as `decode_audio` gives it.

    Raises:
        OmniError: 400 with `code` for a damaged container or a container without sound; or ``audio_too_long``.
    """
    with open_container(data, param=param, code=code) as container:
        stream = _sound(container, param, code)
        source_rate = stream.rate or 0  # PyAV changes `stream.rate` as it decodes frames
        wave = Waveform(source_rate, rate, max_seconds=max_seconds, param=param)
        samples = _Samples()
        packets = 0
        extent = Extent(container)
        for packet in container.demux():
            found = extent.saw(packet)
            wave.budget.charge(PACKET_WORK)
            if packet.stream is not stream:
                continue
            packets += found
            for frame in stream.decode(packet):
                if frame.sample_rate != source_rate:
                    raise bad_request("The sampling rate changes within the sound.", param=param, code=code)
                for block in samples.of(frame):
                    wave.add(block)
        if truncated(stream.frames, packets):
            raise _cut_short(param, code)
        extent.check(param, code)
        return wave.samples()


class _File(io.BytesIO):
    """A file in memory for libsndfile; the offsets in a damaged file may lead anywhere."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Ignore a position before the beginning. An exception would be printed and would not reach the caller."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _Samples:
    """Yields the samples of decoded frames in any sample format; the format may change within a file."""

    def __init__(self) -> None:
        self._form: tuple[str, str] | None = None
        self._interleaved = av.AudioResampler(format="flt")

    def of(self, frame: av.AudioFrame) -> Iterator[numpy.ndarray]:
        """Blocks of float32 [frames, channels]."""
        form = (frame.format.name, frame.layout.name)
        if form != self._form:
            self._form = form
            self._interleaved = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        for part in self._interleaved.resample(frame):
            # One plane holds all channels: with one plane per channel, PyAV 18 reads a ninth plane out of eight.
            yield part.to_ndarray().reshape(-1, part.layout.nb_channels)


def _sound(container: InputContainer, param: str, code: str) -> AudioStream:
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            return stream
    raise bad_request("The file has no sound, or its sound has an unknown codec.", param=param, code=code)


def _read_soundfile(source: soundfile.SoundFile, rate: int, max_seconds: float, param: str) -> numpy.ndarray:
    wave = Waveform(source.samplerate, rate, max_seconds=max_seconds, param=param)
    frames = 0
    at_once = min(BLOCK_FRAMES, max(BLOCK_SAMPLES // source.channels, 1))
    try:
        while len(block := source.read(at_once, dtype="float32", always_2d=True)):
            wave.add(block)
            frames += len(block)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise bad_request(f"The audio is damaged: {reason}.", param=param, code="invalid_audio") from error
    # The length of an mp3 or ogg is an estimate; the other formats have it in the header.
    if source.format not in ("MP3", "OGG") and truncated(source.frames, frames):
        raise _cut_short(param, "invalid_audio")
    return wave.samples()


def _check_wav_size(data: Buffer, param: str) -> None:
    """Refuse a wav whose data chunk claims clearly more than is present: libsndfile would silently read the rest."""
    view = memoryview(data).cast("B")
    if view[:4] != b"RIFF" or view[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= view.nbytes:
        name, size = struct.unpack_from("<4sI", view, at)
        at += 8
        if name == b"data":
            if size not in _UNKNOWN_SIZES and truncated(size, view.nbytes - at):
                raise _cut_short(param, "invalid_audio")
            return
        at += size + size % 2


def _cut_short(param: str, code: str) -> Exception:
    kind = code.removeprefix("invalid_")
    return bad_request(f"The {kind} is cut short: its header promises more than there is.", param=param, code=code)
