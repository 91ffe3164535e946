"""Predicts the decoding time of a chunk from the decoding times of recent chunks."""

from __future__ import annotations

_KEPT = 0.97  # each new chunk multiplies the weights of all earlier chunks by this factor
_LEAST = 0.25  # a prediction is at least this fraction of the mean time of recent chunks


class ChunkCost:
    """Fits the line a + b · frames to the decoding times of recent chunks. The method is least squares, and older
    chunks have smaller weights.
    """

    def __init__(self) -> None:
        self._weight = self._frames = self._seconds = self._squares = self._products = 0.0

    def note(self, frames: int, seconds: float) -> None:
        """Note how long a chunk with this number of frames has taken."""
        self._weight = _KEPT * self._weight + 1
        self._frames = _KEPT * self._frames + frames
        self._seconds = _KEPT * self._seconds + seconds
        self._squares = _KEPT * self._squares + frames * frames
        self._products = _KEPT * self._products + frames * seconds

    def seconds(self, frames: int) -> float:
        """The predicted time for a chunk with this number of frames; 0 before the first chunk."""
        if not self._weight:
            return 0.0
        mean_frames, mean = self._frames / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean_frames**2
        if variance < 0.25:  # all recent chunks had the same size, so the slope is unknown
            return mean * max(frames / mean_frames, _LEAST)
        slope = max((self._products / self._weight - mean_frames * mean) / variance, 0.0)
        return max(mean + slope * (frames - mean_frames), _LEAST * mean)
