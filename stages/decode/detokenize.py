"""Turns token ids into text one by one. Only complete UTF-8 characters are shown, and text that may be part of a stop
string is held back.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.messages import IdLogprob, TokenLogprob, TokenText


def _byte_alphabet() -> dict[str, int]:
    """The byte for which each character of byte-level BPE stands. Characters from U+0100 on stand for bytes that are
    not printable.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(rest)})
    return alphabet


class TokenTable:
    """The bytes of every token, and the ids of special tokens.

    Args:
        pieces: Bytes by id; None where the vocabulary has a hole.
        special: Ids of control tokens.
    """

    def __init__(self, pieces: Sequence[bytes | None], special: frozenset[int]) -> None:
        self._pieces = pieces
        self.special = special

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTable:
        """Read a Hugging Face byte-level BPE tokenizer."""
        alphabet = _byte_alphabet()
        added = tokenizer.added_tokens_decoder
        vocabulary = tokenizer.get_vocab()
        pieces: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            if index in added:
                pieces[index] = added[index].content.encode()
            else:
                pieces[index] = bytes(alphabet[character] for character in token)
        return cls(pieces, frozenset(index for index, token in added.items() if token.special))

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token. They may be a part of a character, and are empty for an id without a token."""
        piece = self._pieces[token] if 0 <= token < len(self._pieces) else None
        return piece or b""

    def shown(self, logprob: IdLogprob) -> TokenText:
        """A token with its log-probability and its text."""
        piece = self.bytes_of(logprob.id)
        return TokenText(piece.decode(errors="replace"), list(piece), logprob.logprob)


@dataclass(slots=True)
class _HeldText:
    """A token's log-probability that waits until the token's text may be shown."""

    start: int  # number of characters in the text before this token
    logprob: TokenLogprob


class _StopString:
    """Searches a growing text for one stop string, with a bounded number of steps for each character.

    The search uses the algorithm of Knuth, Morris and Pratt. A simpler search would compare each token of a long text
    with every prefix of every stop string. This would delay all answers, because they share one process.

    Attributes:
        matched: Length of the longest prefix of the stop string that is at the end of the text so far.
    """

    __slots__ = ("_borders", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        # For each prefix of the string: the length of the longest shorter prefix that is also at the end of this
        # prefix.
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
        """The matched length after one more character. The argument `matched` is less than the length of the string."""
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
        stopped: Whether a stop string has been found; nothing may be pushed after that.
    """

    def __init__(self, table: TokenTable, *, stop: Sequence[str] = (), skip_special: bool = True) -> None:
        self._table = table
        self._stop = [_StopString(text) for text in stop if text]
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded text that has not been shown yet
        self._shown = 0  # number of characters shown
        self._pending: deque[_HeldText] = deque()
        # for each token that is not certain yet, the number of characters up to its end
        self._ends: deque[int] = deque()
        self._certain = 0
        self.stopped = False

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Add a generated token."""
        if self._skip_special and token in self._table.special:
            self._ends.append(self._shown + len(self._held))
            return
        if logprob is not None:
            self._pending.append(_HeldText(self._shown + len(self._held), logprob))
        before = len(self._held)
        self._held += self._decoder.decode(self._table.bytes_of(token))
        unfinished, _ = self._decoder.getstate()
        self._ends.append(self._shown + len(self._held) + bool(unfinished))
        self._cut_at_stop(before)

    def certain(self) -> int:
        """Number of tokens so far whose text cannot become part of a stop string."""
        reach = self._shown + len(self._held) - self._uncertain()
        while self._ends and self._ends[0] <= reach:
            self._ends.popleft()
            self._certain += 1
        return self._certain

    def finish(self) -> None:
        """End the text: an unfinished character becomes U+FFFD, and nothing is held back any longer."""
        if not self.stopped:
            before = len(self._held)
            self._held += self._decoder.decode(b"", final=True)
            self._cut_at_stop(before)
            self._stop = []

    def take(self) -> tuple[str, list[TokenLogprob]]:
        """Text that may be shown now, and the log-probabilities of its tokens."""
        text = self._held[: len(self._held) - self._uncertain()]
        self._held = self._held[len(text) :]
        self._shown += len(text)
        ready: list[TokenLogprob] = []
        while self._pending and (not self._held or self._pending[0].start < self._shown):
            ready.append(self._pending.popleft().logprob)
        return text, ready

    def _cut_at_stop(self, before: int) -> None:
        """Look for a stop string that ends after the first `before` held characters, and cut the text where the stop
        string begins.
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
        """Length of the longest suffix of the held text that is a prefix of a stop string; 0 after a stop string has
        been found.
        """
        return 0 if self.stopped else max((stop.matched for stop in self._stop), default=0)
