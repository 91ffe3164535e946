"""Finds the words of a spoken answer that a listener has heard up to a time.

With each codec frame, from the first frame on, the talker reads one token of text. So no token can be spoken before the
frame for which the talker read it. Speech is slower than one token per frame, and the exact time of a word is not
known. So the time of each word is estimated. The estimate is never earlier than the frame for which the talker read the
word.

- If the sound of an answer is complete, each word gets a part of the sound in proportion to the word's length.
- If the sound was cut off, the words are spoken at the average pace of speech.
"""

from __future__ import annotations

import re

from gateway.api.speech_format import SAMPLE_RATE

FRAME_SAMPLES = 1920
"""Samples of one codec frame."""

# Number of codec frames in which one token of text is spoken. This average is used if the length of the complete answer
# is not known. English and Chinese are both spoken at about three to four tokens per second.
FRAMES_PER_TOKEN = 3.8

_WORD = re.compile(r"\S+\s*")
# In scripts without spaces, each of these characters counts as a word.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")


class SpokenWords:
    """The text and the sound of one spoken answer while it is generated.

    Attributes:
        text: The text so far.
        samples: Number of samples so far, at `SAMPLE_RATE`.
        complete: Whether the whole sound has been made.

    Args:
        text: The whole text of an answer whose sound this server does not generate.
    """

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.samples = 0
        self.complete = bool(text)
        self._ends: list[int] = []  # for each token, the length of the text up to the end of the token

    def add_text(self, text: str, tokens: int) -> None:
        """Record `text`. `tokens` is the number of tokens of `text`. If there are several tokens, each token gets an
        equal part of the text.
        """
        begin = len(self.text)
        self.text += text
        tokens = max(tokens, 1)
        self._ends += [begin + len(text) * (index + 1) // tokens for index in range(tokens)]

    def add_sound(self, samples: int) -> None:
        """Record samples of sound."""
        self.samples += samples

    def heard(self, samples: float) -> str:
        """The words that have been spoken completely when this number of samples has been played."""
        if self.complete and samples >= self.samples:
            return self.text
        frames = samples / FRAME_SAMPLES
        limit = self._length_after(int(frames))
        if self.complete:
            estimate = int(len(self.text) * samples / self.samples)
        else:
            estimate = self._length_after(int(frames / FRAMES_PER_TOKEN))
        return _whole_words(self.text, min(limit, estimate))

    def _length_after(self, tokens: int) -> int:
        if tokens <= 0 or not self._ends:
            return 0
        return self._ends[min(tokens, len(self._ends)) - 1]


def samples_in(milliseconds: float) -> float:
    """The number of samples in a sound of this length."""
    return milliseconds * SAMPLE_RATE / 1000


def _whole_words(text: str, length: int) -> str:
    """The words that lie completely within the beginning of a text, without white space at the end. `length` is the
    number of characters in this beginning.
    """
    end = 0
    for match in _WORD.finditer(text):
        word = match.group().rstrip()
        word_end = match.start() + len(word)
        if word_end <= length:
            end = word_end
            continue
        if _UNSPACED.search(word) and length > match.start():
            end = length
        break
    return text[:end].rstrip()
