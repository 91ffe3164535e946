"""The stage talker_ar: from the text, as it is written, to codebook 0 of each codec frame."""

from stages.talker_ar.stage import Talker

__all__ = ["Talker"]
