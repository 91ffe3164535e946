"""Trains the talker and its code predictor to speak. Training uses teacher forcing on whole answers after random
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeTalkerConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

from demo_model.training.training_run import TrainingRun
from demo_model.voice.free_running import penalised
from demo_model.voice.talker_batches import (
    Reply,
    TalkerInputs,
    UserTurns,
    positions,
    residual_logits,
    states,
)
from stages.messages import ASSISTANT_ROWS

_BATCH_ROWS = 700
"""The number of rows in a training step. A step has as many answers as fit into this number of rows. All answers of a
step follow the same prompt.
"""
_SLIPS, _RESIDUAL_SLIPS = 0.06, 0.12
"""The share of frames whose first code is replaced by a similar code, and the share of frames whose residual codes are
replaced. These replacements imitate sampling, which does not always choose the right code.
"""
_DEAFENED, _DEAF_SLIPS = 0.3, 0.5
"""The share of lessons with many wrong codes, and the share of wrong frames in these lessons. In these lessons the
talker cannot rely on its earlier codes, so it learns to follow the text.
"""
_NEAR = 12
"""For each code, the number of similar codes by which it may be replaced."""
_PREDICTED_EVERY = 2
"""The code predictor is trained on some of the frames. This number is the distance between two of these frames. If the
code predictor were trained on all frames, its training would take half of the time of a step.
"""
_CODE_STD = 0.35
_READING_LAYER = -2
"""The index of the hidden states that must predict the current and the next token. These states are the input of the
last layer.
"""
_READING = 0.5
"""The weight, in the loss, of the prediction of the current and the next token."""


@dataclass(frozen=True)
class TalkerLesson:
    """An answer, the codes of its speech, and the token that is spoken in each frame."""

    reply: Reply
    codes: Tensor
    """[frames, groups]."""
    said: Tensor
    """int64 [frames]: the index of the token that is spoken in each frame. In the final silence, the index equals the
    number of tokens.
    """


class TalkerInTraining(nn.Module):
    """A talker with two extra heads, which only training uses. They predict the token that is being spoken and the next
    token.

    The talker gets one text token per frame, but it needs several frames to speak a token. So it must remember its
    position in the text. Without the extra heads, the talker would learn only slowly to remember this position.
    """

    def __init__(self, talker: Qwen3OmniMoeTalkerForConditionalGeneration):
        super().__init__()
        self.talker = talker
        hidden, words = talker.config.text_config.hidden_size, talker.config.thinker_hidden_size
        self.now, self.next = nn.Linear(hidden, words), nn.Linear(hidden, words)

    def reading(self, hidden: Tensor, wanted: Tensor, embeddings: Tensor) -> Tensor:
        """The cross entropy of the tokens that are predicted from the states `hidden` [frames, hidden]. `wanted`
        [frames, 2] contains the current and the next token.
        """
        scale = embeddings.shape[1] ** -0.5
        each = [
            F.cross_entropy(scale * head(hidden) @ embeddings.T, token)
            for head, token in zip((self.now, self.next), wanted.T, strict=True)
        ]
        return torch.stack(each).mean()


def new_talker(
    config: Qwen3OmniMoeTalkerConfig, seed: int, code_rows: Tensor | None = None
) -> Qwen3OmniMoeTalkerForConditionalGeneration:
    """Return an untrained talker.

    The weights are drawn so that each matrix keeps the root mean square of its input, except for the heads, whose
    weights are smaller. The sum of a frame's code embeddings has a root mean square of about 1.

    With the codec's `code_rows` [groups, codes, hidden] as embeddings, similar codes have similar embeddings from the
    first step on.
    """
    torch.manual_seed(seed)
    talker = Qwen3OmniMoeTalkerForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in talker.named_parameters():
            if "codec_embedding" in name:
                parameter.normal_(std=_CODE_STD)
            elif parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        if code_rows is not None:
            embeddings = [talker.model.codec_embedding, *talker.code_predictor.model.codec_embedding]
            for embedding, rows in zip(embeddings, code_rows, strict=True):
                embedding.weight[: len(rows)] = rows
        for layer in talker.model.layers:
            layer.mlp.gate.weight.normal_(std=0.02)
        talker.codec_head.weight.mul_(0.3)
        for head in talker.code_predictor.lm_head:
            head.weight.mul_(0.3)
    return talker


def train(
    directory: Path,
    pupil: TalkerInTraining,
    inputs: TalkerInputs,
    lessons: Sequence[TalkerLesson],
    prompts: Callable[[int, torch.Generator], UserTurns],
    neighbours: Tensor,
    *,
    steps: int,
    rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train the talker of `pupil`. `inputs` must use the same talker.

    Args:
        prompts: Returns the common prompt of all answers of a step. Its arguments are the step's number and the step's
            generator of random numbers.
        neighbours: [groups, codes, near], the codes that may replace each code.
    """
    # for such short sequences, eager attention takes half the time of the default
    inputs.talker.set_attn_implementation("eager")
    run = TrainingRun(directory, pupil, steps, rate, seed=seed, warmup=60, save_every=50, muon=True)
    by_length = sorted(lessons, key=lambda lesson: len(lesson.codes))
    for step in run:
        generator = run.generator(step)
        asked = prompts(step, generator)
        batch = _batch(by_length, generator)
        slipped = [slips(lesson.codes, neighbours, generator) for lesson in batch]
        predicted = slice(step % _PREDICTED_EVERY, None, _PREDICTED_EVERY)
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(inputs, batch, asked, slipped, predicted, pupil)
        run.update(loss)


def losses(
    inputs: TalkerInputs,
    lessons: Sequence[TalkerLesson],
    prompt: UserTurns,
    read: Sequence[Tensor],
    predicted: slice = slice(None),
    pupil: TalkerInTraining | None = None,
) -> dict[str, Tensor]:
    """The cross entropies of the first codes and the end of speech ("first"), and of the other codes ("rest").

    "loss" is the sum. If there is a `pupil`, the sum includes the cross entropy of the tokens that are being said
    ("reading").

    The loss of the first codes is computed after the repetition penalty, because generation always applies this
    penalty. So the talker learns to repeat a code where necessary, in spite of the penalty.

    Args:
        read: For each lesson, the codes [frames, groups] that the talker reads as its own speech so far.
        predicted: The frames whose residual codes (all codes after the first one) count in the loss.
    """
    talker, config = inputs.talker, inputs.config.talker_config
    rows = []
    for lesson, codes in zip(lessons, read, strict=True):
        spoken = inputs.frame_rows(codes) + inputs.trailing_rows(lesson.reply, len(codes))
        rows.append(torch.cat([inputs.assistant_rows(lesson.reply), spoken]))
    places = positions(prompt, len(prompt.ids) + max(len(row) for row in rows))
    layers = states(talker, inputs.user_rows(prompt), rows, places)
    start = ASSISTANT_ROWS - 1
    # for each lesson, the states that choose the frames and the end, and the states that predict the spoken tokens
    choosing, reading = [], []
    for index, lesson in enumerate(lessons):
        choosing.append(layers[-1][index, start : start + len(lesson.codes) + 1])
        reading.append(layers[_READING_LAYER][index, start : start + len(lesson.codes)])

    codebook = config.code_predictor_config.vocab_size
    choices = torch.tensor([*range(codebook), config.codec_eos_token_id])
    seen = torch.cat([_seen(codes[:, 0], codebook) for codes in read])
    logits = penalised(F.linear(torch.cat(choosing), talker.codec_head.weight[choices]), seen)
    wanted = torch.cat([F.pad(lesson.codes[:, 0], (0, 1), value=codebook) for lesson in lessons])
    first = F.cross_entropy(logits, wanted)

    codes = torch.cat([lesson.codes for lesson in lessons])[predicted]
    residual = residual_logits(talker, torch.cat([chosen[:-1] for chosen in choosing])[predicted], codes)
    each = torch.stack([F.cross_entropy(row, code) for row, code in zip(residual, codes.T[1:], strict=True)])
    right = (logits.argmax(dim=-1) == wanted).float().mean()
    loss = {"loss": first + each.mean(), "first": first.detach(), "rest": each.mean().detach(), "right": right}
    if pupil is not None:
        wanted = torch.cat([_tokens_at(lesson, inputs.config.tts_eos_token_id) for lesson in lessons])
        loss["reading"] = pupil.reading(torch.cat(reading), wanted, inputs.embeddings)
        loss["loss"] = loss["loss"] + _READING * loss["reading"]
    return loss


def _tokens_at(lesson: TalkerLesson, end: int) -> Tensor:
    """The current and the next spoken token in each frame: [frames, 2]."""
    ids = F.pad(lesson.reply.ids, (0, 2), value=end)
    return torch.stack([ids[lesson.said], ids[lesson.said + 1]], dim=1)


def slips(codes: Tensor, neighbours: Tensor, generator: torch.Generator) -> Tensor:
    """`codes` [frames, groups], in which some codes are replaced by similar codes. In some lessons, half of the frames
    are replaced by random codes instead.
    """
    if torch.rand((), generator=generator) < _DEAFENED:
        lost = torch.rand(len(codes), 1, generator=generator) < _DEAF_SLIPS
        return torch.where(lost, torch.randint(neighbours.shape[1], codes.shape, generator=generator), codes)
    shares = torch.full((codes.shape[1],), _RESIDUAL_SLIPS)
    shares[0] = _SLIPS
    slipped = torch.rand(codes.shape, generator=generator) < shares
    which = torch.randint(neighbours.shape[2], codes.shape, generator=generator)
    groups = torch.arange(codes.shape[1]).expand_as(codes)
    return torch.where(slipped, neighbours[groups, codes, which], codes)


def nearest_codes(codebooks: Tensor) -> Tensor:
    """For each code in `codebooks` [groups, codes, size], the codes nearest to it: [groups, codes, near]."""
    distances = torch.cdist(codebooks, codebooks)
    return distances.topk(_NEAR + 1, largest=False).indices[..., 1:]


def _batch(lessons: Sequence[TalkerLesson], generator: torch.Generator) -> list[TalkerLesson]:
    """Choose answers of similar length, so that there is little padding."""
    start = int(torch.randint(len(lessons), (), generator=generator))
    count = max(2, _BATCH_ROWS // (len(lessons[start].codes) + ASSISTANT_ROWS))
    near = lessons[max(0, start - 2 * count) : start + 2 * count]
    return [near[i] for i in torch.randperm(len(near), generator=generator)[:count].tolist()]


def _seen(first: Tensor, codebook: int) -> Tensor:
    """A mask of the codes chosen before each frame and before the end: bool [frames + 1, codebook + 1]."""
    said = nn.functional.one_hot(first, codebook + 1).cumsum(dim=0) > 0
    return F.pad(said, (0, 0, 1, 0))
