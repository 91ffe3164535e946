"""Multimodal rotary positions (M-RoPE): for each prompt row its place in time, height and width."""

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
    """Positions of a prompt, and what to add to an index after it to get its position.

    Text and sound move on all axes together. A picture stays in time and spreads over height and width; a clip also
    moves in time, by `ids_per_second` for every second. Whatever follows starts one after the largest position of it.

    All sums are float32 and in the order in which the reference makes them: positions may be fractional, and rounding
    must fall alike.

    Args:
        gaps: As in `layout.PromptLayout`.
        media: In prompt order.
        ids_per_second: The model's time scale.

    Returns:
        float32 [3, n] and the offset; (None, 0.0) where the positions are the indices, because nothing is seen.

    Raises:
        OmniError: 500, they are beyond float32. What is computed from such would spoil the prefix cache for others.
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
        raise internal("The positions of a clip's frames are beyond float32.")
    # Generation goes on from the last row. That is not the largest position where wide frames were heard but briefly.
    return positions, float(positions[0, -1] + float32(1) - float32(positions.shape[1]))


def _medium(medium: MediumRows, start: float32, ids_per_second: float) -> list[FloatArray]:
    """Positions of one medium, in the runs the reference builds them of: what follows starts after the last run.

    Of a clip with sound, that is what remains of the longer of the two when the other has ended. Its largest position
    may be below that of the frames before, and the text after it then repeats positions; so does the reference.
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
    """`count` consecutive positions from `start`, the same on all axes: float32 [3, count]."""
    return numpy.broadcast_to(numpy.arange(count, dtype=float32) + start, (AXES, count))
