"""Converts between the formats of realtime clients and samples: the client's sound becomes samples for the model, and
the samples of an answer become sound in the client's format.

numpy is imported on first use: a server without realtime sessions does not need it in its main process.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, cast, get_args

from gateway.answers.audio_formats import to_pcm16
from gateway.api.speech_format import SAMPLE_RATE
from gateway.realtime.sounds.resampling import Resampler

if TYPE_CHECKING:
    import numpy

SoundFormat = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
"""pcm16 at 24 kHz (little-endian, mono), G.711 µ-law at 8 kHz, and G.711 A-law at 8 kHz."""

SOUND_FORMATS: tuple[SoundFormat, ...] = get_args(SoundFormat)
RATES: dict[SoundFormat, int] = {"audio/pcm": SAMPLE_RATE, "audio/pcmu": 8_000, "audio/pcma": 8_000}  # Hz
SAMPLE_BYTES: dict[SoundFormat, int] = {"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1}

HEARD_RATE = 16_000  # Hz, the sampling rate of the sound for the model and for the voice detection
_FULL_SCALE = 32_768


class InputSound:
    """Turns the bytes of one input stream, in chunks of any length, into samples at `HEARD_RATE`.

    All samples are multiples of 1/32768. So `to_pcm16(samples)` converts a committed sound without loss. The stored
    16-bit sound is exactly the sound that the voice detection got.

    The samples do not depend on how the bytes are divided into chunks. The samples lag behind the bytes by
    `resampling.DELAY_MS`. At the end, `finish` returns the missing samples.

    Args:
        sound_format: The format of the bytes.
    """

    def __init__(self, sound_format: SoundFormat) -> None:
        self._format = sound_format
        self._rest = b""  # the first byte of a sample whose second byte has not arrived
        self._resampler = Resampler(RATES[sound_format], HEARD_RATE)

    def feed(self, data: bytes) -> numpy.ndarray:
        """Convert more bytes. Returns the samples that are complete now: float32 [n] in [-1, 1), possibly empty."""
        data = self._rest + data
        whole = len(data) - len(data) % SAMPLE_BYTES[self._format]
        self._rest = data[whole:]
        return _scaled(self._resampler.feed(decode(data[:whole], self._format)))

    def finish(self) -> numpy.ndarray:
        """End the stream and begin a new stream. Returns the samples that `feed` has not returned yet: float32 [n].
        Half a sample at the end is dropped.
        """
        self._rest = b""
        return _scaled(self._resampler.finish())


class OutputSound:
    """Encodes one spoken answer piece by piece. The results of all `feed` calls, followed by the result of `finish`,
    are the encoded answer.

    Args:
        sound_format: The format of the output.
    """

    def __init__(self, sound_format: SoundFormat) -> None:
        self._format = sound_format
        rate = RATES[sound_format]
        self._resampler = Resampler(SAMPLE_RATE, rate) if rate != SAMPLE_RATE else None

    def feed(self, samples: numpy.ndarray) -> bytes:
        """Encode more samples (float32 [n] at 24 kHz, in [-1, 1]). Returns the bytes that can be sent now, if any."""
        pcm = to_pcm16(samples)
        return encode(pcm if self._resampler is None else self._resampler.feed(pcm), self._format)

    def finish(self) -> bytes:
        """Returns the bytes that remain after the last samples, and begins a new answer."""
        return b"" if self._resampler is None else encode(self._resampler.finish(), self._format)


def _scaled(pcm: numpy.ndarray) -> numpy.ndarray:
    """`pcm` (int16 [n]) as float32 [n] with full scale 1."""
    import numpy

    return pcm.astype(numpy.float32) / numpy.float32(_FULL_SCALE)


def decode(data: bytes, sound_format: SoundFormat) -> numpy.ndarray:
    """The samples in `data`: int16 [n] at the rate of the format. `data` must end with a complete sample."""
    import numpy

    if sound_format == "audio/pcm":
        return numpy.frombuffer(data, "<i2")
    return _decoding_table(sound_format)[numpy.frombuffer(data, numpy.uint8)]


def encode(pcm: numpy.ndarray, sound_format: SoundFormat) -> bytes:
    """`pcm` (int16 [n] at the rate of the format) as bytes of the format."""
    if sound_format == "audio/pcm":
        return pcm.astype("<i2").tobytes()
    return cast("bytes", _encoding_table(sound_format)[pcm.view("u2")].tobytes())


# --- G.711 ---
#
# Both laws write a sample as a sign, a segment of three bits, and a step of four bits within the segment. Each segment
# is twice as wide as the segment before it. The only exception: segments 0 and 1 of A-law are equally wide.

# Number that is added to magnitudes of 14-bit samples, so that the rule for segments also applies to segment 0.
_MU_BIAS = 33
# Largest magnitude that µ-law can write, on the scale of 14 bits.
_MU_CLIP = 8_158


@cache
def _decoding_table(law: SoundFormat) -> numpy.ndarray:
    """int16 [256]: the sample for each code."""
    import numpy

    codes = numpy.arange(256)
    if law == "audio/pcmu":
        plain = ~codes & 0xFF  # µ-law transmits all bits inverted
        segment, step = plain >> 4 & 7, plain & 15
        magnitude = ((2 * step + _MU_BIAS << segment) - _MU_BIAS) << 2
        negative = plain >= 128
    else:
        plain = codes ^ 0x55  # A-law transmits every second bit inverted
        segment, step = plain >> 4 & 7, plain & 15
        magnitude = (2 * step + 1 + 32 * (segment > 0) << numpy.maximum(segment - 1, 0)) << 3
        negative = plain < 128
    return numpy.where(negative, -magnitude, magnitude).astype(numpy.int16)


@cache
def _encoding_table(law: SoundFormat) -> numpy.ndarray:
    """uint8 [65536]: the code for each sample, indexed by its 16 bits as an unsigned number."""
    import numpy

    samples = numpy.arange(1 << 16).astype(numpy.uint16).view(numpy.int16).astype(numpy.int32)
    if law == "audio/pcmu":
        # Samples of 14 bits. The shift rounds down, so the magnitude of a negative sample is computed after the shift.
        reduced = samples >> 2
        magnitude = numpy.minimum(numpy.abs(reduced), _MU_CLIP) + _MU_BIAS
        segment = _bit_length(magnitude) - 6
        code = segment << 4 | magnitude >> segment + 1 & 15
        return (~(code | 128 * (reduced < 0)) & 0xFF).astype(numpy.uint8)
    # Samples of 13 bits. For a negative sample, the magnitude is the value of the inverted bits, because A-law has no
    # code for zero.
    reduced = samples >> 3
    magnitude = numpy.where(reduced < 0, ~reduced, reduced)
    segment = numpy.maximum(_bit_length(magnitude) - 5, 0)
    code = segment << 4 | magnitude >> numpy.maximum(segment, 1) & 15
    return ((code | 128 * (reduced >= 0)) ^ 0x55).astype(numpy.uint8)


def _bit_length(values: numpy.ndarray) -> numpy.ndarray:
    """The number of bits of each value (int32 [n], not negative)."""
    import numpy

    return numpy.frexp(values.astype(numpy.float64))[1]
