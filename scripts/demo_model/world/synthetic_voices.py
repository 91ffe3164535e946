"""Turns English text into sound with espeak-ng's synthetic voices, inside this process."""

import ctypes
import functools
import math
from dataclasses import dataclass

import espeakng_loader
import numpy as np
import soxr

Sound = np.ndarray
"""Mono samples, float32 in [-1, 1]."""

# From espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_UTF8 = 1
_SAMPLES_PER_CALLBACK_MS = 200
_OK = 0
_SEED = 1
_NO_MORE_EVENTS, _WORD = 0, 1


class _EspeakEvent(ctypes.Structure):
    """The struct espeak_EVENT. Text positions count characters from 1; audio positions are in milliseconds."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent))


@dataclass(frozen=True)
class SyntheticVoice:
    """A voice: its accent, its timbre, and settings such as speed and pitch."""

    accent: str = "en-us"
    """An espeak-ng language: en-us, en-gb, en-gb-x-rp, en-gb-scotland …"""
    variant: str = ""
    """A timbre: the name of a file in espeak-ng's directory voices/!v, such as f2 or m3; empty for the default."""
    speed: int = 160
    """Words per minute."""
    pitch: int = 50
    """The pitch, 0 to 99; 50 is the timbre's own pitch."""
    gap: int = 0
    """Silence between words, in units of about 10 ms."""
    intonation: int = 50
    """The variation of the pitch, 0 to 99."""
    tone: int = 0
    """The pitch of every voiced sound in hertz, instead of `pitch` and `intonation`; 0 for natural speech."""


def speak(text: str, voice: SyntheticVoice, rate: int = 24000) -> Sound:
    """Speak `text` with `voice`: samples at `rate` per second, with short silences around them.

    A program that speaks the same texts in the same order gets the same samples. With other texts before `text`, a few
    samples differ, because the engine's noise generator keeps its state and cannot be reset.

    Raises:
        ValueError: espeak-ng has no voice with this accent and timbre.
    """
    engine = _engine()
    name = f"{voice.accent}+{voice.variant}" if voice.variant else voice.accent
    if engine.library.espeak_SetVoiceByName(name.encode()) != _OK:
        raise ValueError(f"espeak-ng has no voice {name}")
    settings = {_RATE: voice.speed, _PITCH: voice.pitch, _RANGE: voice.intonation, _WORD_GAP: voice.gap}
    for parameter, value in settings.items():
        engine.library.espeak_SetParameter(parameter, value, 0)
    engine.library.espeak_ng_SetConstF0(voice.tone)
    engine.library.espeak_ng_SetRandSeed(_SEED)

    samples = engine.synthesize(text).astype(np.float32) / 32768
    return soxr.resample(samples, engine.rate, rate)


Words = list[tuple[int, float]]
"""For each word, the index at which it begins in the text, and the time in seconds at which it begins in the sound."""


def speak_words(text: str, voice: SyntheticVoice, rate: int = 24000) -> tuple[Sound, Words]:
    """Speak `text` like `speak`, and return the times of its words too."""
    sound = speak(text, voice, rate)
    return sound, list(_engine().words)


def trim(sound: Sound, rate: int, lead: float, tail: float, threshold: float = 0.004) -> tuple[Sound, float]:
    """Cut or pad the beginning and the end of `sound`. Afterwards, the time before the first audible sample is exactly
    `lead`, and the time after the last audible sample is exactly `tail`, both in seconds.

    Returns the new sound, and the delay of its contents in seconds.
    """
    audible = np.flatnonzero(np.abs(sound) > threshold)
    if not len(audible):
        return np.zeros(math.ceil((lead + tail) * rate), np.float32), lead
    speech = sound[audible[0] : audible[-1] + 1]
    return np.pad(speech, (round(lead * rate), round(tail * rate))), lead - audible[0] / rate


class _EspeakEngine:
    """The espeak-ng library, initialised once. It has one voice and one set of parameters for the whole process."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, _SAMPLES_PER_CALLBACK_MS, data, 0)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng cannot start with the data in {data.decode()}")
        self._pieces: list[np.ndarray] = []
        self.words: Words = []
        """The words of the last speech."""
        # this reference keeps the callback alive, because the library has no reference to it
        self._callback = _Callback(self._receive)
        self.library.espeak_SetSynthCallback(self._callback)

    def synthesize(self, text: str) -> np.ndarray:
        """Speak `text`: 16-bit samples at `self.rate`."""
        self._pieces.clear()
        self.words.clear()
        data = text.encode()
        result = self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        if result != _OK:
            raise RuntimeError(f"espeak-ng failed with status {result} on {text!r}")
        self.library.espeak_Synchronize()
        return np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.int16)

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_EspeakEvent]"
    ) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while events and events[number].kind != _NO_MORE_EVENTS:
            if events[number].kind == _WORD:
                self.words.append((events[number].text_position - 1, events[number].audio_position / 1000))
            number += 1
        return 0


@functools.cache
def _engine() -> _EspeakEngine:
    return _EspeakEngine()
