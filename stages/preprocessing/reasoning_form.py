"""Finds the markers of a model's reasoning, and whether a prompt ends inside the reasoning of the answer."""

from __future__ import annotations

from typing import Any

import numpy
from msgspec import Struct, structs

from omni_pipeline.errors import StartupError
from stages.messages import ReasoningForm
from stages.sglang_engine.reasoning_markers import markers

_AUTOMATIC = "qwen3"
_START_OF_TURN = "<|im_start|>"


class ReasoningMarks(Struct, frozen=True):
    """The markers of a model's reasoning, and whether the model always reasons.

    Attributes:
        form: The markers, as a `ReasoningForm` for an answer that begins outside the reasoning.
        always: Whether every answer begins inside the reasoning, except when the prompt contains the closing marker.
        turn_id: The token with which a turn begins.
    """

    form: ReasoningForm
    always: bool
    turn_id: int | None

    def after(self, prompt: numpy.ndarray) -> ReasoningForm:
        """The `ReasoningForm` for the answer to a prompt. `prompt` has the token ids, int64 [n]. The last marker in the
        last turn shows whether the prompt ends inside reasoning. If the last turn has no marker, `always` shows this.
        """
        open_ = self.always
        for id_ in map(int, prompt[::-1]):
            if id_ in (self.form.opening_id, self.form.closing_id):
                open_ = id_ == self.form.opening_id
                break
            if id_ == self.turn_id:
                break
        return structs.replace(self.form, begun=open_)


def find_reasoning_marks(tokenizer: Any, template: str, setting: str, *, speaks: bool) -> ReasoningMarks | None:
    """The markers of the model's reasoning; None if the model does not reason.

    Args:
        tokenizer: The checkpoint's tokenizer.
        template: The source of the chat template.
        setting: Either the name of a parser, or ``auto``, or ``none``. ``auto`` selects a parser only for a model
            without speech. With a parser, the speech of a spoken answer would start later: the talker would have to
            wait until it is known which text is not reasoning.

    Raises:
        StartupError: The markers of the chosen parser are not tokens of this model.
    """
    if setting == "none" or (setting == "auto" and speaks):
        return None
    found = markers(_AUTOMATIC if setting == "auto" else setting)
    if setting == "auto" and not (found.opening in template and found.closing in template):
        return None
    vocabulary = tokenizer.get_vocab()
    missing = [marker for marker in (found.opening, found.closing) if marker not in vocabulary]
    if missing and setting == "auto":
        return None
    if missing:
        raise StartupError(
            f"The reasoning parser '{setting}' cannot be used: {missing[0]} is not a token of the model. Set "
            "'reasoning_parser' in the options of 'preprocessing' to 'auto' or 'none'."
        )
    form = ReasoningForm(
        found.opening, found.closing, vocabulary[found.opening], vocabulary[found.closing], found.interrupting
    )
    return ReasoningMarks(form, found.always, vocabulary.get(_START_OF_TURN))
