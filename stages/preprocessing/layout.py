"""Assigns a place in the prompt to each row of each media item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from msgspec import Struct

from stages.messages import Modality

IntArray = numpy.ndarray


class MediumRows(Struct, frozen=True):
    """The rows that one media item occupies in the prompt.

    Attributes:
        kind: The kind of media.
        grid: Numbers of visual rows in (time, height, width), after merging; None for a sound.
        audio: Number of rows of the item's sound; 0 for a picture, or for a clip whose sound is not used.
        seconds_per_step: Time between two steps of a clip's grid.
    """

    kind: Modality
    grid: tuple[int, int, int] | None = None
    audio: int = 0
    seconds_per_step: float = 0.0

    @property
    def visual(self) -> int:
        if self.grid is None:
            return 0
        time, height, width = self.grid
        return time * height * width

    @property
    def interleaved(self) -> bool:
        """Whether the rows of a clip's sound are placed between the rows of its frames."""
        return self.grid is not None and self.audio > 0


class MediaTokens(Struct, frozen=True):
    """Ids of the tokens that mark media in a prompt."""

    image: int
    video: int
    audio: int
    audio_start: int
    audio_end: int


class PromptLayout(Struct, frozen=True):
    """A tokenised prompt in which every row of every media item has a token.

    Attributes:
        ids: int64 [n].
        visual_rows, audio_rows: int64 [rows] for each media item, ascending indices into `ids`; may be empty.
        gaps: Numbers of text tokens between the media items. The first number counts the tokens before the opening
            token of the first item. Each of the next numbers counts the tokens between the closing token of an item and
            the opening token of the next item. The last number counts the tokens after the last item.
    """

    ids: IntArray
    visual_rows: list[IntArray]
    audio_rows: list[IntArray]
    gaps: list[int]


def lay_out(
    skeleton: Sequence[int], media: Sequence[MediumRows], tokens: MediaTokens, ids_per_second: float
) -> PromptLayout:
    """Replace each placeholder in the tokenised conversation by tokens: one token for each row of the placeholder's
    media item. If the sound of a clip is used, the rows of the sound are placed between the rows of the frames. The
    clip then gets two more markers.

    Args:
        skeleton: Token ids with one placeholder for each media item, between an opening and a closing token.
        media: The media in the order of their placeholders.
        tokens: The ids that mark media.
        ids_per_second: Number of position ids for each second. Used to order the rows of a clip's frames and of its
            sound by time.
    """
    flat = numpy.asarray(skeleton, dtype=numpy.int64)
    placeholders = numpy.flatnonzero(numpy.isin(flat, (tokens.image, tokens.video, tokens.audio)))
    pieces: list[IntArray] = []
    visual_rows: list[IntArray] = []
    audio_rows: list[IntArray] = []
    gaps: list[int] = []
    copied = length = closed = 0
    for place, medium in zip(placeholders.tolist(), media, strict=True):
        gaps.append(place - 1 - closed)
        closed = place + 2
        pieces.append(flat[copied:place])
        length += place - copied
        copied = place + 1
        if medium.interleaved:
            is_audio = merge_order(clip_times(medium, ids_per_second), numpy.arange(medium.audio)) >= medium.visual
            pieces += [numpy.array([tokens.audio_start]), numpy.where(is_audio, tokens.audio, tokens.video)]
            pieces.append(numpy.array([tokens.audio_end]))
            first = length + 1
            length += 2 + len(is_audio)
        else:
            is_audio = numpy.full(medium.visual + medium.audio, medium.audio > 0)
            pieces.append(numpy.full(len(is_audio), flat[place]))
            first = length
            length += len(is_audio)
        visual_rows.append(first + numpy.flatnonzero(~is_audio))
        audio_rows.append(first + numpy.flatnonzero(is_audio))
    pieces.append(flat[copied:])
    gaps.append(len(flat) - closed)
    return PromptLayout(numpy.concatenate(pieces), visual_rows, audio_rows, gaps)


def clip_times(medium: MediumRows, ids_per_second: float) -> numpy.ndarray:
    """Time of every visual row of a clip: float64 [rows], in units of position ids. The factors are multiplied in the
    reference's order.
    """
    assert medium.grid is not None
    time, height, width = medium.grid
    return numpy.repeat(numpy.arange(time), height * width) * medium.seconds_per_step * ids_per_second


def merge_order(clip: numpy.ndarray, sound: numpy.ndarray) -> IntArray:
    """The indices that sort the rows of a clip and of its sound by time. Indices count the clip's rows first, then the
    rows of the sound. At equal times the clip's rows come first.

    Args:
        clip, sound: Times, each ascending.
    """
    return numpy.argsort(numpy.concatenate([clip, sound]), kind="stable")
