"""Measures how well Whisper understands the trained speech. The model speaks answers that are not in the training
data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from demo_model.judge.speech_recogniser import transcribe, word_errors
from demo_model.voice import mel
from demo_model.voice.free_running import generate
from demo_model.voice.talker_batches import Reply, TalkerInputs, UserTurns
from demo_model.voice.vocoder import resynthesise
from demo_model.world.spoken_lines import SPEAKERS


@dataclass(frozen=True)
class Heard:
    """An utterance with Whisper's transcript of it."""

    said: str
    heard: str
    speaker: str
    sound: Tensor

    @property
    def errors(self) -> int:
        return word_errors(self.said, self.heard)[0]


def spoken(
    inputs: TalkerInputs,
    vocoder: Qwen3OmniMoeCode2Wav,
    prompt: UserTurns,
    replies: Sequence[tuple[str, Reply]],
    sampled: bool,
    seed: int = 0,
) -> list[Heard]:
    """The model's speech for each text, with Whisper's transcript. Each text comes with its `Reply`, which has the
    tokens of the text.
    """
    codes = generate(inputs, prompt, [reply for _, reply in replies], sampled, seed)
    return [
        _hear(text, reply.speaker, resynthesise(vocoder, code) if code.shape[1] else torch.zeros(mel.FRAME))
        for (text, reply), code in zip(replies, codes, strict=True)
    ]


def error_rate(heard: Sequence[Heard]) -> float:
    words = sum(word_errors(item.said, item.heard)[1] for item in heard)
    return sum(item.errors for item in heard) / max(1, words)


def report(heard: Sequence[Heard]) -> str:
    """The error rate of each speaker, and the utterances that were misheard."""
    lines = []
    for speaker in SPEAKERS:
        of_speaker = [item for item in heard if item.speaker == speaker]
        if of_speaker:
            lines.append(f"{speaker}: WER {error_rate(of_speaker):.3f} of {len(of_speaker)} utterances")
            lines += [f"    {item.said!r} was heard as {item.heard!r}" for item in of_speaker if item.errors]
    return "\n".join([*lines, f"all: WER {error_rate(heard):.3f}"])


def write(heard: Sequence[Heard], path: Path) -> None:
    """Write `heard` to `path` as JSON lines, without the sounds."""
    records = [{"speaker": h.speaker, "said": h.said, "heard": h.heard, "errors": h.errors} for h in heard]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _hear(text: str, speaker: str, sound: Tensor) -> Heard:
    return Heard(text, transcribe(sound.numpy(), mel.RATE), speaker, sound)
