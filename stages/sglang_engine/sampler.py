"""The sampler of both language-model stages: the reference's logit processors, repeatable by seed in any batch.

SGLang's own sampler differs from the reference in ways that users notice: its repetition penalty leaves the prompt out,
a seed excludes min_p and has no CPU kernel, and unseeded rows share one generator with their neighbours. This one takes
its place in the model runner. Each row's choice depends on its own logits, parameters, seed and number of
tokens so far, and on nothing else in the batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler

from stages.messages import Logprob, Sampling

# A temperature below this is greedy: what it leaves beside the best token is beyond float32, and so is the division.
LEAST_TEMPERATURE = 1e-6


class SamplingState:
    """One request's sampling parameters, and the picks the engine has not collected yet.

    Args:
        params: What the client asked for.
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
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        self.seed = seed.to_bytes(16, "little", signed=True)
        # What the last sampling step found, read by the engine if that step's token counts.
        self.picked: tuple[float, list[Logprob]] | None = None
        self._prompt: torch.Tensor | None = None  # bool [vocab], ids in the prompt
        self._counts: torch.Tensor | None = None  # float32 [vocab], times generated
        self._counted = 0
        self._bias: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def greedy(self) -> bool:
        return self.params.temperature < LEAST_TEMPERATURE or self.params.top_k == 1

    @property
    def plain(self) -> bool:
        """Greedy, nothing to adjust, nothing to report: the largest logit is the answer."""
        params = self.params
        return (
            self.greedy
            and self.logprobs is None
            and self.suppressed is None
            and params.repetition_penalty == 1.0
            and not (params.presence_penalty or params.frequency_penalty or params.logit_bias)
            and len(self.output_ids) >= params.min_tokens
        )

    def adjust(self, logits: torch.Tensor) -> None:
        """Apply penalties, bias and bans to one row of float32 logits [vocab], in the reference's order."""
        params = self.params
        if params.repetition_penalty != 1.0:
            seen = self._seen(logits) | (self._output_counts(logits) > 0)
            penalty = params.repetition_penalty
            logits.copy_(torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits))
        if params.presence_penalty or params.frequency_penalty:
            counts = self._output_counts(logits)
            logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        if params.logit_bias:
            if self._bias is None:
                ids = torch.tensor(list(params.logit_bias), device=logits.device)
                self._bias = ids, torch.tensor(list(params.logit_bias.values()), device=logits.device)
            logits.index_add_(0, self._bias[0], self._bias[1].to(logits.dtype))
        if len(self.output_ids) < params.min_tokens and self.eos_ids:
            logits[self.eos_ids] = -torch.inf
        if self.suppressed is not None:
            logits.masked_fill_(self.suppressed, -torch.inf)

    def uniform(self) -> float:
        """The draw for the next token, in [0, 1): a hash of the seed and the number of tokens so far."""
        digest = blake2b(len(self.output_ids).to_bytes(8, "little"), key=self.seed, digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) / (1 << 53)

    def _seen(self, logits: torch.Tensor) -> torch.Tensor:
        if self._prompt is None:
            self._prompt = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            self._prompt[self.prompt_ids.to(logits.device)] = True
        return self._prompt

    def _output_counts(self, logits: torch.Tensor) -> torch.Tensor:
        if self._counts is None:
            self._counts = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
        new = self.output_ids[self._counted :]
        if new:
            ids = torch.tensor(list(new), device=logits.device)
            self._counts.index_add_(0, ids, torch.ones(len(new), device=logits.device))
            self._counted += len(new)
        return self._counts


class OmniSampler(Sampler):
    """Picks one token for each row. `rows` must be set to the batch's states before every forward pass."""

    rows: Sequence[SamplingState] = ()

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
        """Token ids, int64 [rows]; the arguments are SGLang's, which is not asked to sample by itself."""
        logits = logits_output.next_token_logits
        rows = self.rows
        if len(rows) != logits.shape[0]:
            raise RuntimeError(f"{len(rows)} sampling states for {logits.shape[0]} rows of logits")
        if all(row.plain for row in rows):
            return torch.argmax(logits, dim=-1)
        raw = logits.float()
        adjusted = raw.clone()
        for row, values in zip(rows, adjusted, strict=True):
            if not row.plain:
                row.adjust(values)
        ids = torch.argmax(adjusted, dim=-1)
        drawn = [index for index, row in enumerate(rows) if not row.greedy]
        if drawn:
            ids[drawn] = draw(adjusted[drawn], [rows[index] for index in drawn])
        reported = [index for index, row in enumerate(rows) if row.logprobs is not None]
        if reported:
            _report(raw[reported], ids[reported], [rows[index] for index in reported])
        return ids


def filtered_probabilities(logits: torch.Tensor, params: Sequence[Sampling]) -> torch.Tensor:
    """What is left of adjusted logits float32 [rows, vocab] after temperature, top-k, top-p and min-p.

    The filters are the reference's logits warpers, in its order. Float64 [rows, vocab], zero where filtered out, and
    not normalised again after top-p and min-p.
    """
    device = logits.device
    vocab = logits.shape[-1]
    logits = logits / torch.tensor([p.temperature for p in params], device=device)[:, None]
    if any(p.top_k for p in params):
        kept = torch.tensor([min(p.top_k or vocab, vocab) for p in params], device=device)
        largest = torch.topk(logits, int(kept.max()), dim=-1).values
        floor = largest.gather(1, kept[:, None] - 1)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float64)
    if any(p.top_p < 1.0 for p in params):
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        mass = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device)[:, None]
        outside = (before >= mass) & (mass < 1.0)
        outside[:, 0] = False
        probabilities = probabilities.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), 0.0)
    if any(p.min_p for p in params):
        least = torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device)[:, None]
        best = probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least * best, 0.0)
    return probabilities


def draw(logits: torch.Tensor, rows: Sequence[SamplingState]) -> torch.Tensor:
    """Sample from adjusted logits float32 [rows, vocab]; int64 [rows].

    By inverse CDF over the vocabulary in id order and in float64, so that rounding noise from another batch shape
    changes a pick only with about its own probability.
    """
    probabilities = filtered_probabilities(logits, [row.params for row in rows])
    cumulative = probabilities.cumsum(dim=-1)
    uniform = torch.tensor([row.uniform() for row in rows], dtype=torch.float64, device=logits.device)[:, None]
    # The first id whose cumulative probability exceeds the target: it never has probability zero.
    picks = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return picks.clamp_(max=logits.shape[-1] - 1)[:, 0]


def _report(raw: torch.Tensor, ids: torch.Tensor, rows: Sequence[SamplingState]) -> None:
    """Leave each pick's log-probability, and the best alternatives, in its state."""
    logprobs = torch.log_softmax(raw, dim=-1)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    most = max(row.logprobs or 0 for row in rows)
    values, indices = torch.topk(logprobs, min(most, logprobs.shape[-1]), dim=-1)
    for row, logprob, tops, top_ids in zip(rows, chosen, values.tolist(), indices.tolist(), strict=True):
        wanted = row.logprobs or 0
        alternatives = [Logprob(i, v) for i, v in zip(top_ids[:wanted], tops[:wanted], strict=True)]
        row.picked = logprob, alternatives
