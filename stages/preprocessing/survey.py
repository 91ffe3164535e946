"""Describes the size of a media item according to its headers, and estimates the time to decode the item."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from stages.messages import Media, Modality
from stages.preprocessing.decode_video import DecodedClip

# Seconds on one core, measured on one machine and rounded up. These estimates only determine the order of the work, so
# small errors do no harm.
_SECONDS_PER_PIXEL = 30e-9  # per pixel of a picture, for decoding and features
_SECONDS_PER_STORED_PIXEL = 4e-9  # per pixel of the frames of a clip that are decoded but not used
_SECONDS_PER_SOUND = 2e-3  # for each second of sound
_SECONDS_PER_BYTE = 2e-9  # per byte, for reading the packets of a container
_SECONDS_PER_ITEM = 0.01
_SECONDS_PER_FRAME = 0.5e-3  # for the header of a picture of a clip


class MediumSurvey(Struct, frozen=True):
    """The size of one media item, known before it is decoded.

    Attributes:
        kind: The kind of media.
        width, height: Pixels of a picture, or of the largest frame, as it is stored; 0 for a sound.
        frames: Number of frames in the file; 1 for a picture, 0 for a sound.
        taken: Number of frames that the encoder will get.
        sound_seconds: Length of the sound that the encoder will get, according to the headers, which may be false.
        rows: Estimated number of prompt rows, sound included.
        least_rows: Minimum number of prompt rows of the item, if it can be decoded.
        clip: A clip's properties, so that the reader need not find them again.
    """

    kind: Modality
    width: int = 0
    height: int = 0
    frames: int = 0
    taken: int = 0
    sound_seconds: float = 0.0
    rows: int = 0
    least_rows: int = 0
    clip: DecodedClip | None = None


def survey_seconds(media: Sequence[Media]) -> float:
    """Estimated time to survey these media."""
    return sum(
        _SECONDS_PER_ITEM + len(medium.frames) * _SECONDS_PER_FRAME + medium.nbytes * _SECONDS_PER_BYTE
        for medium in media
    )


def reading_seconds(surveys: Sequence[MediumSurvey]) -> float:
    """Estimated time to read these media."""
    return sum(map(_item_seconds, surveys))


def _item_seconds(item: MediumSurvey) -> float:
    pixels = item.width * item.height
    stored = pixels * item.frames * _SECONDS_PER_STORED_PIXEL
    return (
        _SECONDS_PER_ITEM + pixels * item.taken * _SECONDS_PER_PIXEL + stored + item.sound_seconds * _SECONDS_PER_SOUND
    )
