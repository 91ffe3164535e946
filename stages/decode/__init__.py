"""The stage decode: turns token ids into text as they arrive, and divides the text into content and tool calls.

Stop strings, log-probabilities and usage belong in this package. SGLang's detectors of tool calls, and the choice of
tokens, belong in `stages.sglang_engine`.
"""

from stages.decode.stage import Decode

__all__ = ["Decode"]
