"""Trains the thinker to answer: first on outputs of ideal towers, then on outputs of the trained towers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeThinkerTextAttention,
    Qwen3OmniMoeThinkerTextExperts,
    Qwen3OmniMoeThinkerTextModel,
    Qwen3OmniMoeThinkerTextTopKRouter,
)

from demo_model.checkpoint.shapes import model_configuration, token_embeddings
from demo_model.checkpoint.tokenizer import vocabulary
from demo_model.thinker.attention_targets import COUNTED, EVENLY, HEADS
from demo_model.thinker.decoder_batches import think
from demo_model.thinker.ideal_towers import imagined_sight, imagined_sound
from demo_model.thinker.prompts import PromptBatch, prompt, together
from demo_model.towers.vision_lessons import PAIRS, WORDS
from demo_model.towers.vision_training import ROW_LENGTH, codebook
from demo_model.training.training_run import TrainingRun, trained
from demo_model.world.conversations import LabelledConversation, converse
from demo_model.world.grammar import COLOURS, KINDS, NUMBERS, Exchange, all_words, drawing, motion, scene

_WEIGHTS = {"answer": 1.0, "uneven": 0.01, "astray": 0.1, "miscounted": 0.15}
_KEY_BLUR, _SAME_BLUR, _QUERY_BLUR, _SHARPER = 0.3, 0.2, 0.1, 1.2
_CELLS = 80
"""The number of cells in most pictures."""
ADDED_UP = (*KINDS, *COLOURS, *PAIRS)
"""The words whose amounts a head adds up, so that the thinker can count. A head has room for at most 48 words."""
_LOUDNESS = 4.0
"""The score that the untrained output head gives to a token, if the input of the head is the embedding of this token.
"""


class ThinkerDecoder(nn.Module):
    """The thinker's decoder and its output head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        config = model_configuration().thinker_config.text_config
        self.model = Qwen3OmniMoeThinkerTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for module in self.model.modules():
            if isinstance(module, Qwen3OmniMoeThinkerTextAttention):
                for part in (module.q_proj, module.k_proj, module.v_proj):
                    nn.init.normal_(part.weight, std=part.in_features**-0.5)
                _copy_what_is_alike(module)
            elif isinstance(module, Qwen3OmniMoeThinkerTextExperts):
                nn.init.normal_(module.gate_up_proj, std=module.hidden_dim**-0.5)
                nn.init.normal_(module.down_proj, std=0.6 * module.intermediate_dim**-0.5)
            elif isinstance(module, Qwen3OmniMoeThinkerTextTopKRouter):
                nn.init.normal_(module.weight, std=0.5 * module.hidden_dim**-0.5)
        layer, head = HEADS[EVENLY]
        _add_up(self.model.layers[layer], head)
        table = self.model.embed_tokens.weight
        table.data.copy_(torch.from_numpy(token_embeddings()))
        table.requires_grad_(False)
        self.lm_head.weight.data.copy_(_LOUDNESS * table / config.hidden_size)


class ThinkerInTraining(nn.Module):
    """A thinker with two extra heads. The heads predict how many things the thinker sees. Only training uses the
    heads.
    """

    def __init__(self, thinker: ThinkerDecoder):
        super().__init__()
        self.thinker = thinker
        hidden = thinker.model.config.hidden_size
        self.tellers = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, len(NUMBERS))) for _ in COUNTED
        )

    def forward(self, batch: PromptBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return two values: the scores of all tokens in each row that has a target, [targets, vocabulary], and the
        parts of the loss.
        """
        with torch.autocast("cpu", torch.bfloat16):
            hidden, unevenness, elsewhere, between = think(
                self.thinker.model, batch.rows, batch.positions, batch.deep, batch.looks
            )
        wanted = batch.targets >= 0
        scores = self.thinker.lm_head(hidden[wanted].float())
        miscounted = hidden.new_zeros(())
        for teller, layer, counts in zip(self.tellers, COUNTED, batch.counts, strict=True):
            if len(counts.numbers):
                told = teller(between[layer][counts.prompts, counts.origins].float())
                miscounted = miscounted + F.cross_entropy(told, counts.numbers)
        answer = F.cross_entropy(scores, batch.targets[wanted])
        return scores, {"answer": answer, "uneven": unevenness, "astray": elsewhere, "miscounted": miscounted}


@torch.no_grad()
def _copy_what_is_alike(attention: Any) -> None:
    """Initialise the attention heads. In every second head, each row attends to the rows that are similar to it. All
    heads copy the rows to which they attend.

    Most words of an answer also occur in the question or in the visual rows, as the same embeddings. So a large part of
    an answer can be copied.
    """
    size, groups = attention.head_dim, attention.num_key_value_groups
    keys, values = (part.weight.unflatten(0, (-1, size)) for part in (attention.k_proj, attention.v_proj))
    for head in range(len(keys) * groups):
        here = slice(head * size, (head + 1) * size)
        if head % groups == 0:
            attention.q_proj.weight[here] = keys[head // groups]
        attention.o_proj.weight[:, here] = 0.5 * values[head // groups].T


@torch.no_grad()
def _add_up(layer: Any, head: int) -> None:
    """Initialise a head so that it attends to all visual rows evenly, and outputs the total amount of each word in
    these rows.

    If a head attended to rows by their contents, some things would get more attention than others, and sums would be
    wrong by a third. So this head's keys are a component that all visual rows contain, and its queries are a component
    that all tokens in conversations contain. (The same holds for the other head in its group, which has the same keys.)
    If a picture shows one thing more, the average over the rows changes by only a hundredth. With random initial
    values, the head would learn slowly from such a small change. So the head's values begin as the amounts of
    `ADDED_UP`, and the head outputs each amount in a separate direction.
    """
    attention, words, gains = layer.self_attn, codebook(), layer.input_layernorm.weight
    size = attention.head_dim
    group = head // attention.num_key_value_groups
    shared = slice(group * size, (group + 1) * size)
    steady = size // 2 - 1  # the component that rotary positions rotate least
    seen = gains * words / ROW_LENGTH**0.5
    amounts = torch.linalg.pinv(seen)
    numbers = torch.Generator().manual_seed(7)
    key = torch.randn(size, words.shape[1], generator=numbers) * _KEY_BLUR / words.shape[1] ** 0.5
    # After this change, the attention depends less on the contents of the rows, and is nearly even.
    key = key - (1 - _SAME_BLUR) * key @ amounts @ seen
    key[steady] = size**0.5 * amounts[:, -1]
    attention.k_proj.weight[shared] = key
    read = gains * torch.from_numpy(token_embeddings())[_read_tokens()]
    alike = torch.linalg.solve(read.T @ read + 9 * torch.eye(read.shape[1]), read.sum(0))
    for other in range(group * attention.num_key_value_groups, (group + 1) * attention.num_key_value_groups):
        query = torch.randn(size, words.shape[1], generator=numbers) * _QUERY_BLUR / words.shape[1] ** 0.5
        query[steady] = size**0.5 * alike
        attention.q_proj.weight[other * size : (other + 1) * size] = query
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[steady] *= _SHARPER
    readings = amounts[:, [WORDS.index(word) for word in ADDED_UP]].T
    loudness = 1 / readings.norm(dim=1).mean()  # this makes the values as large as values from random weights
    values = attention.v_proj.weight[shared]
    values[: len(ADDED_UP)] = readings * loudness
    told = torch.zeros(values.shape[1], size)
    told[:, : len(ADDED_UP)] = sum_directions().T * (_CELLS / loudness)
    attention.o_proj.weight[:, head * size : (head + 1) * size] = told


def sum_directions() -> Tensor:
    """The directions in which a new thinker outputs the amounts of `ADDED_UP`: float32 [sums, hidden]."""
    width = codebook().shape[1]
    return torch.randn(len(ADDED_UP), width, generator=torch.Generator().manual_seed(6)) / width**0.5


def _read_tokens() -> list[int]:
    """The tokens that occur in conversations."""
    marks = ("<|im_start|>", "<|im_end|>", "<|vision_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "\n")
    known = {token: number for number, token in enumerate(vocabulary().tokens)}
    words = [known[word.encode()] for word in all_words() if word.encode() in known]
    return [*words, *(vocabulary().id(mark) for mark in marks)]


Source = Callable[[Random, str], LabelledConversation]
"""A function that makes a conversation. The conversation is about a picture or a clip, or it has no media."""


def imagined(names: Path, spoken_share: float = 0.15, most_turns: int = 6) -> Source:
    """Return a source of conversations whose media rows are outputs of ideal towers.

    The conversations are long and mostly typed, because such conversations teach the most in a given time.
    """

    def make(rng: Random, kind: str) -> LabelledConversation:
        numbers = torch.Generator().manual_seed(rng.getrandbits(40))
        facts = {
            "picture": lambda: scene(rng),
            "clip": lambda: motion(rng) if rng.random() < 0.55 else drawing(rng),
            "nothing": lambda: None,
        }[kind]()
        seen = None if facts is None else imagined_sight(facts, rng, numbers)

        def hear(exchange: Exchange, rng: Random) -> tuple[Exchange, Tensor]:
            return exchange, imagined_sound(exchange.question, names, rng, numbers)

        return converse(facts, seen, hear, rng, spoken_share, most_turns)

    return make


def batches(
    sources: list[tuple[Source, float]], seed: int, size: int, names: Path
) -> Iterator[tuple[PromptBatch, list[LabelledConversation]]]:
    """Yield an unlimited number of batches. Each batch has conversations of one kind, because conversations of
    different kinds differ in length.
    """
    rng = Random(seed)
    while True:
        kind = rng.choices(("picture", "clip", "nothing"), (62, 30, 8))[0]
        # A clip has several times as many rows as a picture.
        number = {"picture": size, "clip": max(2, size // 2), "nothing": size}[kind]
        chosen = []
        for _ in range(number):
            make = rng.choices([source for source, _ in sources], [weight for _, weight in sources])[0]
            chosen.append(make(rng, kind))
        prompts = [prompt(one.turns, names, one.system, one.facts) for one in chosen]
        yield together(prompts), chosen


@torch.no_grad()
def right_answers(
    batch: PromptBatch, conversations: list[LabelledConversation], scores: Tensor
) -> dict[str, list[bool]]:
    """Whether each answer is right. An answer is right if, at each of its positions, the token with the highest score
    is the correct token.

    Returns a list for each task, a list for typed questions ("typed"), and a list for spoken questions ("spoken"). So
    each answer has an entry in two lists.
    """
    wanted = batch.targets >= 0
    hits = scores.argmax(-1) == batch.targets[wanted]
    found: dict[str, list[bool]] = defaultdict(list)
    spread = torch.zeros_like(wanted)
    spread[wanted] = hits
    for number, conversation in enumerate(conversations):
        flags = spread[number][wanted[number]].tolist()
        ids = batch.targets[number][wanted[number]].tolist()
        end = ids[-1]  # the token that ends every answer
        start = 0
        for task, spoken in zip(conversation.tasks, conversation.spoken, strict=True):
            stop = ids.index(end, start) + 1
            right = all(flags[start:stop])
            found[task].append(right)
            found["spoken" if spoken else "typed"].append(right)
            start = stop
    return found


def train(
    directory: Path,
    thinker: ThinkerDecoder,
    sources: list[tuple[Source, float]],
    names: Path,
    steps: int,
    size: int = 8,
    rate: float = 2e-3,
    seed: int = 0,
) -> ThinkerDecoder:
    pupil = ThinkerInTraining(thinker)
    run = TrainingRun(directory, pupil, steps, rate, warmup=100, save_every=100, muon=True)
    tally: dict[str, list[bool]] = defaultdict(list)
    endless = batches(sources, 3_000_000 + seed + run.done, size, names)
    for _ in run:
        batch, conversations = next(endless)
        scores, parts = pupil(batch)
        for task, right in right_answers(batch, conversations, scores).items():
            tally[task] = (tally[task] + right)[-300:]
        shares = {task: torch.tensor(right, dtype=torch.float32).mean() for task, right in sorted(tally.items())}
        loss = sum((weight * parts[name] for name, weight in _WEIGHTS.items()), torch.zeros(()))
        run.update({"loss": loss, **{name: part.detach() for name, part in parts.items()}, **shares})
    return thinker


def trained_thinker(directory: Path) -> ThinkerDecoder:
    """Load the thinker that `train` saved in `directory`, without the extra heads that only training uses."""
    thinker: ThinkerDecoder = trained(ThinkerInTraining(ThinkerDecoder()), directory).thinker
    return thinker
