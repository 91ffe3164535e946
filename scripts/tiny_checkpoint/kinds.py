"""Defines the kinds of checkpoints: the released models that a tiny checkpoint can imitate."""

from enum import StrEnum


class Kind(StrEnum):
    """A released Qwen3-Omni-30B-A3B model."""

    INSTRUCT = "instruct"
    THINKING = "thinking"
    CAPTIONER = "captioner"

    @property
    def speaks(self) -> bool:
        """Whether the checkpoint has a talker and a vocoder."""
        return self is Kind.INSTRUCT

    @property
    def reasons(self) -> bool:
        """Whether the model reasons between `<think>` and `</think>` before it answers."""
        return self is Kind.THINKING
