"""The stage preprocessing: turns media bytes and text into token ids, positions, pixels and mel features.

Decoding media and laying out the prompt belong in this package. Fetching media belongs in the gateway. Embedding media
belongs in `stages.encoders`.
"""

from stages.preprocessing.stage import Preprocessing

__all__ = ["Preprocessing"]
