"""Encodes speech in the format that the client has asked for, either piece by piece while the speech is generated, or
as one file.

Samples are rounded to 16 bits once, in `to_pcm16`, for every format. numpy and PyAV are imported on first use, because
a server without speech needs neither numpy nor PyAV in its main process. Encoding takes time, so it runs in threads.
"""

from __future__ import annotations

import asyncio
import fractions
import io
import struct
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from gateway.api.schema import AudioFormat
from gateway.api.speech_format import CHANNELS, SAMPLE_RATE

if TYPE_CHECKING:
    import numpy


_FULL_SCALE = 32_768
_SAMPLE_BYTES = 2


class SpeechEncoder(Protocol):
    """Encodes samples in one format. The output is the results of all `feed` calls in order, followed by the result of
    `finish`.
    """

    @property
    def held(self) -> int:
        """Number of samples that `feed` has received, but whose bytes have not been returned yet. Always 0 for an
        encoder with compression.
        """

    def feed(self, samples: numpy.ndarray) -> bytes:
        """Encode more `samples` (float32 [n], in [-1, 1]). Returns the bytes that can be sent now, if any."""

    def finish(self) -> bytes:
        """Returns the bytes that remain after the last samples. The encoder cannot be used afterwards."""


def stream_encoder(audio_format: AudioFormat, *, one_file: bool = False) -> SpeechEncoder:
    """An encoder that returns bytes as early as the format allows.

    There are three cases:

    - For ``wav`` without `one_file`, every piece is a whole file.
    - For ``pcm16``, the pieces are samples without a header.
    - In all other cases, all pieces together are one file. The header of this file is sent before the length is known,
      so the header does not contain the length.

    In the second and the third case, a client may join the base64 texts of all pieces and then decode the joined text.
    """
    if audio_format in _CODINGS:
        return _Joinable(_Compressed(_CODINGS[audio_format], Pipe()))
    if audio_format == "wav":
        return _Joinable(_RawPieces(_wav_header(None)), sample_bytes=_SAMPLE_BYTES) if one_file else _WavPieces()
    return _Joinable(_RawPieces(), sample_bytes=_SAMPLE_BYTES)


def file_encoder(audio_format: AudioFormat) -> SpeechEncoder:
    """An encoder whose output is one file. The file's header contains the length, if the format has a field for the
    length.
    """
    if audio_format == "wav":
        return _WavFile()
    if audio_format in _CODINGS:
        return _Compressed(_CODINGS[audio_format], _WaveFile())
    return _RawPieces()


class ThreadedEncoder:
    """An encoder that works in another thread, one piece at a time.

    Args:
        make: Creates the encoder.
        threads: Thread pool in which the encoder is created and used.
    """

    def __init__(self, make: Callable[[], SpeechEncoder], threads: Executor) -> None:
        self._make = make
        self._threads = threads
        self._encoder: SpeechEncoder | None = None

    async def feed(self, samples: numpy.ndarray) -> bytes:
        """Does the same as `SpeechEncoder.feed`. Await each call before you make the next call."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._made().feed(samples))

    @property
    def held(self) -> int:
        """The same as `SpeechEncoder.held`."""
        return self._encoder.held if self._encoder is not None else 0

    async def finish(self) -> bytes:
        """Does the same as `SpeechEncoder.finish`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._made().finish())

    def _made(self) -> SpeechEncoder:
        if self._encoder is None:
            self._encoder = self._make()
        return self._encoder


def prepare() -> None:
    """Import PyAV and numpy, so that the first spoken answer does not wait for their import."""
    import av  # noqa: F401
    import numpy  # noqa: F401


def to_pcm16(samples: numpy.ndarray) -> numpy.ndarray:
    """Converts `samples` (float32 [n], full scale ±1) to int16 [n]: multiplies them by 32768, rounds them to the
    nearest integer, and clips them. If two integers are equally near, the result is the even integer.

    Players do the inverse: they divide 16-bit samples by 32768. So the error of a sample is at most half a step. The
    only exception is a sample within half a step of +1: its error may be up to a whole step, because 16 bits cannot
    represent +1.
    """
    import numpy

    scaled = numpy.rint(samples * numpy.float32(_FULL_SCALE))
    return numpy.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")


def wav(pcm: bytes, rate: int = SAMPLE_RATE) -> bytes:
    """A WAV file with the samples `pcm` (16 bits, little-endian). `rate` is the number of samples per second."""
    return _wav_header(len(pcm), rate) + pcm


def _wav_header(size: int | None, rate: int = SAMPLE_RATE) -> bytes:
    """The header of a WAV file. `size` is the number of bytes of the samples; None if it is not known yet.

    If the size is not known, the header contains the same sizes that FFmpeg writes when its output is a pipe. Programs
    that read WAV files recognize these values and read to the end of the data.
    """
    unknown = 2**32 - 1
    width = _SAMPLE_BYTES * CHANNELS
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", unknown if size is None else 36 + size, b"WAVE",
        b"fmt ", 16, 1, CHANNELS, rate, rate * width, width, 8 * _SAMPLE_BYTES,
        b"data", unknown if size is None else size,
    )  # fmt: skip


class _Joinable:
    """Regroups the bytes of another encoder, so that the base64 of all pieces can be joined and then decoded.

    The base64 of a piece has no padding if the number of bytes is a multiple of three. So up to two bytes are held back
    for the next piece. `sample_bytes` is the size of a sample. If it is given, more bytes are held back, so that no
    sample is divided between two pieces.
    """

    def __init__(self, encoder: SpeechEncoder, *, sample_bytes: int | None = None) -> None:
        self._encoder = encoder
        self._sample_bytes = sample_bytes
        self._unit = 3 * (sample_bytes or 1)
        self._rest = b""
        self._samples = 0

    @property
    def held(self) -> int:
        if self._sample_bytes is None:
            return 0
        return min(len(self._rest) // self._sample_bytes, self._samples)  # the rest may contain the end of a header

    def feed(self, samples: numpy.ndarray) -> bytes:
        self._samples += len(samples)
        data = self._rest + self._encoder.feed(samples)
        end = len(data) - len(data) % self._unit
        self._rest = data[end:]
        return data[:end]

    def finish(self) -> bytes:
        data, self._rest = self._rest + self._encoder.finish(), b""
        return data


class _RawPieces:
    """Encodes each sample as a number of 16 bits, without compression. The output begins with `header`, which is sent
    with the first samples. If there are no samples, the header is sent at the end.
    """

    held = 0

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def feed(self, samples: numpy.ndarray) -> bytes:
        return self._take_header() + to_pcm16(samples).tobytes() if len(samples) else b""

    def finish(self) -> bytes:
        return self._take_header()

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header


class _WavPieces:
    """Encodes each piece as a WAV file. The result of `finish` is a WAV file without samples, because clients read this
    last piece as a file too.
    """

    held = 0

    def feed(self, samples: numpy.ndarray) -> bytes:
        return wav(to_pcm16(samples).tobytes()) if len(samples) else b""

    def finish(self) -> bytes:
        return wav(b"")


class _WavFile:
    held = 0

    def __init__(self) -> None:
        self._pcm = bytearray()

    def feed(self, samples: numpy.ndarray) -> bytes:
        self._pcm += to_pcm16(samples).tobytes()
        return b""

    def finish(self) -> bytes:
        return wav(bytes(self._pcm))


class _Coding(Struct, frozen=True):
    """FFmpeg's settings for writing a format.

    Attributes:
        container, codec: FFmpeg's names for the muxer and the encoder.
        bit_rate: Bits per second; None for a lossless codec.
        muxing: Options that make the muxer write each packet at once.
        coding: Options of the encoder.
    """

    container: str
    codec: str
    bit_rate: int | None = None
    muxing: dict[str, str] = {}
    coding: dict[str, str] = {}


_CODINGS: dict[str, _Coding] = {
    # Frames of 48 ms, so that the first piece of speech can be played soon. The header has no space for tags.
    "flac": _Coding("flac", "flac", muxing={"metadata_header_padding": "0"}, coding={"frame_size": "1152"}),
    "mp3": _Coding("mp3", "libmp3lame", 64_000, muxing={"id3v2_version": "0"}),
    # Opus encodes 24 kHz without resampling; players decode every Opus file to 48 kHz. Each packet of 20 ms is a
    # separate page of the Ogg file.
    "opus": _Coding("ogg", "libopus", 48_000, muxing={"page_duration": "20000"}),
    "aac": _Coding("adts", "aac", 64_000),
}


class Pipe:
    """The output file of a muxer that cannot seek back. `take` returns the bytes written since the last call."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken

    take_rest = take


class _WaveFile(io.BytesIO):
    """The output file of a muxer that may seek back to complete the header. So all bytes are returned at the end."""

    def take(self) -> bytes:
        return b""

    def take_rest(self) -> bytes:
        return self.getvalue()


class _Compressed:
    """One continuous compressed stream. Without any samples, the stream is empty in all formats except FLAC."""

    held = 0

    def __init__(self, coding: _Coding, sink: Pipe | _WaveFile) -> None:
        import av

        self._sink = sink
        # An MP3 file has its index at the start, so only a muxer that can seek back can write the index.
        index = {} if isinstance(sink, _WaveFile) or coding.container != "mp3" else {"write_xing": "0"}
        self._container: Any = av.open(
            sink, "w", format=coding.container, options={"flush_packets": "1", **coding.muxing, **index}
        )
        self._stream = self._container.add_stream(
            coding.codec, rate=SAMPLE_RATE, layout="mono", options=dict(coding.coding)
        )
        if coding.bit_rate is not None:
            self._stream.bit_rate = coding.bit_rate
        self._samples = 0

    def feed(self, samples: numpy.ndarray) -> bytes:
        import av

        if not len(samples):
            return b""
        frame = av.AudioFrame.from_ndarray(to_pcm16(samples)[None, :], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.time_base = fractions.Fraction(1, SAMPLE_RATE)
        frame.pts = self._samples
        self._samples += len(samples)
        self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take_rest()
