"""Runs SGLang's scheduler inside this process. Function calls replace the scheduler's sockets to other SGLang
processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from stages.queue_order import take_turns


class InProcessScheduler(Scheduler):
    """A scheduler whose owner calls `step` for each batch, and which passes results to callbacks.

    Attributes:
        on_progress: Called with each request whose output ids or finish state changed.
        on_dropped: Called with the id of a request that was removed from the queue before it ran.
        on_batch: Called with each batch right before it runs.
        on_computed: Called with each batch when its tokens have been picked, before any of its requests is ended.
        sender_of: Returns the `Sampling.sender` of the request with this id.
        retractions: Number of times that a request has lost its KV memory and has been queued again.
    """

    running_batch: ScheduleBatch
    last_batch: ScheduleBatch | None
    on_progress: Callable[[Req], None]
    on_dropped: Callable[[str], None]
    on_batch: Callable[[ScheduleBatch], None]
    on_computed: Callable[[ScheduleBatch], None]
    sender_of: Callable[[str], int]
    retractions: int = 0
    _ordered: tuple[int, int] = (0, 0)  # numbers of waiting and of running requests when the queue was last ordered

    def step(self) -> bool:
        """Run one batch, prefill before decode. Returns False if no batch can run."""
        self._order_queue()
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

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        super()._add_request_to_queue(req, is_retracted=is_retracted)
        self._ordered = (0, 0)
        if is_retracted:
            self.retractions += 1
            # A retracted request has lost its memory and has to be computed again. New requests must not overtake it
            # again and again. So the request with the longest answer goes first, and requests without a generated token
            # go last.
            self.waiting_queue.sort(key=lambda waiting: -len(waiting.output_ids))

    def _order_queue(self) -> None:
        """Let the senders of new requests take turns. Retracted requests stay before new requests."""
        queue, running = self.waiting_queue, self._running_requests()
        if len(queue) < 2 or self._ordered == (len(queue), len(running)):
            return
        again = [req for req in queue if req.output_ids]
        new = [req for req in queue if not req.output_ids]
        order = take_turns([self.sender_of(req.rid) for req in new], [self.sender_of(req.rid) for req in running])
        queue[:] = [*again, *(new[index] for index in order)]
        self._ordered = len(queue), len(running)

    def _running_requests(self) -> list[Req]:
        """The requests that have begun and have not ended."""
        last = self.last_batch
        begun = last.reqs if last is not None and last.forward_mode.is_extend() else []
        return [*self.running_batch.reqs, *begun]

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
