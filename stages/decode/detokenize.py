"""Turns token ids into text one by one. Shows only complete UTF-8 characters, and holds back text that may be part of a
stop string.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.decode.spoken import Span
from stages.messages import IdLogprob, TokenLogprob, TokenText
from stages.token_bytes import token_bytes


class TokenTable:
    """The bytes of every token, and the ids of special tokens.

    Args:
        pieces: Bytes by id; None for an id without a token.
        special: Ids of control tokens.
    """

    def __init__(self, pieces: Sequence[bytes | None], special: frozenset[int]) -> None:
        self._pieces = pieces
        self.special = special

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTable:
        """Read a Hugging Face byte-level BPE tokenizer."""
        special = frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        return cls(token_bytes(tokenizer), special)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token. They may be only a part of a character. An id without a token has no bytes."""
        piece = self._pieces[token] if 0 <= token < len(self._pieces) else None
        return piece or b""

    def shown(self, logprob: IdLogprob) -> TokenText:
        """A token with its log-probability and its text."""
        piece = self.bytes_of(logprob.id)
        return TokenText(piece.decode(errors="replace"), list(piece), logprob.logprob)


@dataclass(slots=True)
class _HeldText:
    """The log-probability of a token, held back with the token's text."""

    start: int  # number of characters in the text before this token
    logprob: TokenLogprob


class _StopString:
    """Searches a growing text for one stop string, with a bounded number of steps for each character.

    The search uses the algorithm of Knuth, Morris and Pratt. A simpler search would compare each token of a long text
    with every prefix of every stop string. For a long text, this would take so long that it delays all other answers,
    because all answers share one process.

    Attributes:
        matched: Number of characters at the end of the text so far that equal the beginning of the stop string. If
            several numbers are possible, the largest counts.
    """

    __slots__ = ("_borders", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        # `_borders[i]` belongs to the first i + 1 characters of the stop string: it is the length of the longest border
        # of this text. A border of a text is a shorter text that is both a prefix and a suffix of this text.
        self._borders = [0]
        for character in text[1:]:
            self._borders.append(self._advanced(self._borders[-1], character))

    def read(self, text: str) -> int | None:
        """Search the next part of the text. Returns the index in this part at which the first occurrence ends, or
        None.
        """
        for index, character in enumerate(text):
            self.matched = self._advanced(self.matched, character)
            if self.matched == len(self.text):
                return index + 1
        return None

    def _advanced(self, matched: int, character: str) -> int:
        """The new value of `self.matched` after one more character. The argument `matched` is the old value, which is
        less than the length of the stop string.
        """
        while matched and self.text[matched] != character:
            matched = self._borders[matched - 1]
        return matched + (self.text[matched] == character)


class Transcript:
    """The text of one answer while it grows.

    Args:
        table: The vocabulary.
        stop: Strings that end the text and do not belong to it.
        skip_special: Whether special tokens are left out of the text.

    Attributes:
        stopped: Whether a stop string has been found. After this, `push` must not be called any more.
    """

    def __init__(self, table: TokenTable, *, stop: Sequence[str] = (), skip_special: bool = True) -> None:
        self._table = table
        self._stop = [_StopString(text) for text in stop if text]
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded text that has not been shown yet
        self._shown = 0  # number of characters shown
        self._pending: deque[_HeldText] = deque()
        self._spans: deque[Span] = deque()  # the spans of the tokens whose text is not certain yet
        self.stopped = False

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Add a generated token."""
        before = len(self._held)
        start = self._shown + before
        if self._skip_special and token in self._table.special:
            self._spans.append((start, start))
            return
        if logprob is not None:
            self._pending.append(_HeldText(start, logprob))
        self._held += self._decoder.decode(self._table.bytes_of(token))
        unfinished, _ = self._decoder.getstate()
        self._spans.append((start, self._shown + len(self._held) + bool(unfinished)))
        self._cut_at_stop(before)

    def certain(self) -> list[Span]:
        """The spans of the tokens that have become certain since the last call. A token is certain when its text can no
        longer become part of a stop string.
        """
        reach = self._shown + len(self._held) - self._uncertain()
        certain = []
        while self._spans and self._spans[0][1] <= reach:
            certain.append(self._spans.popleft())
        return certain

    def finish(self) -> None:
        """End the text. An unfinished character becomes U+FFFD, and all held text may be shown."""
        if not self.stopped:
            before = len(self._held)
            self._held += self._decoder.decode(b"", final=True)
            self._cut_at_stop(before)
            self._stop = []

    def take(self) -> tuple[str, list[TokenLogprob]]:
        """The text that may be shown now and has not been taken before, and the log-probabilities of its tokens."""
        text = self._held[: len(self._held) - self._uncertain()]
        self._held = self._held[len(text) :]
        self._shown += len(text)
        ready: list[TokenLogprob] = []
        while self._pending and (not self._held or self._pending[0].start < self._shown):
            ready.append(self._pending.popleft().logprob)
        return text, ready

    def _cut_at_stop(self, before: int) -> None:
        """Look for a stop string that ends in the new text, and cut the text where the stop string begins. The new text
        is the held text after its first `before` characters.
        """
        new = self._held[before:]
        ends = [(before + end - len(stop.text)) for stop in self._stop if (end := stop.read(new)) is not None]
        if ends:
            found = min(ends)
            self._held = self._held[:found]
            self.stopped = True
            while self._pending and self._pending[-1].start >= self._shown + found:
                self._pending.pop()

    def _uncertain(self) -> int:
        """Number of characters at the end of the held text that equal the beginning of a stop string. If several
        numbers are possible, the largest counts. 0 after a stop string has been found.
        """
        return 0 if self.stopped else max((stop.matched for stop in self._stop), default=0)
