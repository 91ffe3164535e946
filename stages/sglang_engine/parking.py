"""Lets requests wait outside SGLang's batch. A request waits for the input of its next decode step, or until other
requests have caught up.

SGLang only handles the requests that can run now. But waiting requests occupy memory too. So this module counts the
waiting requests when a new request needs memory. It also takes memory back from them, in the same way as SGLang takes
memory back from the requests in its batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import Any

from sglang.srt.managers.schedule_batch import NextBatchPlan, Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker

from stages.sglang_engine.scheduler import InProcessScheduler


class ParkingScheduler(InProcessScheduler):
    """A scheduler in which a request decodes only while the owner of the scheduler reports it as ready.

    Between steps, a request whose prefill is complete is either parked or displaced. A displaced request has lost its
    KV memory while it waited. When the input of a displaced request has arrived, the request is queued and then
    computed again.

    Attributes:
        parked: The requests that wait and occupy memory.
        displaced: The requests that wait and have lost their memory. The keys are their ids.
        decode_first: If true, the next step computes no new prompt while other requests can decode.
    """

    parked: ScheduleBatch | None
    displaced: dict[str, Req]
    decode_first: bool = False

    def __init__(self, *arguments: Any) -> None:
        self.parked = None
        self.displaced = {}
        super().__init__(*arguments)

    @property
    def waits(self) -> bool:
        """Whether any request is parked or displaced."""
        return self.parked is not None or bool(self.displaced)

    def step_ready(self, ready: Container[str]) -> bool:
        """Run one batch, prefill before decode. Returns False if no batch can run.

        Args:
            ready: Ids of the requests that may decode now. The batch does not wait for a request that is not ready.
        """
        self._unpark(ready)
        ran = self.step()
        self._park()
        return ran

    def drop_waiting(self, request_id: str) -> bool:
        """Drop a request that is parked or displaced, and free its memory. Returns False if no such request has this
        id.
        """
        req = self.displaced.pop(request_id, None)
        if req is None:
            parked = self._parked_requests()
            index = next((index for index, each in enumerate(parked) if each.rid == request_id), None)
            if index is None:
                return False
            req = parked[index]
            self._free_parked(index)
        self._release_aborted_request(req)
        self.on_dropped(request_id)
        return True

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        if self.decode_first and self.chunked_req is None and not running_batch.is_empty():
            return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        return super().get_new_batch_prefill(running_batch)

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        """Prepare the next decode step, as SGLang does. Parked requests may lose their memory to make room for this
        step.
        """
        if not batch.check_decode_mem():
            self._make_room(batch)
        return super().update_running_batch(batch)

    def get_prefill_adder_class(self) -> Callable[..., PrefillAdder]:
        """Returns a function that makes SGLang's object for admitting requests. For this object, waiting requests are
        part of the running batch.
        """
        adder_class = super().get_prefill_adder_class()
        parked, displaced = self._parked_requests(), self._displaced_before_queue()
        if not parked and not displaced:
            return adder_class

        def make(page_size: int, cache: Any, allocator: Any, running: ScheduleBatch, *rest: Any, **more: Any) -> Any:
            together = copy.copy(running)
            together.reqs = [*running.reqs, *parked, *displaced]
            adder = adder_class(page_size, cache, allocator, together, *rest, **more)
            # A displaced request needs memory for the tokens that were computed before it lost its memory.
            again = sum(adder.ceil_paged_tokens(_length(req)) + page_size for req in displaced)
            adder.memory_budget.total_offset += again
            adder.memory_budget.current_offset += again
            return adder

        return make

    def get_num_allocatable_reqs(self, running_bs: int, *arguments: Any, **more: Any) -> int:
        allocatable: int = super().get_num_allocatable_reqs(
            running_bs + len(self._parked_requests()), *arguments, **more
        )
        return allocatable

    def _unpark(self, ready: Container[str]) -> None:
        """Move the ready requests that are parked to the running batch, which is empty between steps. Move the ready
        requests that are displaced to the queue.
        """
        for request_id in [request_id for request_id in self.displaced if request_id in ready]:
            self._add_request_to_queue(self.displaced.pop(request_id), is_retracted=True)
        if self.parked is None:
            return
        going = [index for index, req in enumerate(self.parked.reqs) if req.rid in ready]
        if len(going) == len(self.parked.reqs):
            self.running_batch, self.parked = self.parked, None
        elif going:
            staying = [index for index in range(len(self.parked.reqs)) if index not in set(going)]
            self.running_batch, self.parked = _part(self.parked, going), _part(self.parked, staying)

    def _park(self) -> None:
        """Park every request that would decode next."""
        last, self.last_batch = self.last_batch, None
        if last is not None and last.forward_mode.is_extend():
            unfinished = [req for req in (self.chunked_req, last.chunked_req) if req is not None]
            last.filter_batch(reqs_to_exclude=unfinished)
            self._set_aside(last)
        self.running_batch.filter_batch()
        if self._set_aside(self.running_batch):
            self.running_batch = ScheduleBatch(reqs=[], batch_is_full=False)
        self.running_batch.batch_is_full = False

    def _set_aside(self, batch: ScheduleBatch) -> bool:
        if batch.is_empty():
            return False
        if self.parked is None:
            self.parked = batch
        elif self.parked is not batch:
            self.parked.merge_batch(batch)
        return True

    def _make_room(self, batch: ScheduleBatch) -> None:
        """Free the memory of some requests, one by one, until there is memory for the next step of `batch`. The
        candidates are the requests in `batch` and the parked requests. A request in `batch` is then queued again; a
        parked request becomes displaced.

        SGLang's order of retraction decides which request loses its memory next. The request that is first in this
        order never loses its memory, so it runs to its end. Then another request is first. So every request ends at
        some time.
        """
        while not batch.check_decode_mem():
            parked = self._parked_requests()
            holders = [*batch.reqs, *parked]
            if len(holders) == 1:
                break
            index = ScheduleBatch._get_decode_retraction_order(holders)[-1]
            req = holders[index]
            if index < len(batch.reqs):
                _free(batch, index)
                self._add_request_to_queue(req, is_retracted=True)
            else:
                self._free_parked(index - len(batch.reqs))
                self.displaced[req.rid] = req
        ratio = NewTokenRatioTracker.estimate_new_token_ratio_after_retract([*batch.reqs, *self._parked_requests()])
        self.new_token_ratio_tracker.current = ratio

    def _running_requests(self) -> list[Req]:
        return [*super()._running_requests(), *self._parked_requests(), *self.displaced.values()]

    def _parked_requests(self) -> list[Req]:
        return [] if self.parked is None else self.parked.reqs

    def _displaced_before_queue(self) -> list[Req]:
        """The displaced requests that will be computed again before the first request in the queue."""
        first = len(self.waiting_queue[0].output_ids) if self.waiting_queue else 0
        return [req for req in self.displaced.values() if len(req.output_ids) > first]

    def _free_parked(self, index: int) -> None:
        assert self.parked is not None
        _free(self.parked, index)
        if self.parked.is_empty():
            self.parked = None


def _free(batch: ScheduleBatch, index: int) -> None:
    """Take a request out of a batch, and free its memory."""
    batch.release_req(index, len(batch.reqs) - 1)
    batch.filter_batch(keep_indices=[place for place in range(len(batch.reqs)) if place != index])


def _length(req: Req) -> int:
    return len(req.origin_input_ids) + len(req.output_ids)


def _part(batch: ScheduleBatch, indices: list[int]) -> ScheduleBatch:
    """A separate batch with some requests of `batch`."""
    part = copy.copy(batch)
    part.sampling_info = copy.copy(batch.sampling_info)
    part.filter_batch(keep_indices=indices)
    return part
