"""Makes the texts that the three speakers of the demo model learn to speak. The texts are answers of every kind. Some
texts are cut off before their end.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from demo_model.voice import mel
from demo_model.world.grammar import HELLO, MYSELF, NOTHING_SHOWN, STILL, UNKNOWN, WELCOME, answer
from demo_model.world.pitch_alignment import in_step
from demo_model.world.synthetic_voices import SyntheticVoice, Words, speak_words, trim

SPEAKERS = {
    "ethan": SyntheticVoice("en-us", "m3", speed=140, gap=4, tone=125),
    "chelsie": SyntheticVoice("en-us", "anika", speed=130, gap=6, tone=175),
    "aiden": SyntheticVoice("en-us", "m3", speed=130, gap=4, tone=75),
}
"""The synthetic voice of each speaker in the checkpoint's configuration.

Each voice has one constant pitch, and a codec frame of 80 ms has a whole number of periods of this pitch. So the
codes of a frame describe the frame completely. If the pitch changed, the vocoder would also have to learn the phase
with which each frame begins, and the training would take many times as long. Whisper tiny.en understands these timbres,
speeds and gaps best.
"""

FIXED = (UNKNOWN, NOTHING_SHOWN, STILL, HELLO, MYSELF, WELCOME)
"""Answers whose words are always the same."""

_LOUDNESS = 0.07
"""Root mean square of every utterance, without its leading and trailing silence."""
_LEAD, _TAIL = 0.04, 0.16
"""Seconds of silence before and after every utterance."""
SILENT_FRAMES = 2
"""Silent codec frames at the end of every utterance."""
_FIRST_ARTICLE = re.compile(r"^(A|An|The) (?=\w)")
_HELD_OUT = 0.08
"""The share of answers that training never uses."""
_CUT_SHORT = 0.06
"""The share of the training's answers that are cut off before their end."""
_CONVERSATIONS = 6000
"""The number of random answers that are drawn to count how frequent each answer is."""


@dataclass(frozen=True)
class Line:
    """A text with the name of its speaker."""

    text: str
    speaker: str

    @property
    def sound(self) -> Tensor:
        """The samples from `spoken`."""
        return self.spoken()[0]

    def spoken(self) -> tuple[Tensor, Words]:
        """Speak the line: samples [1920 × frames] at 24 kHz, and the times of its words.

        The speech begins with hardly any silence, and ends with about two frames of silence.
        """
        voice = SPEAKERS[self.speaker]
        said = diction(self.text)
        spoken, words = speak_words(said, voice, mel.RATE)
        trimmed, later = trim(spoken, mel.RATE, _LEAD, _TAIL)
        sound = torch.from_numpy(in_step(trimmed, voice.tone, mel.RATE))
        voiced = sound[round(_LEAD * mel.RATE) : -round(_TAIL * mel.RATE)]
        sound = sound * (_LOUDNESS / voiced.square().mean().sqrt())
        whole = mel.frames(sound) * mel.FRAME
        comma = len(said) - len(self.text)  # 1 if `diction` has put a comma after the first word, otherwise 0
        moments = [
            (max(0, place - comma) if number else place, float(moment + later))
            for number, (place, moment) in enumerate(words)
        ]
        return torch.nn.functional.pad(sound, (0, whole - len(sound))).clamp(-1, 1), moments


def diction(text: str) -> str:
    """`text` as the synthetic voice should read it. If the first word is "A", "An" or "The", a comma is added after
    this word. Without the comma, listeners mishear the word.
    """
    return _FIRST_ARTICLE.sub(r"\1, ", text)


def lines(count: int, seed: int) -> list[Line]:
    """Lines for training, in random order: `count` different texts, each of them once for every speaker.

    A few of the texts stop before their end, like answers that reach `max_tokens`.
    """
    rng = Random(seed)
    texts: dict[str, None] = {}
    for text in _answers(rng, held_out=False):
        if rng.random() < _CUT_SHORT:
            words = text.split()
            text = " ".join(words[: rng.randint(1, len(words))])
        texts[text] = None
        if len(texts) == count:
            break
    found = [Line(text, speaker) for text in texts for speaker in SPEAKERS]
    rng.shuffle(found)
    return found


def repetitions(seed: int) -> dict[str, int]:
    """The texts of some thousand random answers, and the number of times that the training repeats each text.

    This number is the square root of the number of times that the text occurs among the random answers, rounded up.
    """
    rng = Random(seed)
    counts = Counter(answer(rng) for _ in range(_CONVERSATIONS))
    return {text: math.ceil(math.sqrt(count)) for text, count in counts.items()}


def held_out_texts(count: int, seed: int) -> list[str]:
    """`count` different answers. `lines` never returns these answers, whatever its seed is."""
    texts: dict[str, None] = {}
    for text in _answers(Random(seed), held_out=True):
        texts[text] = None
        if len(texts) == count:
            break
    return list(texts)


def _answers(rng: Random, held_out: bool) -> Iterator[str]:
    while True:
        text = answer(rng)
        if _is_held_out(text) == held_out:
            yield text


def _is_held_out(text: str) -> bool:
    """Whether `text` is held out from training. The result depends only on the text.

    Short and fixed answers are never held out, because some of their words may not occur in other answers.
    """
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return text not in FIXED and len(text.split()) > 3 and draw < _HELD_OUT
