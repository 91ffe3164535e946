"""Lays media rows out in the prompt: assigns a place to each row of each media item."""

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
        grid: Visual rows by (time, height, width), after merging; None for a sound.
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
        """Whether a clip's sound stands between its frames."""
        return self.grid is not None and self.audio > 0


class MediaTokens(Struct, frozen=True):
    """Ids of the tokens that mark media in a prompt."""

    image: int
    video: int
    audio: int
    audio_start: int
    audio_end: int


class PromptLayout(Struct, frozen=True):
    """A prompt with room for its media.

    Attributes:
        ids: int64 [n].
        visual_rows, audio_rows: int64 [rows] for each media item, ascending indices into `ids`; may be empty.
        gaps: For each media item, the number of tokens between the previous item's closing token and its own opening
            token; then the number of tokens after the last item.
    """

    ids: IntArray
    visual_rows: list[IntArray]
    audio_rows: list[IntArray]
    gaps: list[int]


def lay_out(
    skeleton: Sequence[int], media: Sequence[MediumRows], tokens: MediaTokens, ids_per_second: float
) -> PromptLayout:
    """Give every placeholder of the tokenised conversation as many rows as its media item has.

    Args:
        skeleton: Token ids with one placeholder for each media item, between an opening and a closing token.
        media: The media in the order of their placeholders.
        tokens: The ids that mark media.
        ids_per_second: Time scale on which a clip's frames and sound are merged.
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
    """The indices that sort by time the rows of a clip, followed by the rows of its sound. At equal times the clip's
    rows come first.

    Args:
        clip, sound: Times, each ascending.
    """
    return numpy.argsort(numpy.concatenate([clip, sound]), kind="stable")
