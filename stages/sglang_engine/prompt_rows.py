"""Cuts the data of prompts into the pieces that prefill batches need. The data of a prompt are its embedding rows from
encoders and its M-RoPE positions. The token ids are not part of these data.

SGLang may prefill any stretch of a sequence: the rest after a prefix-cache hit, or one chunk of a long prompt. If a
request has lost its KV memory, SGLang prefills the prompt together with the generated tokens. `gather` handles all
these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class PromptRows:
    """The data of one request, without its token ids.

    Attributes:
        ids: int64 [n], ids in the embedding table (media rows have their placeholder id).
        positions: float32 [3, n], or None if the positions are 0 … n-1.
        delta: The difference between position and index of every token after the prompt.
        media_rows: int64 [m], ascending.
        media_embeds: [m, hidden].
        visual_rows: int64 [v], ascending.
        deepstack: [layers, v, hidden].
        make: Returns the rows [start, end) of the prompt as [end - start, hidden]. It is called each time a batch
            prefills these rows. None if the rows come from the embedding table and from `media_embeds`.
        generated: The row [hidden] of each token generated so far. Only a `FedEngine` uses it.
    """

    ids: torch.Tensor
    positions: torch.Tensor | None
    delta: float
    media_rows: torch.Tensor | None = None
    media_embeds: torch.Tensor | None = None
    visual_rows: torch.Tensor | None = None
    deepstack: torch.Tensor | None = None
    make: Callable[[int, int], torch.Tensor] | None = None
    generated: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class PrefillInput:
    """The data of one prefill batch, without its token ids. The batch has t tokens.

    Attributes:
        positions: float32 [3, t].
        slots: int64 [requests], KV-pool slot of each request.
        deltas: float32 [requests], the `PromptRows.delta` of each request.
        media_index: int64 [rows]. For each row of `media_embeds`, the index of its token among the t tokens. None if
            there are no such rows.
        media_embeds: [rows, hidden]. `media_embeds` and `deepstack` may be views of a request's tensors, so do not
            write to them.
        visual_index: int64 [rows]. For each row of `deepstack`, the index of its token among the t tokens. None if
            there are no such rows.
        deepstack: [layers, rows, hidden].
    """

    positions: torch.Tensor
    slots: torch.Tensor
    deltas: torch.Tensor
    media_index: torch.Tensor | None
    media_embeds: torch.Tensor | None
    visual_index: torch.Tensor | None
    deepstack: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """The tokens [start, end) of one sequence, which this batch prefills. The sequence belongs to the request in
    KV-pool slot `slot`.
    """

    rows: PromptRows
    slot: int
    start: int
    end: int


def gather(stretches: Sequence[Stretch], device: torch.device, dtype: torch.dtype) -> PrefillInput:
    """The data of a batch that prefills these stretches in this order."""
    positions: list[torch.Tensor] = []
    media = _Rows()
    visual = _Rows()
    offset = 0
    for stretch in stretches:
        rows = stretch.rows
        positions.append(_positions(stretch))
        if rows.media_rows is not None and rows.media_embeds is not None:
            media.add(stretch, offset, rows.media_rows, rows.media_embeds, dim=0)
        end = min(stretch.end, len(rows.ids))
        if rows.make is not None and stretch.start < end:
            media.add(stretch, offset, torch.arange(stretch.start, end), rows.make(stretch.start, end), dim=0)
        if rows.generated and stretch.end > len(rows.ids):
            index = torch.arange(len(rows.ids), len(rows.ids) + len(rows.generated))
            media.add(stretch, offset, index, torch.stack(rows.generated), dim=0)
        if rows.visual_rows is not None and rows.deepstack is not None:
            visual.add(stretch, offset, rows.visual_rows, rows.deepstack, dim=1)
        offset += stretch.end - stretch.start
    media_index, media_embeds = media.joined(0, device, dtype)
    visual_index, deepstack = visual.joined(1, device, dtype)
    return PrefillInput(
        positions=torch.cat(positions, dim=1).to(device),
        slots=torch.tensor([stretch.slot for stretch in stretches], device=device),
        deltas=torch.tensor([stretch.rows.delta for stretch in stretches], dtype=torch.float32, device=device),
        media_index=media_index,
        media_embeds=media_embeds,
        visual_index=visual_index,
        deepstack=deepstack,
    )


class _Rows:
    """Collects the rows of one kind that fall into the stretches."""

    def __init__(self) -> None:
        self.index: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def add(self, stretch: Stretch, offset: int, rows: torch.Tensor, values: torch.Tensor, dim: int) -> None:
        low, high = torch.searchsorted(rows, torch.tensor([stretch.start, stretch.end])).tolist()
        if high > low:
            self.index.append(rows[low:high] - stretch.start + offset)
            self.values.append(values.narrow(dim, low, high - low))

    def joined(
        self, dim: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        if not self.index:
            return None, None
        values = self.values[0] if len(self.values) == 1 else torch.cat(self.values, dim=dim)
        return torch.cat(self.index).to(device), values.to(device, dtype)


def _positions(stretch: Stretch) -> torch.Tensor:
    rows, start, end = stretch.rows, stretch.start, stretch.end
    prompt = len(rows.ids)
    parts: list[torch.Tensor] = []
    if start < prompt:
        stop = min(end, prompt)
        if rows.positions is None:
            parts.append(torch.arange(start, stop, dtype=torch.float32).expand(3, -1))
        else:
            parts.append(rows.positions[:, start:stop])
    if end > prompt:
        generated = torch.arange(max(start, prompt), end, dtype=torch.float32) + rows.delta
        parts.append(generated.expand(3, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
