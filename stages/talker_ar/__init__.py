"""The stage talker_ar: turns the text, while it is being written, into codebook 0 of each codec frame.

The other codebooks belong in `stages.code_predictor`. The language model itself runs in `stages.sglang_engine`.
"""

from stages.talker_ar.stage import Talker

__all__ = ["Talker"]
