"""Runs SGLang's scheduler, with calls in this process in place of its sockets to other SGLang processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import Any

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer


class InProcessScheduler(Scheduler):
    """A scheduler that its owner steps, and that passes results to callbacks.

    Attributes:
        on_progress: Called with each request whose output ids or finish state changed.
        on_dropped: Called with the id of a request that was removed from the queue before it ran.
        on_batch: Called with each batch right before it runs.
        on_computed: Called with each batch when its tokens have been picked, before any of its requests is ended.
        parked: In a `FedEngine`: requests past their prefill that wait for their next input.
    """

    running_batch: ScheduleBatch
    last_batch: ScheduleBatch | None
    on_progress: Callable[[Req], None]
    on_dropped: Callable[[str], None]
    on_batch: Callable[[ScheduleBatch], None]
    on_computed: Callable[[ScheduleBatch], None]
    parked: ScheduleBatch | None = None

    def step(self, ready: Container[str] | None = None) -> bool:
        """Run one batch, prefill before decode. Returns False if no batch can run.

        Args:
            ready: Ids of the requests that may decode now; None means all. The batch does not wait for a request that
                is not ready.
        """
        if ready is None:
            return self._step()
        self._unpark(ready)
        ran = self._step()
        self._park()
        return ran

    def _step(self) -> bool:
        plan = self.get_next_batch_to_run(running_batch=self.running_batch, last_batch=self.last_batch)
        self.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if batch:
            self.on_batch(batch)
            result = self.run_batch(batch)
            self.on_computed(batch)
            self.process_batch_result(batch, result)
        self.last_batch = batch
        return bool(batch)

    def abort_parked(self, request_id: str) -> bool:
        """Make a parked request end in its next decode step. Returns False if it is not parked."""
        for req in self.parked.reqs if self.parked is not None else ():
            if req.rid == request_id:
                req.to_finish = FINISH_ABORT()
                return True
        return False

    def _unpark(self, ready: Container[str]) -> None:
        """Move the ready requests from `parked` to the running batch, which is empty between steps."""
        if self.parked is None:
            return
        going = [index for index, req in enumerate(self.parked.reqs) if req.rid in ready]
        if len(going) == len(self.parked.reqs):
            self.running_batch, self.parked = self.parked, None
        elif going:
            staying = [index for index in range(len(self.parked.reqs)) if index not in set(going)]
            self.running_batch, self.parked = _part(self.parked, going), _part(self.parked, staying)

    def _park(self) -> None:
        """Set aside every request that would decode next."""
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

    def init_ipc_channels(self, port_args: Any) -> None:
        nobody = SenderWrapper(None)
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=nobody,
            send_to_detokenizer=nobody,
            send_metrics_from_scheduler=None,
        )
        self.recv_from_tokenizer = None
        self.load_snapshot_writer = None

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        scheduler = self

        class Collect(SchedulerOutputStreamer):
            def stream_output(self, reqs: list[Req], return_logprob: bool, skip_req: Req | None = None) -> None:
                for req in reqs:
                    if req is not skip_req:
                        scheduler.on_progress(req)

        return Collect

    def send_abort_output(self, abort_req: AbortReq, req: Req) -> None:
        self.on_dropped(req.rid)


def _part(batch: ScheduleBatch, indices: list[int]) -> ScheduleBatch:
    """A separate batch with some requests of `batch`."""
    part = copy.copy(batch)
    part.sampling_info = copy.copy(batch.sampling_info)
    part.filter_batch(keep_indices=indices)
    return part
