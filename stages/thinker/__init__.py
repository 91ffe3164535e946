"""The stage thinker: turns prompt rows into streams of token ids.

The language model itself runs in `stages.sglang_engine`. Turning ids into text belongs in `stages.decode`.
"""

from stages.thinker.stage import Thinker

__all__ = ["Thinker"]
