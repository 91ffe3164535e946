"""Provides an engine that gets the input row of every decode step from another stage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from stages.sglang_engine.engine import Engine


class FedEngine(Engine):
    """An engine that gets the input row of each decode step through `feed`. A request decodes only when it has a row.
    Batches run without the requests that have no row yet.

    The prefix cache keeps only prompts. The keys and values of a generated token depend on the row that was fed, and
    the token's id does not determine this row.

    Args:
        arguments: The arguments of `Engine`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        _keep_only_prompts(self._scheduler.tree_cache)
        # For each request that may decode, the two parts of its next input row.
        self._rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def has_work(self) -> bool:
        return not self._stalled and bool(self._rows or self.must_step)

    @property
    def must_step(self) -> bool:
        """Whether the engine has prompts to compute. The requests that have been fed do not count here."""
        scheduler = self._scheduler
        return bool(scheduler.waiting_queue or scheduler.chunked_req is not None)

    @property
    def fed(self) -> Collection[str]:
        """The requests that have been fed and have not decoded since."""
        return self._rows.keys()

    @property
    def ready(self) -> int:
        """Number of requests that have been fed and have not decoded since."""
        return len(self._rows)

    def stats(self) -> dict[str, float]:
        return {**super().stats(), "queued_requests": self.waiting + self.ready}

    def feed(self, request_id: str, sent: torch.Tensor, own: torch.Tensor) -> None:
        """Set the input row [hidden] of a request's next decode step, as two parts. Unknown request ids are ignored.

        Args:
            sent: The part from another stage, on the CPU. The parts of a whole batch go to the device in one copy.
            own: The part from this model, on its device, which is added to `sent`.
        """
        live = self._live.get(request_id)
        if live is not None and not live.aborted:
            self._rows[request_id] = sent, own
            self._stalled = False

    def _abort(self, request_id: str) -> None:
        self._rows.pop(request_id, None)
        super()._abort(request_id)

    def _run_batch(self) -> None:
        self._stalled = not self._scheduler.step_ready(self._rows.keys())

    def _prepare(self, batch: Any) -> None:
        if batch.forward_mode.is_extend():
            # A request may lose its memory just before it decodes. Then the whole request is computed again, including
            # the row that was fed for this step.
            given = {req.rid: self._live[req.rid].generation.rows.generated for req in batch.reqs}
            late = [req for req in batch.reqs if len(given[req.rid]) < len(req.output_ids)]
            if late:
                self._take_rows(late)
        else:
            self._model.next_rows[batch.req_pool_indices] = self._take_rows(batch.reqs)
        super()._prepare(batch)

    def _take_rows(self, reqs: Sequence[Any]) -> torch.Tensor:
        """Remove and return the rows that were fed for these requests, [requests, hidden]. Also keep a copy of each row
        with its request, because a request must be computed again if SGLang takes its memory back.
        """
        parts = [self._rows.pop(req.rid) for req in reqs]
        rows = torch.stack([sent for sent, _ in parts]).to(self._device, self._dtype)
        rows = rows + torch.stack([own for _, own in parts])
        for req, row in zip(reqs, rows, strict=True):
            # Copy the row, because a view would keep the rows of the whole batch for as long as one of its requests
            # runs.
            self._live[req.rid].generation.rows.generated.append(row.clone())
        return rows

    def _collect_states(self, batch: Any) -> None:
        # The states are sent to another stage, so they are copied to the CPU once for the whole batch.
        states = self._model.last_states[batch.req_pool_indices].cpu()
        for req, state in zip(batch.reqs, states, strict=True):
            self._live[req.rid].token_state = state
        super()._collect_states(batch)


def _keep_only_prompts(cache: Any) -> None:
    """Change SGLang's prefix cache, so that it never keeps generated tokens.

    SGLang calls `checkpoint` to add a request to the cache. It does this in four cases:
    - A chunk of a prompt has been computed.
    - A whole prompt has been computed.
    - A request had lost its memory, and its prompt and its earlier output have been computed again.
    - A request ends. SGLang then frees all memory of the request that is not in the cache.
    """
    checkpoint = cache.checkpoint

    def checkpoint_prompt(req: Any, *, up_to: int, **more: Any) -> None:
        checkpoint(req, up_to=min(up_to, len(req.origin_input_ids)), **more)

    cache.checkpoint = checkpoint_prompt
