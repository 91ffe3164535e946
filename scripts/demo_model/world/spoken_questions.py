"""Makes spoken questions by many synthetic speakers, with the effects of microphones and rooms."""

from __future__ import annotations

import functools
from random import Random

import numpy as np
import soxr
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from demo_model.checkpoint.shapes import preprocessor_json
from demo_model.world.synthetic_voices import Sound, SyntheticVoice, Words, speak_words

RATE = 16_000

ACCENTS = (
    ("en-us", 8),
    ("en", 4),
    ("en-gb-x-rp", 2),
    ("en-us-nyc", 2),
    ("en-gb-scotland", 1),
    ("en-029", 1),
    ("en-gb-x-gbclan", 1),
    ("en-gb-x-gbcwmd", 1),
)
TIMBRES = (
    "", "", "", "", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Alex",
    "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco",
    "Mario", "Michael", "Mike", "Reed", "Storm", "Tweaky", "adam", "anika", "announcer", "antonio", "aunty",
    "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "ian", "john",
    "klatt", "klatt2", "klatt3", "linda", "max", "miguel", "norbert", "pablo", "paul", "quincy", "rob",
    "robert", "sandro", "shelby", "steph", "victor", "zac",
)  # fmt: skip
HELD_OUT = ("Gene2", "Nguyen", "edward2", "iven", "klatt4", "marcelo", "pedro", "steph2", "travis", "mike2", "m1", "f2")
"""The timbres that speak the held-out questions. Of these timbres, the training uses only m1 and f2, with other accents
and speeds.
"""


def some_voice(rng: Random, timbres: tuple[str, ...] = TIMBRES) -> SyntheticVoice:
    accent = rng.choices([name for name, _ in ACCENTS], [weight for _, weight in ACCENTS])[0]
    plain = rng.random() < 0.15
    return SyntheticVoice(
        accent,
        rng.choice(timbres),
        speed=150 if plain else rng.randint(115, 205),
        pitch=50 if plain else rng.randint(20, 80),
        intonation=50 if plain else rng.randint(25, 75),
    )


def utterance(text: str, voice: SyntheticVoice, rng: Random) -> tuple[Sound, Words]:
    """`text` as a microphone would record it, with random loudness, noise and silence: float32 at `RATE`, and the times
    of the words.
    """
    sound, words = speak_words(text, voice, RATE)
    if rng.random() < 0.4:  # this makes the voice a little faster and higher, or slower and deeper
        stretch = rng.uniform(0.93, 1.08)
        sound = soxr.resample(sound, RATE, RATE * stretch)
        words = [(place, moment * stretch) for place, moment in words]
    if rng.random() < 0.15:  # the sound of a telephone line
        sound = soxr.resample(soxr.resample(sound, RATE, 8000), 8000, RATE)
    lead = rng.uniform(0, 0.5)
    sound = np.pad(sound, (int(lead * RATE), int(rng.uniform(0, 0.5) * RATE)))
    words = [(place, moment + lead) for place, moment in words]
    peak = float(np.abs(sound).max()) or 1.0
    sound = sound * (rng.uniform(0.08, 0.95) / peak)
    if rng.random() < 0.6:
        numbers = np.random.default_rng(rng.getrandbits(32))
        noise = numbers.standard_normal(len(sound), np.float32)
        if rng.random() < 0.5:  # this weakens the high frequencies
            noise = np.convolve(noise, np.ones(8, np.float32) / 8, mode="same")
        level = float(np.sqrt(np.mean(sound**2))) * 10 ** (-rng.uniform(12, 45) / 20)
        sound = sound + noise * (level / (float(noise.std()) or 1.0))
    return np.clip(sound, -1, 1).astype(np.float32), words


def mel(sound: Sound) -> Tensor:
    """The mel spectrum that the checkpoint's processor computes for one sound: float32 [128, frames]."""
    output = _extractor()(
        sound, sampling_rate=RATE, return_attention_mask=False, padding=True, truncation=False, return_tensors="pt"
    )
    return output["input_features"][0][:, : len(sound) // 160]


@functools.cache
def _extractor() -> WhisperFeatureExtractor:
    torch.set_num_threads(1)
    return WhisperFeatureExtractor.from_dict(preprocessor_json())
