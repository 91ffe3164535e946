"""Defines the data about the running pipeline that `GET /v1/pipeline` sends."""

from __future__ import annotations

from msgspec import Struct

from gateway.api.health_report import Status
from omni_pipeline.supervision.worker_state import State


class StageView(Struct):
    """The current state of one stage.

    Attributes:
        name: Name of the stage.
        worker: Name of the process that runs the stage. If the stage has replicas, this is the name of the process in
            the worst state.
        state: State of the process `worker`.
        restarts: Total number of restarts of the processes that run the stage.
        last_end: How the previous process of `worker` ended; null if no process of `worker` has ended. The text is
            still shown when the new process is ready.
        live: Number of requests that the stage holds.
        queued: Number of requests that the stage holds but has not begun to process.
        batch: Mean number of requests in a batch in the last seconds; null if there was no batch.
        steps: Batches per second.
        busy: Fraction of the time in which the stage worked, from 0 to 1.
        kv_used, kv_limit: Tokens of running requests in the KV cache, and the size of the KV cache in tokens; null if
            the stage has no KV cache.
        replicas, replicas_ready: Number of all replicas, and number of ready replicas.

    If the stage has replicas, `batch` is the mean over the batches of all replicas, and `busy` is the mean over all
    replicas. All other numbers are sums over the replicas.
    """

    name: str
    worker: str
    state: State
    restarts: int
    last_end: str | None
    live: int
    queued: int
    batch: float | None
    steps: float
    busy: float
    kv_used: int | None
    kv_limit: int | None
    replicas: int
    replicas_ready: int


class EdgeView(Struct):
    """The number of messages and bytes per second from `source` to `target`. `source` and `target` are names of stages,
    or ``gateway``.
    """

    source: str
    target: str
    messages: float
    bytes: float


class PipelineView(Struct):
    """The body of each event of `GET /v1/pipeline`.

    Attributes:
        status, problem: The same fields as in `GET /health`.
        requests: Number of requests that have been admitted or wait for admission.
        waiting: Number of requests that wait for admission.
        voices: Number of streamed spoken answers that the pipeline generates now.
    """

    status: Status
    problem: str | None
    requests: int
    waiting: int
    voices: int
    stages: list[StageView]
    edges: list[EdgeView]
