"""The stage preprocessing: media bytes and text to token ids, positions, pixels and mel features."""

from stages.preprocessing.stage import Preprocessing

__all__ = ["Preprocessing"]
