"""Decodes sounds of any common format to a mono waveform at the model's sampling rate."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer

from omni_pipeline.errors import OmniError, bad_request
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import PACKET_WORK
from stages.preprocessing.container import PROMISE_KEPT, Extent, open_container, truncated
from stages.preprocessing.sound_files import open_sound
from stages.preprocessing.sound_pieces import find_pieces
from stages.preprocessing.waveform import Waveform

CODE = "invalid_audio"

# Maximum numbers of samples that libsndfile decodes at a time. The first limit is for all channels together; it is
# needed because a header may claim a thousand channels. The second limit is for one channel.
BLOCK_SAMPLES = 524_288
BLOCK_FRAMES = 65_536


def decode_audio(data: Buffer, *, rate: int, max_seconds: float, param: str) -> numpy.ndarray:
    """The whole sound as float32 [samples] at `rate`. Channels are averaged, and the resampling is band-limited.

    libsndfile reads the usual formats. FFmpeg reads the other formats, such as m4a and webm, and files that libsndfile
    cannot read completely. All pieces of a joined file are read. The memory that is used depends on the sound in the
    file, not on the length that its header claims.

    Raises:
        OmniError: 400 ``invalid_audio`` or ``audio_too_long``.
    """
    if not memoryview(data).nbytes:
        raise bad_request("The audio is empty.", param=param, code=CODE)
    wave = Waveform(rate, max_seconds=max_seconds, param=param)
    for piece in find_pieces(data, wave.budget, param):
        _read_piece(piece, wave, param)
    return wave.samples()


def decode_sound_track(data: Buffer, *, rate: int, max_seconds: float, param: str, code: str) -> numpy.ndarray | None:
    """The first sound track of a container, in the form that `decode_audio` returns. The result begins with the first
    sample of the track. None if the track is empty.

    Raises:
        OmniError: 400. The error's code is `code` if the container is damaged or has no sound, and ``audio_too_long``
            if the sound is too long.
    """
    wave = Waveform(rate, max_seconds=max_seconds, param=param)
    _read_track(data, wave, param, code)
    return wave.samples() if wave.seconds else None


def _read_piece(piece: Buffer, wave: Waveform, param: str) -> None:
    sound = open_sound(piece)
    if sound.cut_short:
        raise _cut_short(param, CODE)
    if sound.source is None:
        _read_track(piece, wave, param, CODE)
        return
    with sound.source as source:
        before = wave.seconds
        try:
            _read_soundfile(source, wave)
        except soundfile.LibsndfileError as error:
            wave.begin_again()
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
            _read_track_instead(piece, wave, param, reason)
        if wave.seconds - before < PROMISE_KEPT * sound.promised_seconds:
            raise _cut_short(param, CODE)


def _read_soundfile(source: soundfile.SoundFile, wave: Waveform) -> None:
    wave.begin(source.samplerate)
    at_once = min(BLOCK_FRAMES, max(BLOCK_SAMPLES // source.channels, 1))
    while len(block := source.read(at_once, dtype="float32", always_2d=True)):
        wave.add(block)


def _read_track_instead(piece: Buffer, wave: Waveform, param: str, reason: str) -> None:
    """Read a piece with FFmpeg, because libsndfile could not read it. `reason` is the reason why libsndfile failed."""
    try:
        _read_track(piece, wave, param, CODE)
    except OmniError as error:
        if error.info.code != CODE:
            raise
        raise bad_request(f"The audio is damaged: {reason}.", param=param, code=CODE) from error


def _read_track(data: Buffer, wave: Waveform, param: str, code: str) -> None:
    """Add the first sound track of a container to `wave`. If the file ends in the middle of a packet, this packet is
    left out.
    """
    with open_container(data, param=param, code=code) as container:
        stream = _sound(container, param, code)
        rate = 0
        samples = _Samples()
        packets = duration = 0
        extent = Extent(container)
        damage: av.error.FFmpegError | None = None
        for packet in container.demux():
            found = extent.saw(packet)
            wave.budget.charge(PACKET_WORK)
            if packet.stream is not stream:
                continue
            if damage is not None and found:
                raise damage
            packets += found
            duration += packet.duration or 0
            try:
                frames = stream.decode(packet)
            except av.error.InvalidDataError as error:
                damage = error
                continue
            for frame in frames:
                if frame.sample_rate != rate:
                    rate = frame.sample_rate
                    wave.begin(rate)
                for block in samples.of(frame):
                    wave.add(block)
        # For PCM, the header's number of frames is a number of samples, and a packet contains many samples. So too few
        # packets alone do not show that the file is truncated: the duration, if it is known, must also be too short.
        if truncated(stream.frames, packets) and (stream.duration is None or truncated(stream.duration, duration)):
            raise _cut_short(param, code)
        extent.check(param, code)


class _Samples:
    """Yields the samples of decoded frames in any sample format; the format may change within a file."""

    def __init__(self) -> None:
        self._form: tuple[str, str, int] | None = None
        self._interleaved = av.AudioResampler(format="flt")

    def of(self, frame: av.AudioFrame) -> Iterator[numpy.ndarray]:
        """Yields blocks of float32 [frames, channels]."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:
            self._form = form
            self._interleaved = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        for part in self._interleaved.resample(frame):
            # The resampler is configured to put all channels into one plane. With one plane per channel and more than
            # eight channels, PyAV 18 would read a ninth plane, but only eight planes exist.
            yield part.to_ndarray().reshape(-1, part.layout.nb_channels)


def _sound(container: InputContainer, param: str, code: str) -> AudioStream:
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            return stream
    raise bad_request("The file has no sound, or its sound has an unknown codec.", param=param, code=code)


def _cut_short(param: str, code: str) -> Exception:
    kind = code.removeprefix("invalid_")
    return bad_request(f"The {kind} is cut short: it has less data than its header states.", param=param, code=code)
