"""Predicts how long the vocoder needs for a chunk, from the chunks that it has decoded."""

from __future__ import annotations

_KEPT = 0.97  # weight of earlier chunks after each new chunk
_LEAST = 0.25  # smallest prediction, as a part of the mean of recent chunks


class ChunkCost:
    """The line a + b · frames through the times of recent chunks, by least squares with decaying weights."""

    def __init__(self) -> None:
        self._weight = self._frames = self._seconds = self._squares = self._products = 0.0

    def note(self, frames: int, seconds: float) -> None:
        """Note that a chunk of `frames` frames has taken `seconds`."""
        self._weight = _KEPT * self._weight + 1
        self._frames = _KEPT * self._frames + frames
        self._seconds = _KEPT * self._seconds + seconds
        self._squares = _KEPT * self._squares + frames * frames
        self._products = _KEPT * self._products + frames * seconds

    def seconds(self, frames: int) -> float:
        """The predicted time for a chunk of `frames` frames; 0 before the first chunk."""
        if not self._weight:
            return 0.0
        mean_frames, mean = self._frames / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean_frames**2
        if variance < 0.25:  # the recent chunks were of one size, and say nothing about the slope
            return mean * max(frames / mean_frames, _LEAST)
        slope = max((self._products / self._weight - mean_frames * mean) / variance, 0.0)
        return max(mean + slope * (frames - mean_frames), _LEAST * mean)
