"""Computes when each token of a text is spoken, from the times at which the synthetic voice begins each word."""

from __future__ import annotations

import itertools

from demo_model.world.synthetic_voices import Words

_LAST_WORD = 0.5
"""The longest duration of the last word of a text, in seconds."""


def token_moments(length: int, words: Words, starts: list[int], end: float) -> list[float]:
    """For each token, the time in seconds at which half of the token has been spoken.

    The tokens of a word share the word's time evenly. If the voice gives one time for several words, the tokens of
    these words share that time.

    Args:
        length: The length of the audible part of the text.
        starts: The index at which each token begins in the text.
        end: The duration of the whole sound in seconds.
    """
    bounds = [*words, (length, max(words[-1][1] + 0.1, min(end, words[-1][1] + _LAST_WORD)))]
    middles = []
    for start in starts:
        place = start + 0.5  # the middle of the space before a word; the space belongs to the word
        number = max((index for index, (begin, _) in enumerate(words) if begin <= start + 1), default=0)
        (begin, moment), (stop, later) = bounds[number], bounds[number + 1]
        sharing = [other for other in starts if begin <= other + 1 < stop] or [start]
        share = (sharing.index(start) + 0.5) / len(sharing) if start in sharing else (place - begin) / (stop - begin)
        middles.append(moment + share * (later - moment))
    return middles


def token_at_each(frames: int, seconds: float, moments: list[float]) -> list[int]:
    """For each of `frames` frames, the index of the token that is spoken in the middle of the frame. A frame lasts
    `seconds` seconds.
    """
    borders = [(before + after) / 2 for before, after in itertools.pairwise(moments)]
    return [sum(border <= (frame + 0.5) * seconds for border in borders) for frame in range(frames)]
