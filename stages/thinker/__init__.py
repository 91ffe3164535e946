"""The stage thinker: from prompt rows to streams of token ids."""

from stages.thinker.stage import Thinker

__all__ = ["Thinker"]
