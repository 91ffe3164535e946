"""Finds the ids that may come next in one request's text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llguidance import LLMatcher

from omni_pipeline.errors import OmniError, bad_request
from stages.grammars.masks import Mask, Masks

# All masks of a text together may take this much CPU time: `_SECONDS`, plus `_SECONDS_PER_TOKEN` for each token of the
# text. The first masks take some milliseconds, and later masks less than a millisecond. With an ambiguous grammar, each
# mask takes longer than the mask before it.
_SECONDS, _SECONDS_PER_TOKEN = 0.5, 0.005


class Matcher:
    """Follows one text, and finds the ids that may come next.

    Args:
        start: A compiled grammar, as a matcher that has not read any text yet. A copy of this matcher is used.
        masks: Lists the ids of a mask.
        param: The request field of the grammar.

    Attributes:
        error: The reason why the text cannot be continued: no id may follow, or the search for the allowed ids
            takes too long. None if the text can be continued. After an error, every id is allowed, so the caller must
            end the request.
    """

    __slots__ = ("_masks", "_matcher", "_packed", "_param", "_read", "_spent", "_start", "error")

    def __init__(self, start: LLMatcher, masks: Masks, param: str) -> None:
        self._start = start
        self._matcher = start.deep_copy()
        self._masks = masks
        self._param = param
        self._read = 0  # number of ids of the text that the matcher has read
        self._packed: bytes | None = None  # whether each id is allowed as the next id
        self._spent = 0.0  # CPU seconds
        self.error: OmniError | None = None

    def again(self) -> Matcher:
        """A matcher for another text of the same grammar."""
        return Matcher(self._start, self._masks, self._param)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._masks.size

    def mask(self, text: Sequence[int], *, stay: bool = False) -> Mask:
        """The ids that may follow a text.

        Args:
            text: The ids of the text so far. Each call gets a longer text, or the same text again.
            stay: Whether to forbid the end of the text. If the grammar allows only the end, the end is allowed in spite
                of `stay`.
        """
        if self._packed is None or len(text) > self._read:
            self._packed = self._next(text)
        return self._masks.listed(self._packed, stay=stay)

    def _next(self, text: Sequence[int]) -> bytes:
        """The ids that may follow a text, as packed bits."""
        packed = b""
        if self.error is None:
            begin = time.thread_time()
            if len(text) > self._read:
                self._matcher.consume_tokens(list(text[self._read :]))
            packed = self._matcher.compute_bitmask()
            self._spent += time.thread_time() - begin
            if self._matcher.is_error():
                self.error = self._failed(self._matcher.get_error().partition("\n")[0])
            elif not packed.strip(b"\0"):
                self.error = self._failed("no token of the model can follow the text")
            elif self._spent > _SECONDS + _SECONDS_PER_TOKEN * len(text):
                self.error = self._failed("the search for the next token takes too long")
        self._read = len(text)
        return packed if self.error is None else self._masks.everything

    def _failed(self, reason: str) -> OmniError:
        return bad_request(
            f"The answer cannot continue in the form that '{self._param}' requires: {reason}.",
            param=self._param,
            code="grammar_too_complex",
        )
