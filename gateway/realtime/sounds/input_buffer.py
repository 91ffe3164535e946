"""Keeps a client's sound until the sound becomes part of an item, and makes the sounds of items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.answers.audio_formats import to_pcm16, wav
from gateway.realtime.items.conversation import SoundContent
from gateway.realtime.sounds.sound_formats import HEARD_RATE, InputSound, SoundFormat
from omni_pipeline.wire.tensor import Tensor
from stages.messages import Media

if TYPE_CHECKING:
    import numpy

_SAMPLE_BYTES = 2
_BYTES_PER_MS = HEARD_RATE // 1000 * _SAMPLE_BYTES

# The mel features of a sound must not depend on other sounds of the same prompt, so that a later prompt finds the sound
# in the caches. The features of one request are padded to the length of its longest sound. Despite this padding, the
# features of a sound do not depend on the other sounds if the sound meets three conditions. It ends with enough zeros.
# It is at least one second long. Its length is a whole number of feature frames.
_ZEROS = 208  # more than half of the window of a feature frame
_LEAST = HEARD_RATE
_FRAME = 160


class InputBuffer:
    """The sound of one session that is not yet in an item.

    Times are milliseconds of sound since the session began.

    Args:
        sound_format: The format in which the client sends.
    """

    def __init__(self, sound_format: SoundFormat) -> None:
        self._sound = InputSound(sound_format)
        self._pcm = bytearray()  # 16 bits at `HEARD_RATE`
        self._begin = 0  # number of samples of the session before `_pcm`

    @property
    def samples(self) -> int:
        """Number of samples since the session began, at `HEARD_RATE`."""
        return self._begin + len(self._pcm) // _SAMPLE_BYTES

    @property
    def now_ms(self) -> int:
        return self.samples * 1000 // HEARD_RATE

    @property
    def kept_ms(self) -> float:
        """Length of the sound in the buffer."""
        return len(self._pcm) / _BYTES_PER_MS

    @property
    def nbytes(self) -> int:
        return len(self._pcm)

    def change_format(self, sound_format: SoundFormat) -> numpy.ndarray:
        """Read all later sound in another format. Returns the last samples of the sound in the old format."""
        rest = self.append_rest()
        self._sound = InputSound(sound_format)
        return rest

    def append(self, data: bytes) -> numpy.ndarray:
        """Add sound in the client's format. Returns the samples of this sound for the voice detection: float32 [n]."""
        samples = self._sound.feed(data)
        self._pcm += to_pcm16(samples).tobytes()
        return samples

    def append_rest(self) -> numpy.ndarray:
        """Add and return the last samples. `append` has kept these samples back, because each converted sample also
        depends on the sound that follows this sample.
        """
        samples = self._sound.finish()
        self._pcm += to_pcm16(samples).tobytes()
        return samples

    def forget_before(self, ms: int) -> None:
        """Forget the sound before this time."""
        self._drop(self._place(ms))

    def between(self, begin_ms: int, end_ms: int) -> bytes:
        """The sound between two times."""
        return bytes(self._pcm[self._place(begin_ms) : self._place(end_ms)])

    def samples_since(self, begin_ms: int | None) -> int:
        """Number of samples in the buffer from `begin_ms` on, or in the whole buffer if `begin_ms` is None."""
        begin = 0 if begin_ms is None else self._place(begin_ms)
        return (len(self._pcm) - begin) // _SAMPLE_BYTES

    def first(self, samples: int, begin_ms: int | None) -> bytes:
        """The samples from `begin_ms` on, or from the beginning of the buffer if `begin_ms` is None. `samples` is their
        number.
        """
        begin = 0 if begin_ms is None else self._place(begin_ms)
        return bytes(self._pcm[begin : begin + samples * _SAMPLE_BYTES])

    def take(self, begin_ms: int | None = None, end_ms: int | None = None) -> bytes:
        """Remove all sound before `end_ms`. Returns the removed sound from `begin_ms` on: 16 bits at `HEARD_RATE`."""
        begin = 0 if begin_ms is None else self._place(begin_ms)
        end = len(self._pcm) if end_ms is None else self._place(end_ms)
        pcm = bytes(self._pcm[begin:end])
        self._drop(end)
        return pcm

    def _place(self, ms: int) -> int:
        return min(max(ms * _BYTES_PER_MS - self._begin * _SAMPLE_BYTES, 0), len(self._pcm))

    def _drop(self, size: int) -> None:
        del self._pcm[:size]
        self._begin += size // _SAMPLE_BYTES


def sound_of(pcm: bytes, param: str) -> SoundContent:
    """The content of an item for the sound `pcm` (16 bits at `HEARD_RATE`). The sound is padded with zeros.

    Args:
        param: The name of the sound in error messages.
    """
    samples = len(pcm) // _SAMPLE_BYTES
    length = max(samples + _ZEROS, _LEAST)
    length += -length % _FRAME
    padded = pcm + bytes((length - samples) * _SAMPLE_BYTES)
    return SoundContent(Media("audio", Tensor.of(wav(padded, HEARD_RATE)), param), samples / HEARD_RATE)


def pcm_of(data: bytes, sound_format: SoundFormat) -> bytes:
    """A whole sound in a client's format as 16 bits at `HEARD_RATE`."""
    buffer = InputBuffer(sound_format)
    buffer.append(data)
    buffer.append_rest()
    return buffer.take()
