"""The stage decode: token ids to text as they arrive."""

from stages.decode.stage import Decode

__all__ = ["Decode"]
