"""The stage code2wav: codec frames to sound, as they arrive."""

from stages.code2wav.stage import Code2Wav

__all__ = ["Code2Wav"]
