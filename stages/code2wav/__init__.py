"""The stage code2wav: turns codec frames into sound, as they arrive.

The streaming vocoder and its state belong in this package. Audio file formats belong in `gateway.answers`.
"""

from stages.code2wav.stage import Code2Wav

__all__ = ["Code2Wav"]
