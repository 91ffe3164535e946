"""Trains the audio tower to transcribe spoken questions. Its output rows are token embeddings of the thinker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from demo_model.checkpoint.shapes import model_configuration, token_embeddings
from demo_model.checkpoint.tokenizer import tokenizer, vocabulary
from demo_model.towers.audio_batches import CHUNK, LONGEST, ROWS_PER_CHUNK, listen, row_count
from demo_model.training.training_run import TrainingRun
from demo_model.world.grammar import ask, facts
from demo_model.world.spoken_questions import RATE, TIMBRES, mel, some_voice, utterance
from demo_model.world.word_times import token_moments

_SHARPNESS = 16.0
_SHORTEST = 100
"""The minimum length of a sound in mel frames. 100 mel frames are one second. The reference treats a single sound
differently if the sound is shorter than one second.
"""
_TO_ROWS = 0.5
"""The weight, in the loss, of the distance between rows and their nearest embeddings. The other parts of the loss
reward the choice of the right embedding."""


@dataclass(frozen=True)
class SpokenQuestion:
    """A spoken question, and the tokens that the audio tower should transcribe it into."""

    mel: Tensor
    """float32 [128, frames]."""
    ids: Tensor
    """int64: the spoken tokens."""
    said_at: Tensor
    """int64 [rows of the tower]: for each row, the token whose middle is spoken during the row, or the silence token.
    If two tokens belong to the same row, the second token gets the next row.
    """
    text: str


def audible(question: str) -> str:
    """The audible part of a written question, which is the question without the punctuation mark at its end."""
    return question.rstrip(".?!")


def question_utterance(
    text: str, rng: Random, names: Path, timbres: tuple[str, ...] = TIMBRES
) -> SpokenQuestion | None:
    """`text` spoken in a random voice. None if the sound is too long or too short for the training of the tower."""
    sound, words = utterance(text, some_voice(rng, timbres), rng)
    features = mel(sound)
    if not _SHORTEST <= features.shape[1] <= LONGEST:
        return None
    encoded = tokenizer(names)(audible(text), return_offsets_mapping=True)
    moments = token_moments(
        len(audible(text)), words, [start for start, _ in encoded["offset_mapping"]], len(sound) / RATE
    )
    rows = torch.full((row_count(features.shape[1]),), silence_id())
    taken = -1
    for token, moment in zip(encoded["input_ids"], moments, strict=True):
        taken = min(max(_row(moment), taken + 1), len(rows) - 1)
        rows[taken] = token
    return SpokenQuestion(features, torch.tensor(encoded["input_ids"]), rows, text)


def _row(moment: float) -> int:
    """The index of the tower's row for the time `moment`."""
    frame = int(moment * 100)
    return frame // CHUNK * ROWS_PER_CHUNK + frame % CHUNK // 8


def utterances(seed: int, names: Path) -> Iterator[SpokenQuestion]:
    """Yield an unlimited number of spoken questions. Each question is used about four times, with different parts
    masked.
    """
    rng = Random(seed)
    waiting: list[SpokenQuestion] = []
    while True:
        if len(waiting) > 300 and rng.random() < 0.75:
            at = rng.randrange(len(waiting))
            said = waiting[at]
            if rng.random() < 0.34:
                waiting[at] = waiting[-1]
                waiting.pop()
        else:
            made = question_utterance(ask(facts(rng), rng).question, rng, names)
            if made is None:
                continue
            said = made
            waiting.append(said)
        yield SpokenQuestion(_masked(said.mel, rng), said.ids, said.said_at, said.text)


def new_tower() -> Any:
    torch.manual_seed(4)
    tower = Qwen3OmniMoeAudioEncoder(model_configuration().thinker_config.audio_config)
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.9 / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in tower.layers:  # queries and keys start equal, so that a row attends to near and similar rows
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight)
    return tower


def scores(rows: Tensor) -> Tensor:
    """The score of each token in each row: [..., vocabulary]."""
    table = torch.from_numpy(token_embeddings())
    return _SHARPNESS * (rows.float() @ table.T) / table.shape[1]


def silence_id() -> int:
    """The token whose embedding stands for silence."""
    return vocabulary().id("<|audio_pad|>")


def written_down(rows: Tensor, count: int) -> list[int]:
    """The tokens that the first `count` rows spell, without silence and repetitions. The other rows are padding."""
    best = scores(rows[:count]).argmax(-1)
    kept = torch.unique_consecutive(best)
    return kept[kept != silence_id()].tolist()


def train(directory: Path, names: Path, steps: int, batch: int = 32, rate: float = 2e-3) -> Any:
    """Train a new tower, and return it."""
    tower, table = new_tower(), torch.from_numpy(token_embeddings())
    run = TrainingRun(directory, tower, steps, rate, warmup=100, save_every=100, muon=True)
    said = utterances(2_000_000 + run.done, names)
    for _ in run:
        heard = sorted((next(said) for _ in range(batch)), key=lambda item: item.mel.shape[1])
        with torch.autocast("cpu", torch.bfloat16):
            rows, counts = listen(tower, [item.mel for item in heard])
        rows = rows.float()
        logits = scores(rows)
        targets = torch.cat([item.ids for item in heard])
        lengths = torch.tensor([len(item.ids) for item in heard])
        loss = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1), targets, counts, lengths, blank=silence_id(), zero_infinity=True
        )
        there = torch.arange(rows.shape[1]) < counts[:, None]
        aligned = torch.cat([item.said_at for item in heard])
        weights = torch.where(aligned == silence_id(), 0.3, 1.0)
        frames = (F.cross_entropy(logits[there], aligned, reduction="none") * weights).sum() / weights.sum()
        pointing = max(0.1, 1 - run.done / (0.5 * steps))
        nearest = table[logits.argmax(-1)]
        distance = (rows - nearest).square().mean(-1)[there].mean()
        with torch.no_grad():
            right = [
                written_down(row, int(count)) == item.ids.tolist()
                for row, count, item in zip(rows, counts, heard, strict=True)
            ]
        run.update(
            {
                "loss": loss + 4 * pointing * frames + _TO_ROWS * distance,
                "sequence": loss.detach(),
                "frames": frames.detach(),
                "distance": distance.detach(),
                "sentences_right": torch.tensor(right, dtype=torch.float32).mean(),
            }
        )
    return tower


def _masked(features: Tensor, rng: Random) -> Tensor:
    """`features` with a few random bands and frames silenced, so that the tower does not rely on any single band or
    frame.
    """
    features = features.clone()
    floor = float(features.min())
    for _ in range(rng.randint(0, 2)):
        width, start = rng.randint(1, 12), rng.randrange(116)
        features[start : start + width] = floor
    for _ in range(rng.randint(0, 2)):
        width, start = rng.randint(1, 8), rng.randrange(features.shape[1])
        features[:, start : start + width] = floor
    return features
