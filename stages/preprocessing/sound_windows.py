"""Cuts sounds into the windows of the audio tower, so that the caches recognise each window of a sound.

Each window lasts eight seconds in the released models. In the tower, the rows of a window attend only to each other. So
the rows of a window depend only on the features of this window. While a user speaks, the sound grows, but its complete
windows stay the same. So the rows of the complete windows are found in the encoder's cache and in the prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.audio_lengths import audio_rows
from stages.messages import AudioItem
from stages.preprocessing.features import CHUNK_FRAMES
from stages.preprocessing.hashing import audio_key


class SoundWindows:
    """The windows of one model.

    Args:
        frames: Mel frames of a window, a multiple of `CHUNK_FRAMES`.
    """

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._rows = audio_rows(frames, CHUNK_FRAMES)

    def of(self, item: AudioItem, pad_frames: int) -> Iterator[AudioItem]:
        """The windows of a sound. The last one may be shorter.

        Args:
            pad_frames: As in `AudioWork`.
        """
        mel = item.mel.torch()
        if mel.shape[1] <= self._frames:
            yield item
            return
        for window in mel.split(self._frames, dim=1):
            part = window.contiguous()
            yield AudioItem(audio_key(part, pad_frames), Tensor.of(part))

    def rows_of(self, rows: numpy.ndarray) -> list[numpy.ndarray]:
        """The prompt rows of a sound (int64 [n], not empty), divided into its windows."""
        return numpy.split(rows, range(self._rows, len(rows), self._rows))
