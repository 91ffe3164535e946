"""Samples tokens for both language-model stages with the reference's logit processors. Equal seeds produce equal tokens
in any batch.

SGLang's own sampler differs from the reference in ways that users notice. Its repetition penalty ignores the prompt. A
seed cannot be combined with min_p, and a CPU cannot sample with a seed. All rows without a seed share one generator.
This sampler replaces SGLang's sampler in the model runner. The choice of each row depends only on the row's own logits,
parameters, seed and number of tokens so far. The other rows of the batch have no influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.layers.sampler import Sampler

from stages.grammars.matcher import Matcher
from stages.messages import IdLogprob, Sampling
from stages.reasoning_track import ReasoningTrack
from stages.sampling_filters import Filters, is_greedy, seed_key
from stages.sglang_engine.seeded_draws import Doubles, draw_ids, draw_numbers
from stages.sglang_engine.wide_draws import LEAST_VOCABULARY, is_wide, row_probabilities

# Number of logits in a block. The search for the largest logit goes block by block. The size of the released vocabulary
# is a multiple of this number.
_BLOCK = 64


class SamplingState:
    """One request's sampling parameters, its counts for the penalties, and the result of its latest pick.

    Args:
        params: The client's sampling parameters.
        prompt_ids: Ids that the repetition penalty counts besides the output, int64 [n]; empty for the talker.
        output_ids: The engine's growing list of generated ids.
        eos_ids: Ids that `min_tokens` forbids.
        logprobs: Number of alternatives to report with each pick, or None for no log-probabilities.
        suppressed: bool [vocab], the ids that are never picked, or None.
        matcher: Finds the ids that the request's grammar allows next; None without a grammar.
        picks_few: Whether to pick directly among the allowed ids when a grammar allows only few ids. If false, the ids
            that the grammar does not allow are banned. The direct pick is faster on a CPU, but slower on a GPU, because
            the host has to wait for the device.

    Attributes:
        reasoning: Tracks the reasoning in the output; None if the model does not reason.
    """

    __slots__ = (
        "_bias",
        "_counted",
        "_counts",
        "_eos",
        "_prompt",
        "eos_ids",
        "few",
        "logprobs",
        "matcher",
        "output_ids",
        "params",
        "picked",
        "picks_few",
        "prompt_ids",
        "reasoning",
        "seed",
        "suppressed",
    )

    def __init__(
        self,
        params: Sampling,
        *,
        prompt_ids: torch.Tensor,
        output_ids: Sequence[int],
        eos_ids: Sequence[int],
        logprobs: int | None = None,
        suppressed: torch.Tensor | None = None,
        matcher: Matcher | None = None,
        picks_few: bool = False,
    ) -> None:
        self.params = params
        self.prompt_ids = prompt_ids
        self.output_ids = output_ids
        self.eos_ids = list(eos_ids)
        self.logprobs = logprobs
        self.suppressed = suppressed
        self.matcher = matcher
        self.picks_few = picks_few
        self.seed = seed_key(params.seed)
        self.reasoning = ReasoningTrack(params.reasoning) if params.reasoning is not None else None
        # The result of the latest sampling step. The engine reads this result only if SGLang reports the token of the
        # step.
        self.picked: tuple[float, list[IdLogprob]] | None = None
        # The ids that the next pick has to choose from, int64 [n]. None unless `picks_few` is set and the grammar
        # allows only few ids.
        self.few: NDArray[np.int64] | None = None
        self._prompt: torch.Tensor | None = None  # bool [vocab], whether an id is in the prompt
        self._counts: torch.Tensor | None = None  # float32 [vocab], how often an id was generated
        self._counted = 0
        self._bias: tuple[torch.Tensor, torch.Tensor] | None = None
        self._eos: torch.Tensor | None = None

    @property
    def greedy(self) -> bool:
        return is_greedy(self.params)

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes the logits of the next pick."""
        params = self.params
        return (
            self.suppressed is not None
            or self.matcher is not None
            or params.repetition_penalty != 1.0
            or bool(params.presence_penalty or params.frequency_penalty or params.logit_bias)
            or len(self.output_ids) < params.min_tokens
            or self._thought_enough
        )

    @property
    def _thought_enough(self) -> bool:
        """Whether the reasoning has reached its limit, so that the next pick must be the closing marker."""
        if self.reasoning is None or self.params.thinking_budget is None:
            return False
        self.reasoning.follow(self.output_ids)
        return self.reasoning.open and self.reasoning.thoughts >= self.params.thinking_budget

    @property
    def plain(self) -> bool:
        """Whether the pick is simply the largest logit: sampling is greedy, no logit is adjusted, and no
        log-probability is reported.
        """
        return self.greedy and self.logprobs is None and not self.adjusts

    def uncounted(self) -> list[int]:
        """Generated ids that are not in the counts for the penalties yet. Empty if there are no penalties."""
        params = self.params
        penalized = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        return list(self.output_ids[self._counted :]) if penalized else []

    def count(self, ids: torch.Tensor, vocab: int) -> None:
        """Add `ids` to the counts that the penalties use.

        Args:
            ids: int64 [n], from `uncounted`, on the device of the logits.
            vocab: The length of the logits.
        """
        if self._counts is None:
            self._counts = torch.zeros(vocab, dtype=torch.float32, device=ids.device)
        self._counts.index_add_(0, ids, torch.ones(len(ids), device=ids.device))
        self._counted += len(ids)

    def adjust(self, logits: torch.Tensor) -> None:
        """Apply penalties, bias and bans to one row of float32 logits [vocab], in the reference's order."""
        params = self.params
        # no effect if the caller has already counted the new ids of all rows of the batch, in one call
        count_output([self], logits)
        if params.repetition_penalty != 1.0:
            seen = self._seen(logits) if self._counts is None else self._seen(logits) | (self._counts > 0)
            penalty = params.repetition_penalty
            logits.copy_(torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits))
        if params.presence_penalty or params.frequency_penalty:
            counts = self._counts
            if counts is not None:
                logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        if params.logit_bias:
            if self._bias is None:
                ids = torch.tensor(list(params.logit_bias), device=logits.device)
                self._bias = ids, torch.tensor(list(params.logit_bias.values()), device=logits.device)
            logits.index_add_(0, self._bias[0], self._bias[1].to(logits.dtype))
        self.few = None
        text = None if self.matcher is None else self._constrained
        if self.matcher is not None and text is not None:
            self._follow(self.matcher, text, logits)
        # a text with a grammar must not end inside its reasoning
        elif self.eos_ids and (self.matcher is not None or len(self.output_ids) < params.min_tokens):
            if self._eos is None:
                self._eos = torch.tensor(self.eos_ids, device=logits.device)
            logits.index_fill_(0, self._eos, -torch.inf)
        if self.suppressed is not None:
            logits.masked_fill_(self.suppressed, -torch.inf)
        if self._thought_enough:
            assert params.reasoning is not None
            logits.fill_(-torch.inf)
            logits[params.reasoning.closing_id] = 0

    def find_mask(self) -> None:
        """Let the matcher find the ids that may come next. The result is kept for `adjust`."""
        text = None if self.matcher is None else self._constrained
        if self.matcher is not None and text is not None:
            self.matcher.mask(text, stay=self._stays)

    @property
    def _constrained(self) -> Sequence[int] | None:
        """The part of the output that must follow the grammar: everything after the reasoning. None while the reasoning
        is open.
        """
        if self.reasoning is None:
            return self.output_ids
        self.reasoning.follow(self.output_ids)
        return None if self.reasoning.open else self.output_ids[self.reasoning.answer_start :]

    @property
    def _stays(self) -> bool:
        """Whether the next id must not end the text."""
        return self.params.ignore_eos or len(self.output_ids) < self.params.min_tokens

    def _follow(self, matcher: Matcher, text: Sequence[int], logits: torch.Tensor) -> None:
        """Ban the ids that the grammar does not allow. If only few ids are allowed and `picks_few` is set, store the
        allowed ids in `few` instead. If the next id is the first id of the answer, the id that begins reasoning is
        allowed too.
        """
        mask = matcher.mask(text, stay=self._stays)
        ids = mask.ids
        if self.reasoning is not None and self.reasoning.pending:
            opening = self.reasoning.opening_id
            ids = ids[ids != opening]
            if mask.allowed:
                ids = np.sort(np.append(ids, opening))
        if mask.allowed and self.picks_few:
            self.few = ids
        elif not mask.allowed and logits.device.type == "cpu":
            logits.numpy()[ids] = -np.inf  # for few ids, numpy takes a fraction of torch's time
        else:
            places = torch.from_numpy(ids).to(logits.device)
            if mask.allowed:
                allowed = logits[places]
                logits.fill_(-torch.inf)
                logits[places] = allowed
            else:
                logits.index_fill_(0, places, -torch.inf)

    def pick_of_few(self, logits: torch.Tensor) -> int:
        """Pick one of the ids in `few`, from adjusted logits float32 [vocab] on a CPU. The result is the same as if all
        other ids were banned.
        """
        assert self.few is not None
        values = logits.numpy()[self.few]
        if self.greedy:
            return int(self.few[values.argmax()])
        probabilities = np.zeros((1, len(logits)))
        probabilities[0, self.few] = row_probabilities(torch.from_numpy(values), self.params).numpy()
        return int(draw_ids(torch.from_numpy(probabilities), torch.from_numpy(self.numbers(len(logits)))[None]))

    def numbers(self, vocab: int) -> Doubles:
        """The random numbers for the next token: a hash of the seed and the number of tokens so far."""
        return draw_numbers(self.seed, len(self.output_ids), vocab)

    def _seen(self, logits: torch.Tensor) -> torch.Tensor:
        if self._prompt is None:
            self._prompt = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            self._prompt[self.prompt_ids.to(logits.device)] = True
        return self._prompt


class OmniSampler(Sampler):
    """Picks one token for each row.

    Attributes:
        rows: The batch's states; `expect` sets them.
        group: SGLang's group of the ranks that share the model, if there are several.
    """

    rows: Sequence[SamplingState] = ()
    group: Any = None
    _thread: ThreadPoolExecutor | None = None
    _masks: Future[None] | None = None

    def expect(self, rows: Sequence[SamplingState]) -> None:
        """Prepare for the next forward pass, whose batch has these rows. Call this method before every forward pass.

        With a large vocabulary, a thread finds the ids that the grammars allow while the model computes. Most of the
        time, the thread does not need Python's lock. With a small vocabulary, finding the ids takes less time than
        changing between threads. So in this case, `adjust` finds the ids.
        """
        self.rows = rows
        self._masks = None
        bound = [row for row in rows if row.matcher is not None and row.matcher.size >= LEAST_VOCABULARY]
        if bound:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="masks of grammars")
            self._masks = self._thread.submit(_find_masks, bound)

    def forward(
        self,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int]],
        positions: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Token ids, int64 [rows]. The arguments are those of SGLang's sampler. Its sampling options are ignored."""
        logits = logits_output.next_token_logits
        rows = self.rows
        if len(rows) != logits.shape[0]:
            raise RuntimeError(f"there are {len(rows)} sampling states, but {logits.shape[0]} rows of logits")
        if self._masks is not None:
            self._masks.result()
        if all(row.plain for row in rows):
            return self._agreed(largest(logits))
        reported = [index for index, row in enumerate(rows) if row.logprobs is not None]
        adjusted = raw = logits.float()
        if any(row.adjusts for row in rows):
            if reported:
                adjusted = raw.clone()
            count_output(rows, logits)
            for row, values in zip(rows, adjusted, strict=True):
                if row.adjusts:
                    row.adjust(values)
        ids = self._picked(adjusted)
        if reported:
            places = torch.tensor(reported, device=logits.device)
            _report(raw[places], ids[places], [rows[index] for index in reported])
        return self._agreed(ids)

    def _picked(self, adjusted: torch.Tensor) -> torch.Tensor:
        """The pick of each row, int64 [rows], from adjusted logits float32 [rows, vocab]."""
        rows = self.rows
        few = [index for index, row in enumerate(rows) if row.few is not None]
        if len(few) == len(rows):
            return torch.tensor([row.pick_of_few(values) for row, values in zip(rows, adjusted, strict=True)])
        drawn = [index for index, row in enumerate(rows) if not row.greedy and row.few is None]
        if len(drawn) == len(rows):
            return draw(adjusted, rows)
        ids = largest(adjusted)
        if drawn:
            places = torch.tensor(drawn, device=adjusted.device)
            ids[places] = draw(adjusted[places], [rows[index] for index in drawn])
        for index in few:
            ids[index] = rows[index].pick_of_few(adjusted[index])
        return ids

    def _agreed(self, ids: torch.Tensor) -> torch.Tensor:
        """The picks of rank 0, copied to every rank. The logits of the ranks may differ in their last bits, but all
        ranks must pick the same ids.
        """
        return ids if self.group is None else self.group.broadcast(ids)


def _find_masks(rows: Sequence[SamplingState]) -> None:
    for row in rows:
        row.find_mask()


def largest(logits: torch.Tensor) -> torch.Tensor:
    """The index of each row's largest logit, int64 [rows]. If several logits are the largest, the first one counts."""
    rows, vocab = logits.shape
    if logits.device.type != "cpu" or vocab < LEAST_VOCABULARY or vocab % _BLOCK:
        return torch.argmax(logits, dim=-1)
    # On a CPU, finding the largest value is five times faster than finding its index. So the index is only searched in
    # the first block that contains the largest value.
    blocks = logits.view(rows, vocab // _BLOCK, _BLOCK)
    first = blocks.amax(dim=-1).argmax(dim=-1, keepdim=True)
    inner = blocks.gather(1, first[:, :, None].expand(-1, -1, _BLOCK)).argmax(dim=-1)
    return (first * _BLOCK + inner)[:, 0]


def filtered_probabilities(logits: torch.Tensor, params: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities from adjusted logits float32 [rows, vocab] after the rows' filters; see `Filters.probabilities`."""
    return Filters.of(params, logits.shape[-1], logits.device).probabilities(logits)


def draw(logits: torch.Tensor, rows: Sequence[SamplingState]) -> torch.Tensor:
    """Sample one id for each row, int64 [rows], from adjusted logits, float32 [rows, vocab]."""
    numbers = torch.from_numpy(np.stack([row.numbers(logits.shape[-1]) for row in rows]))
    if is_wide(logits):
        # one row after the other, because the probabilities of one row fit into the cache
        return torch.cat(
            [
                draw_ids(row_probabilities(values, row.params)[None], own[None])
                for values, row, own in zip(logits, rows, numbers, strict=True)
            ]
        )
    probabilities = filtered_probabilities(logits, [row.params for row in rows])
    return draw_ids(probabilities, numbers.to(logits.device))


def count_output(rows: Sequence[SamplingState], logits: torch.Tensor) -> None:
    """Update the counts for the penalties of `rows`. All new ids are copied to the device at once."""
    new = [row.uncounted() for row in rows]
    if not any(new):
        return
    ids = torch.tensor([id_ for own in new for id_ in own], dtype=torch.int64, device=logits.device)
    for row, own in zip(rows, ids.split([len(own) for own in new]), strict=True):
        if len(own):
            row.count(own, logits.shape[-1])


def _report(raw: torch.Tensor, ids: torch.Tensor, rows: Sequence[SamplingState]) -> None:
    """Store each pick's log-probability and best alternatives in its row's state."""
    logprobs = torch.log_softmax(raw, dim=-1)
    chosen = logprobs.gather(1, ids[:, None])
    most = max(row.logprobs or 0 for row in rows)
    values, indices = torch.topk(logprobs, min(most, logprobs.shape[-1]), dim=-1)
    # Copy everything at once, in a type that holds both log-probabilities and ids exactly.
    table = torch.cat((chosen.double(), values.double(), indices.double()), dim=1).tolist()
    for row, (logprob, *tops) in zip(rows, table, strict=True):
        wanted, given = row.logprobs or 0, len(tops) // 2
        pairs = zip(tops[given:][:wanted], tops[:wanted], strict=True)
        row.picked = logprob, [IdLogprob(int(id_), value) for id_, value in pairs]
