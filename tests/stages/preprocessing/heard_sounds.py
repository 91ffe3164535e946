"""Decodes the sounds of the tests within one limit on their length."""

import numpy
import pytest
from media_files import RATE

from omni_pipeline.errors import ErrorInfo, OmniError
from stages.preprocessing.decode_audio import decode_audio

MAX_SECONDS = 5


def decoded(data: bytes) -> numpy.ndarray:
    """The waveform of a file, float32 at `RATE`."""
    return decode_audio(data, rate=RATE, max_seconds=MAX_SECONDS, param="media[0]")


def refused(data: bytes) -> ErrorInfo:
    """The error with which a file is refused."""
    with pytest.raises(OmniError) as caught:
        decoded(data)
    return caught.value.info
