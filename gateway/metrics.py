"""Defines the names and the meaning of all metrics on `/metrics`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as MetricSource
from prometheus_client.utils import floatToGoString

from gateway.admission import Admission
from gateway.pipeline import Pipeline
from gateway.traces.traces import Traces
from omni_pipeline import __version__
from omni_pipeline.os_process import usage
from omni_pipeline.supervision.bindings import RouteReport
from omni_pipeline.supervision.remote_hosts import HostReport
from omni_pipeline.supervision.worker_state import ReplicaReport
from omni_pipeline.wire.counters import Distribution
from stages.messages import TokenUsage

disable_created_metrics()  # turns off the second time series that the library adds for each counter

# Patterns for the version of a format in an Accept header. `_ANY_VERSION` finds every version. `_SANE_VERSION` matches
# only a version that `choose_encoder` can compare.
_ANY_VERSION = re.compile(r"version=([^;,]*)")
_SANE_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2} *")

_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 5, 10)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_STAGE_COUNTERS = {
    "received": "Messages that a stage has received",
    "sent": "Messages that a stage has sent",
    "steps": "Batches that a stage has computed",
    "busy_seconds": "Time that a stage has spent on messages and batches",
    "dropped_late": "Messages that a stage dropped because their request had ended",
}

# Counters that stages report in `StageStats.extra`: the name of each counter, and its help text.
_OWN_COUNTERS = {
    "prompt_tokens": "Prompt tokens of all sequences that a language model has begun",
    "prompt_tokens_cached": "Prompt tokens that a language model has found in its prefix cache",
    "generated_tokens": "Tokens (talker_ar: codec frames) that a language model has generated",
    "preemptions": "How often a sequence lost its KV memory to other sequences and was computed again",
    "cache_hits": "Media items whose embeddings were in the encoder cache",
    "cache_misses": "Media items whose embeddings were not in the encoder cache",
    "encoded_items": "Media items that an encoder has computed",
    "encoded_rows": "Embedding rows (one for each token of the media) that an encoder has computed",
    "refused": "Requests whose media or prompt were refused",
    "cancelled_readings": "Jobs that read texts or media, and were cancelled because their request had ended",
    "demoted_readings": "Jobs that read texts or media, took longer than expected, and were started again as long jobs",
    "displaced_readings": (
        "Jobs that read texts or media, and were stopped to make room for another client and restarted later"
    ),
    "readers_replaced": "How often a process that reads texts and media was replaced",
    "frames": "Codec frames that a stage has computed",
    "chunks": "Chunks of sound that the vocoder has computed",
}
# Gauges that stages report in `StageStats.extra`: the name of each gauge, and its help text.
_OWN_GAUGES = {
    "queued_requests": "Requests that a stage could start but has not started yet",
    "readers": "Processes that read long texts and media",
    "readers_busy": "Processes that are reading a long text or media",
    "recordings": "Recordings that are being transcribed or translated",
    "recording_seconds": "Length of the decoded recordings that are being transcribed or translated",
    "running_requests": "Requests that a language model is working on",
    "kv_tokens_used": "Tokens in the KV cache that running requests use",
    "kv_tokens_cached": "Tokens in the KV cache that are kept for later prompts with the same beginning",
    "kv_tokens_limit": "Size of the KV cache in tokens",
    "cache_bytes": "Size of the encoder cache",
    "waiting_frames": "Codec frames that wait for the vocoder",
    "slots_used": "Utterances whose state the vocoder keeps",
    "slots_limit": "Maximum number of utterances whose state the vocoder can keep",
}


class Metrics:
    """The metrics of one gateway, in a separate Prometheus registry.

    Args:
        pipeline: Source of the metrics of stages, edges and processes.
        model: Name of the model.
        admission: Source of the metrics of waiting requests, and of the resources that requests use.
        dropped_late: Returns the number of messages that arrived after the end of their request.
        healthy: Returns whether `/health` reports ``ok``.
        traces: Source of the metrics of traces.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        model: str,
        admission: Admission,
        dropped_late: Callable[[], int],
        healthy: Callable[[], bool],
        traces: Traces,
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "omni_requests", "Requests for an answer, by outcome", ["outcome"], registry=registry
        )  # outcome: ok, refused (4xx), failed (5xx), cancelled (the client left)
        self.errors = Counter("omni_errors", "Errors by code", ["code"], registry=registry)
        self.in_flight = Gauge(
            "omni_requests_in_flight", "Requests for an answer that are in progress", registry=registry
        )
        registry.register(_AdmissionFigures(admission))
        self.first_text_seconds = Histogram(
            "omni_time_to_first_text_seconds",
            "Time from the request's arrival to the first text",
            buckets=_FIRST,
            registry=registry,
        )
        self.inter_text_seconds = Histogram(
            "omni_inter_text_seconds",
            "Time between two pieces of text of one answer; a piece is usually one token",
            buckets=_BETWEEN,
            registry=registry,
        )
        # Speech is measured when it arrives from the pipeline, even if the answer is not streamed.
        self.first_audio_seconds = Histogram(
            "omni_time_to_first_audio_seconds",
            "Time from the request's arrival to the first sound",
            buckets=_FIRST,
            registry=registry,
        )
        self.inter_audio_seconds = Histogram(
            "omni_inter_audio_seconds",
            "Time between two chunks of sound of one answer",
            buckets=_BETWEEN,
            registry=registry,
        )
        self.audio_chunks = Counter("omni_audio_chunks", "Chunks of sound in all answers", registry=registry)
        self.audio_seconds = Counter("omni_audio_seconds", "Length of the sound in all answers", registry=registry)
        self.codec_frames = Counter("omni_codec_frames", "Codec frames of the sound in all answers", registry=registry)
        self.real_time_factor = Histogram(
            "omni_real_time_factor",
            "Time from the request's arrival to the last sound, divided by the length of the sound",
            buckets=_FACTORS,
            registry=registry,
        )
        self.playback_underruns = Counter(
            "omni_playback_underruns",
            "Silences of more than 0.1 s in a player that starts to play when the first sound arrives",
            registry=registry,
        )
        self.playback_silence_seconds = Counter(
            "omni_playback_silence_seconds",
            "Length of the silences that the metric omni_playback_underruns_total counts",
            registry=registry,
        )
        self.request_seconds = Histogram(
            "omni_request_seconds",
            "Time from the request's arrival to the end of its answer",
            buckets=_LONG,
            registry=registry,
        )
        self.abort_seconds = Histogram(
            "omni_abort_seconds",
            "Time from the abort of a request until the workers have freed all its data",
            buckets=_BETWEEN,
            registry=registry,
        )
        self.media_seconds = Histogram(
            "omni_media_seconds",
            "Time to load the media of a request that has media",
            buckets=_FIRST,
            registry=registry,
        )
        self.media_bytes = Counter("omni_media_bytes", "Bytes of media loaded, by kind", ["kind"], registry=registry)
        self._prompt_tokens = Counter("omni_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached_tokens = Counter("omni_cached_tokens", "Prompt tokens found in a cache", registry=registry)
        self._media_tokens = Counter("omni_media_tokens", "Prompt tokens of media", ["kind"], registry=registry)
        self._completion_tokens = Counter("omni_completion_tokens", "Generated tokens", registry=registry)
        Gauge("omni_healthy", "Whether requests can be answered", registry=registry).set_function(healthy)
        build = Gauge(
            "omni_build_info",
            "Always 1; the labels are the version and the model",
            ["version", "model"],
            registry=registry,
        )
        build.labels(__version__, model).set(1)
        self.recording_seconds = Counter(
            "omni_recording_seconds", "Length of the recordings that were transcribed or translated", registry=registry
        )
        self.recording_pieces = Counter(
            "omni_recording_pieces", "Pieces of the recordings that were transcribed or translated", registry=registry
        )
        self.realtime_sessions = Gauge("omni_realtime_sessions", "Open realtime sessions", registry=registry)
        self.realtime_session_seconds = Histogram(
            "omni_realtime_session_seconds", "Length of realtime sessions", buckets=_LONG, registry=registry
        )
        self.realtime_responses = Counter(
            "omni_realtime_responses", "Responses of realtime sessions, by status", ["status"], registry=registry
        )
        self.realtime_interruptions = Counter(
            "omni_realtime_interruptions", "Responses of realtime sessions that the user interrupted", registry=registry
        )
        self.realtime_speculations = Counter(
            "omni_realtime_speculations",
            "Answers prepared during a pause of the user: kept if the pause ended the turn, otherwise dropped",
            ["outcome"],
            registry=registry,
        )
        self.realtime_early_parts = Counter(
            "omni_realtime_early_parts",
            "Parts of long speech that were computed before the user stopped speaking",
            registry=registry,
        )
        registry.register(_PipelineFigures(pipeline, dropped_late))
        registry.register(_TraceFigures(traces))

    def count_completion(self, usage: TokenUsage) -> None:
        """Add the tokens of one complete choice, without its prompt."""
        self._completion_tokens.inc(usage.completion_tokens)

    def count_prompt(self, usage: TokenUsage) -> None:
        """Add the tokens of a prompt that has been answered."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        for kind, tokens in usage.media_tokens.items():
            self._media_tokens.labels(kind).inc(tokens)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that an `Accept` header asks for, and the media type of that format.

        If the version of a format in the header is not a number, the result has Prometheus' text format.
        """
        sane = all(_SANE_VERSION.fullmatch(version) for version in _ANY_VERSION.findall(accept))
        encode, media_type = choose_encoder(accept if sane else "")
        return encode(self._registry), media_type


class _PipelineFigures(MetricSource):
    """Collects the metrics of the pipeline at each scrape, from the latest reports of the workers."""

    def __init__(self, pipeline: Pipeline, dropped_late: Callable[[], int]) -> None:
        self._pipeline = pipeline
        self._dropped_late = dropped_late
        self._extra: list[str] = []

    def describe(self) -> Iterable[Metric]:
        return ()  # called on registration, when there may be no pipeline yet

    def collect(self) -> Iterator[Metric]:
        late = CounterMetricFamily("omni_late_messages", "Messages that arrived after their request had ended")
        late.add_metric([], self._dropped_late())
        yield late
        replicas = self._pipeline.replicas
        # If no stages have replicas, the series have no label `replica`.
        self._extra = ["replica"] if replicas else []
        yield from self._stages()
        yield from self._own()
        yield from self._edges()
        yield from self._processes()
        if hosts := self._pipeline.hosts:
            yield from _hosts(hosts, self._pipeline.connections_lost)
        if replicas:
            yield from _replicas(replicas)
            yield from _routes(self._pipeline.routes)

    def _labels(self, *labels: str, replica: int) -> list[str]:
        return [*labels, *([str(replica)] if self._extra else [])]

    def _stages(self) -> Iterator[Metric]:
        labels = ["stage", *self._extra]
        live = GaugeMetricFamily("omni_stage_live_requests", "Requests for which a stage stores data", labels=labels)
        seconds = HistogramMetricFamily("omni_stage_step_seconds", "Time of one step of a stage", labels=labels)
        sizes = HistogramMetricFamily("omni_stage_batch_size", "Requests in one batch of a stage", labels=labels)
        counters = {
            field: CounterMetricFamily(f"omni_stage_{field}", meaning, labels=labels)
            for field, meaning in _STAGE_COUNTERS.items()
        }
        for name, replica, stats in self._pipeline.replica_stats:
            values = self._labels(name, replica=replica)
            live.add_metric(values, stats.live_requests)
            _add(seconds, values, stats.step_seconds)
            _add(sizes, values, stats.batch_sizes)
            for field, family in counters.items():
                family.add_metric(values, getattr(stats, field))
        yield from (live, seconds, sizes, *counters.values())

    def _own(self) -> Iterator[Metric]:
        labels = ["stage", *self._extra]
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {
            **{
                own: CounterMetricFamily(f"omni_stage_{own}", text, labels=labels)
                for own, text in _OWN_COUNTERS.items()
            },
            **{own: GaugeMetricFamily(f"omni_stage_{own}", text, labels=labels) for own, text in _OWN_GAUGES.items()},
        }
        other = GaugeMetricFamily(
            "omni_stage_figure",
            "Values that stages report and for which there is no separate metric",
            labels=["stage", "figure", *self._extra],
        )
        for name, replica, stats in self._pipeline.replica_stats:
            for own, value in stats.extra.items():
                if own in families:
                    families[own].add_metric(self._labels(name, replica=replica), value)
                else:
                    other.add_metric(self._labels(name, own, replica=replica), value)
        yield from (family for family in (*families.values(), other) if family.samples)

    def _edges(self) -> Iterator[Metric]:
        labels = ["source", "target", *self._extra]
        messages = CounterMetricFamily("omni_edge_messages", "Messages from stage to stage", labels=labels)
        size = CounterMetricFamily(
            "omni_edge_bytes", "Bytes of messages between stages in different processes", labels=labels
        )
        seconds = HistogramMetricFamily(
            "omni_edge_latency_seconds",
            "Time from the end of the sender's step until the receiver reads the message",
            labels=labels,
        )
        for edge in self._pipeline.edges:
            values = self._labels(edge.source, edge.target, replica=edge.replica)
            messages.add_metric(values, edge.messages)
            size.add_metric(values, edge.bytes)
            _add(seconds, values, edge.seconds)
        yield from (messages, size, seconds)

    def _processes(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("omni_worker_up", "Whether a worker's process runs", labels=["worker"])
        restarts = CounterMetricFamily("omni_worker_restarts", "How often a worker was restarted", labels=["worker"])
        pids, usages = self._pipeline.pids, dict(self._pipeline.usages)
        own = usage(os.getpid())
        if own is not None:
            usages["main"] = own
        for worker, count in self._pipeline.restarts.items():
            up.add_metric([worker], worker in pids)
            restarts.add_metric([worker], count)
        memory = GaugeMetricFamily(
            "omni_process_resident_memory_bytes", "Memory of a process, shared pages included", labels=["process"]
        )
        cpu = CounterMetricFamily("omni_process_cpu_seconds", "CPU time of a process", labels=["process"])
        for process, used in usages.items():
            memory.add_metric([process], used.resident_bytes)
            cpu.add_metric([process], used.cpu_seconds)
        yield from (up, restarts, memory, cpu)


def _hosts(hosts: Iterable[HostReport], lost: int) -> Iterator[Metric]:
    up = GaugeMetricFamily("omni_host_up", "Whether another host belongs to the service now", labels=["host"])
    age = GaugeMetricFamily(
        "omni_host_lease_age_seconds", "Time since the latest answer of another host's agent", labels=["host"]
    )
    for each in hosts:
        up.add_metric([each.host], each.up)
        if each.lease_age is not None:
            age.add_metric([each.host], each.lease_age)
    ended = CounterMetricFamily(
        "omni_connections_lost", "Ended connections between processes on different hosts", value=lost
    )
    yield from (up, age, ended)


def _replicas(replicas: Iterable[ReplicaReport]) -> Iterator[Metric]:
    labels = ["group", "replica"]
    up = GaugeMetricFamily("omni_replica_up", "Whether a replica of a group can accept requests", labels=labels)
    bound = GaugeMetricFamily("omni_replica_bound_requests", "Open requests that use a replica", labels=labels)
    for each in replicas:
        up.add_metric([each.group, str(each.replica)], each.up)
        bound.add_metric([each.group, str(each.replica)], each.bound)
    yield from (up, bound)


def _routes(routes: Iterable[RouteReport]) -> Iterator[Metric]:
    choices = CounterMetricFamily(
        "omni_route_choices",
        "How often a replica was chosen for a request, by the reason for the choice",
        labels=["group", "reason"],
    )
    expected = CounterMetricFamily(
        "omni_route_expected_cached_tokens",
        "Prompt tokens that were expected in the prefix cache of the chosen replica",
        labels=["group"],
    )
    found = CounterMetricFamily(
        "omni_route_cached_tokens", "Prompt tokens found in the prefix cache of the chosen replica", labels=["group"]
    )
    for each in routes:
        for reason, count in each.choices.items():
            choices.add_metric([each.group, reason.value], count)
        if each.use is not None:
            expected.add_metric([each.group], each.use.expected)
            found.add_metric([each.group], each.use.found)
    yield from (choices, expected, found)


class _AdmissionFigures(MetricSource):
    """Collects the number of requests that wait, and the number of bytes that requests use."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        admission = self._admission
        grants = admission.grants
        yield GaugeMetricFamily(
            "omni_requests_waiting", "Requests for an answer that wait for admission", value=admission.waiting
        )
        yield GaugeMetricFamily(
            "omni_voices",
            "Streamed spoken answers in progress",
            value=admission.voice_load.voices,
        )
        yield GaugeMetricFamily(
            "omni_voices_waiting",
            "Streamed spoken answers that wait until the pipeline has room for one more spoken answer",
            value=admission.voices_waiting,
        )
        yield GaugeMetricFamily(
            "omni_voice_capacity",
            "Estimated length of the sound that the pipeline can make in one second; 0 until there is an estimate",
            value=admission.voice_load.capacity,
        )
        yield GaugeMetricFamily(
            "omni_requests_leaving",
            "Requests for an answer that have ended, but whose data a worker still stores",
            value=admission.leaving,
        )
        yield GaugeMetricFamily(
            "omni_held_bytes", "Bytes of request bodies and undecoded media in memory", value=admission.held_bytes
        )
        yield GaugeMetricFamily(
            "omni_decoded_bytes", "Memory reserved for the decoded media of requests", value=grants.held
        )
        yield GaugeMetricFamily(
            "omni_decoded_limit_bytes", "Maximum memory for the decoded media of all requests", value=grants.limit
        )
        yield GaugeMetricFamily(
            "omni_requests_waiting_for_memory",
            "Requests for an answer whose media are not decoded yet because other requests use the memory",
            value=grants.waiting,
        )


class _TraceFigures(MetricSource):
    """Collects the numbers of traces that were written, dropped or cut short."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def collect(self) -> Iterator[Metric]:
        traces = self._traces
        yield CounterMetricFamily(
            "omni_traces_written", "Traces that were written to a file or sent to a collector", value=traces.written
        )
        yield CounterMetricFamily(
            "omni_traces_dropped",
            "Traces that were lost because too many traces were waiting, or because writing failed",
            value=traces.dropped,
        )
        yield CounterMetricFamily(
            "omni_trace_spans_dropped", "Spans that were left out of long traces", value=traces.dropped_spans
        )


def _add(family: HistogramMetricFamily, labels: list[str], figures: Distribution) -> None:
    bounds = [*map(floatToGoString, figures.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, map(float, accumulate(figures.counts)), strict=True)), figures.total)
