"""Opens sound files with libsndfile."""

from __future__ import annotations

import io
import re

import soundfile
from msgspec import Struct

from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.data_sizes import DataSize, complete_size

# First bytes of the files that libsndfile reads: WAV and its 64-bit variants, AIFF, AU, FLAC, Ogg, CAF, MP3. The
# library supports two dozen more formats, which clients do not use.
_FOR_LIBSNDFILE = re.compile(rb"RIFF|RIFX|RF64|BW64|riff|FORM|\.snd|fLaC|OggS|caff|ID3|\xff[\xe0-\xff]")

# The formats whose header states the length of the sound. For MP3 and Ogg, libsndfile only estimates the length.
_TELLS_ITS_LENGTH = ("WAV", "WAVEX", "W64", "RF64", "AIFF", "AU", "FLAC", "CAF")

# If libsndfile reports more frames than this number, the length of the sound is unknown.
_KNOWN_FRAMES = 1 << 60


class OpenSound(Struct, frozen=True):
    """A sound file, opened with libsndfile if possible.

    Attributes:
        source: The file, positioned at its beginning. None if libsndfile cannot read the file, or if the file is cut
            short.
        seconds: The length that libsndfile finds or estimates.
        promised_seconds: The length that the header promises; 0 if it promises no length.
        cut_short: Whether the file has clearly less sound data than its header promises.
    """

    source: soundfile.SoundFile | None = None
    seconds: float = 0.0
    promised_seconds: float = 0.0
    cut_short: bool = False


def open_sound(data: Buffer) -> OpenSound:
    """Open a sound file. The caller closes `OpenSound.source`."""
    if not _FOR_LIBSNDFILE.match(data):
        return OpenSound()
    file = _File(data)
    with file.getbuffer() as content:
        if complete_size(content) is DataSize.TOO_LARGE:
            return OpenSound(cut_short=True)
    try:
        source = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        return OpenSound()
    if source.format == "FLAC" and not 0 < source.frames < _KNOWN_FRAMES:
        source.close()  # libsndfile does not read to the end of a FLAC whose length is unknown
        return OpenSound()
    seconds = max(source.frames, 0) / source.samplerate if source.frames < _KNOWN_FRAMES else 0.0
    promised = seconds if source.format in _TELLS_ITS_LENGTH else 0.0
    return OpenSound(source, seconds, promised)


class _File(io.BytesIO):
    """A file in memory for libsndfile. Allows any position, because a damaged file may contain any offset."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Ignore a position before the beginning. An exception would be printed and would not reach the caller."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()
