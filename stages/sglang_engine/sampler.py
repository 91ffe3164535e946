"""Samples for both language-model stages: the reference's logit processors, repeatable by seed in any batch.

SGLang's own sampler differs from the reference in ways that users notice: its repetition penalty ignores the prompt, a
seed cannot be combined with min_p and has no CPU kernel, and all rows without a seed share one generator. This sampler
replaces SGLang's sampler in the model runner. Each row's choice depends only on its own logits, parameters, seed and
number of tokens so far, and on nothing else in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler

from stages.filtered_draws import Filters, is_greedy, pick, seed_key, uniform
from stages.messages import IdLogprob, Sampling
from stages.sglang_engine.wide_draws import LEAST_VOCABULARY, draw_from_row, is_wide

# Number of logits in a block of the search for the largest one. The released vocabulary consists of such blocks.
_BLOCK = 64


class SamplingState:
    """One request's sampling parameters, its counts for the penalties, and the result of its latest pick.

    Args:
        params: The client's sampling parameters.
        prompt_ids: Ids that the repetition penalty counts besides the output, int64 [n]; empty for the talker.
        output_ids: The engine's growing list of generated ids.
        eos_ids: Ids that `min_tokens` forbids.
        logprobs: Number of alternatives to report with each pick, or None for no log-probabilities.
        suppressed: bool [vocab], ids never to be picked, or None.
    """

    __slots__ = (
        "_bias",
        "_counted",
        "_counts",
        "_eos",
        "_prompt",
        "eos_ids",
        "logprobs",
        "output_ids",
        "params",
        "picked",
        "prompt_ids",
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
    ) -> None:
        self.params = params
        self.prompt_ids = prompt_ids
        self.output_ids = output_ids
        self.eos_ids = list(eos_ids)
        self.logprobs = logprobs
        self.suppressed = suppressed
        self.seed = seed_key(params.seed)
        # The result of the latest sampling step. The engine reads this result only if SGLang reports the token of the
        # step.
        self.picked: tuple[float, list[IdLogprob]] | None = None
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
            or params.repetition_penalty != 1.0
            or bool(params.presence_penalty or params.frequency_penalty or params.logit_bias)
            or len(self.output_ids) < params.min_tokens
        )

    @property
    def plain(self) -> bool:
        """Whether the pick is just the largest logit: greedy, with nothing to adjust and nothing to report."""
        return self.greedy and self.logprobs is None and not self.adjusts

    def uncounted(self) -> list[int]:
        """Generated ids that the penalties do not count yet; empty if there are no penalties."""
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
        # this call has no effect if the ids of all rows have already been counted together
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
        if len(self.output_ids) < params.min_tokens and self.eos_ids:
            if self._eos is None:
                self._eos = torch.tensor(self.eos_ids, device=logits.device)
            logits.index_fill_(0, self._eos, -torch.inf)
        if self.suppressed is not None:
            logits.masked_fill_(self.suppressed, -torch.inf)

    def uniform(self) -> float:
        """The draw for the next token, in [0, 1): a hash of the seed and the number of tokens so far."""
        return uniform(self.seed, len(self.output_ids))

    def _seen(self, logits: torch.Tensor) -> torch.Tensor:
        if self._prompt is None:
            self._prompt = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            self._prompt[self.prompt_ids.to(logits.device)] = True
        return self._prompt


class OmniSampler(Sampler):
    """Picks one token for each row.

    Attributes:
        rows: The batch's states; must be set before every forward pass.
        group: SGLang's group of the ranks that share the model, if there are several.
    """

    rows: Sequence[SamplingState] = ()
    group: Any = None

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
        """Token ids, int64 [rows]. The arguments are those of SGLang's sampler; the sampling options among them are not
        used.
        """
        logits = logits_output.next_token_logits
        rows = self.rows
        if len(rows) != logits.shape[0]:
            raise RuntimeError(f"{len(rows)} sampling states for {logits.shape[0]} rows of logits")
        if all(row.plain for row in rows):
            return self._agreed(largest(logits))
        adjusted = raw = logits.float()
        if any(row.adjusts for row in rows):
            adjusted = raw.clone()
            count_output(rows, logits)
            for row, values in zip(rows, adjusted, strict=True):
                if row.adjusts:
                    row.adjust(values)
        drawn = [index for index, row in enumerate(rows) if not row.greedy]
        if len(drawn) == len(rows):
            ids = draw(adjusted, rows)
        else:
            ids = largest(adjusted)
            if drawn:
                places = torch.tensor(drawn, device=logits.device)
                ids[places] = draw(adjusted[places], [rows[index] for index in drawn])
        reported = [index for index, row in enumerate(rows) if row.logprobs is not None]
        if reported:
            places = torch.tensor(reported, device=logits.device)
            _report(raw[places], ids[places], [rows[index] for index in reported])
        return self._agreed(ids)

    def _agreed(self, ids: torch.Tensor) -> torch.Tensor:
        """The picks of rank 0, copied to every rank. The logits of the ranks may differ in their last bits, but all
        ranks must pick the same ids.
        """
        return ids if self.group is None else self.group.broadcast(ids)


def largest(logits: torch.Tensor) -> torch.Tensor:
    """The index of each row's largest logit, int64 [rows]; of equal logits, the first."""
    rows, vocab = logits.shape
    if logits.device.type != "cpu" or vocab < LEAST_VOCABULARY or vocab % _BLOCK:
        return torch.argmax(logits, dim=-1)
    # On a CPU, the largest value is found five times faster than its index. So the index is only searched in the first
    # block that has the largest value.
    blocks = logits.view(rows, vocab // _BLOCK, _BLOCK)
    first = blocks.amax(dim=-1).argmax(dim=-1, keepdim=True)
    inner = blocks.gather(1, first[:, :, None].expand(-1, -1, _BLOCK)).argmax(dim=-1)
    return (first * _BLOCK + inner)[:, 0]


def filtered_probabilities(logits: torch.Tensor, params: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities from adjusted logits float32 [rows, vocab] after the rows' filters; see `Filters.probabilities`."""
    return Filters.of(params, logits.shape[-1], logits.device).probabilities(logits)


def draw(logits: torch.Tensor, rows: Sequence[SamplingState]) -> torch.Tensor:
    """Sample one id for each row, int64 [rows], from adjusted logits, float32 [rows, vocab]."""
    if is_wide(logits):
        return torch.tensor(
            [draw_from_row(values, row.params, row.uniform()) for values, row in zip(logits, rows, strict=True)]
        )
    uniforms = torch.tensor([row.uniform() for row in rows], dtype=torch.float64, device=logits.device)
    return pick(filtered_probabilities(logits, [row.params for row in rows]), uniforms[:, None])


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
