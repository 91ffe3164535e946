"""Computes multimodal rotary positions (M-RoPE): the position of each prompt row in time, height and width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy import float32

from omni_pipeline.errors import internal
from stages.preprocessing.layout import MediumRows, merge_order

AXES = 3
FloatArray = numpy.ndarray


def mrope_positions(
    gaps: Sequence[int], media: Sequence[MediumRows], ids_per_second: float
) -> tuple[FloatArray | None, float]:
    """Positions of a prompt, and an offset. The position of each token after the prompt is its index plus this offset.

    The positions of text and sound advance on all axes together. A picture has one position in time, and its rows have
    different positions in height and width. A clip also advances in time, by `ids_per_second` positions per second. The
    token after a picture or clip starts one position after the largest position of the picture or clip.

    Positions may be fractional. All sums are float32 and in the reference's order, so that they are rounded in the same
    way.

    Args:
        gaps: As in `layout.PromptLayout`.
        media: In prompt order.
        ids_per_second: The model's time scale.

    Returns:
        float32 [3, n] and the offset. (None, 0.0) for a prompt without pictures and clips, where the positions equal
        the indices.

    Raises:
        OmniError: 500, the positions are too large for float32. The request is refused, because results for wrong
            positions would enter the prefix cache, which other requests use too.
    """
    if not any(medium.grid for medium in media):
        return None, 0.0
    runs: list[FloatArray] = []
    start = float32(0)
    for gap, medium in zip(gaps, media, strict=False):
        markers = 2 if medium.interleaved else 1
        runs.append(_line(gap, start))
        start = float32(start + gap)
        runs.append(_line(markers, start))
        start = float32(start + markers)
        runs += _medium(medium, start, ids_per_second)
        start = float32(runs[-1].max() + 1)
        runs.append(_line(markers, start))
        start = float32(runs[-1].max() + 1)
    runs.append(_line(gaps[-1], start))
    positions = numpy.concatenate(runs, axis=1)
    if not numpy.isfinite(positions).all():
        raise internal("The positions of a video's frames are too large for float32.")
    # Generation continues from the last row's position. After wide frames with a short sound, this is not the largest
    # position.
    return positions, float(positions[0, -1] + float32(1) - float32(positions.shape[1]))


def _medium(medium: MediumRows, start: float32, ids_per_second: float) -> list[FloatArray]:
    """Positions of one media item, as a list of one or two runs. A run is a part of the item that the reference handles
    in one step. The position of the token after the item is one more than the largest position of the last run.

    A clip with sound has two runs. The first run has rows of the frames and rows of the sound, ordered by time. The
    last run has only the remaining rows of the part that lasts longer, which is either the frames or the sound. The
    largest position of the last run may be smaller than the largest position of the first run. In this case, some
    positions of the clip occur again in the text after the clip, as in the reference.
    """
    sound = _line(medium.audio, start)
    if medium.grid is None:
        return [sound]
    time, height, width = medium.grid
    step = float32(medium.seconds_per_step)
    grid = numpy.empty((AXES, time, height, width), float32)
    grid[0] = (numpy.arange(time, dtype=float32) * step * float32(ids_per_second))[:, None, None]
    grid[1] = numpy.arange(height, dtype=float32)[:, None]
    grid[2] = numpy.arange(width, dtype=float32)
    seen = grid.reshape(AXES, -1) + start
    if not medium.audio:
        return [seen]
    order = merge_order(seen[0], sound[0])
    is_sound = order >= medium.visual
    both = numpy.flatnonzero(is_sound != is_sound[-1])[-1] + 1
    return numpy.split(numpy.concatenate([seen, sound], axis=1)[:, order], [both], axis=1)


def _line(count: int, start: float32) -> FloatArray:
    """Consecutive positions, the same on all axes: float32 [3, count]. The first position is `start`."""
    return numpy.broadcast_to(numpy.arange(count, dtype=float32) + start, (AXES, count))
