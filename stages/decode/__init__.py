"""The stage decode: turns token ids into text, as they arrive.

Stop strings, log-probabilities and usage belong in this package. Choosing tokens belongs in `stages.sglang_engine`.
"""

from stages.decode.stage import Decode

__all__ = ["Decode"]
