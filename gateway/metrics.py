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
from omni_pipeline.wire.counters import Distribution
from stages.messages import TokenUsage

disable_created_metrics()  # without a second time series for each counter, which nobody needs

# A version of a format in an Accept header, and the versions that `choose_encoder` can compare.
_ANY_VERSION = re.compile(r"version=([^;,]*)")
_SANE_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2} *")

_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 5, 10)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_STAGE_COUNTERS = {
    "received": "Messages a stage has received",
    "sent": "Messages a stage has sent",
    "steps": "Batches a stage has computed",
    "busy_seconds": "Time a stage has spent working",
    "dropped_late": "Messages a stage dropped because their request was over",
}

# Counters that stages report in `StageStats.extra`: the name of each counter, and its help text.
_OWN_COUNTERS = {
    "prompt_tokens": "Prompt tokens of the sequences that a language model has begun",
    "prompt_tokens_cached": "Prompt tokens that a language model has found in its prefix cache",
    "generated_tokens": "Tokens (talker_ar: codec frames) that a language model has generated",
    "preemptions": "Times a sequence has lost its KV memory to others and was computed again",
    "cache_hits": "Media items whose embeddings were in the encoder cache",
    "cache_misses": "Media items whose embeddings were not in the encoder cache",
    "encoded_items": "Media items that an encoder has computed",
    "encoded_rows": "Embedding rows that an encoder has computed",
    "refused": "Requests whose media or prompt were refused",
    "cancelled_readings": "Texts and media that were given up because their request ended",
    "demoted_readings": "Texts and media that took longer than expected and were begun again behind short ones",
    "readers_replaced": "Processes that read texts and media and were replaced",
    "frames": "Codec frames that a stage has computed",
    "chunks": "Chunks of sound that the vocoder has computed",
}
# Gauges that stages report in `StageStats.extra`: the name of each gauge, and its help text.
_OWN_GAUGES = {
    "queued_requests": "Requests that are ready for a stage and wait for it",
    "readers": "Processes that read long texts and media",
    "readers_busy": "Processes that are reading a long text or media",
    "running_requests": "Requests that a language model is working on",
    "kv_tokens_used": "KV cache tokens that running requests hold",
    "kv_tokens_cached": "KV cache tokens kept for later prompts that begin with them",
    "kv_tokens_limit": "Size of the KV cache in tokens",
    "cache_bytes": "Size of the encoder cache",
    "waiting_frames": "Codec frames that wait for the vocoder",
    "slots_used": "Utterances whose state the vocoder keeps",
    "slots_limit": "Utterances whose state the vocoder has room for",
}


class Metrics:
    """The metrics of one gateway, in a separate Prometheus registry.

    Args:
        pipeline: Source of the metrics of stages, edges and processes.
        model: Name of the model.
        admission: Counts the requests that wait to be let in, and what all requests hold.
        dropped_late: Returns the number of messages that came for a request after its end.
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
            "omni_requests", "Chat requests by how they ended", ["outcome"], registry=registry
        )  # outcome: ok, refused (4xx), failed (5xx), cancelled (the client left)
        self.errors = Counter("omni_errors", "Errors by code", ["code"], registry=registry)
        self.in_flight = Gauge("omni_requests_in_flight", "Chat requests being served", registry=registry)
        registry.register(_AdmissionFigures(admission))
        self.first_text_seconds = Histogram(
            "omni_time_to_first_text_seconds",
            "From the request's arrival to the first text",
            buckets=_FIRST,
            registry=registry,
        )
        self.inter_text_seconds = Histogram(
            "omni_inter_text_seconds",
            "Between two pieces of text of one answer, usually tokens",
            buckets=_BETWEEN,
            registry=registry,
        )
        # Speech is measured as it comes from the pipeline, whether or not the answer is streamed.
        self.first_audio_seconds = Histogram(
            "omni_time_to_first_audio_seconds",
            "From the request's arrival to the first sound",
            buckets=_FIRST,
            registry=registry,
        )
        self.inter_audio_seconds = Histogram(
            "omni_inter_audio_seconds", "Between two chunks of sound of one answer", buckets=_BETWEEN, registry=registry
        )
        self.audio_chunks = Counter("omni_audio_chunks", "Chunks of sound", registry=registry)
        self.audio_seconds = Counter("omni_audio_seconds", "Length of all sound", registry=registry)
        self.codec_frames = Counter("omni_codec_frames", "Codec frames of all sound", registry=registry)
        self.real_time_factor = Histogram(
            "omni_real_time_factor",
            "Time from the request's arrival to the last sound, divided by the length of the sound",
            buckets=_FACTORS,
            registry=registry,
        )
        self.playback_underruns = Counter(
            "omni_playback_underruns",
            "Silences of more than 0.1 s in a player that starts with the first sound",
            registry=registry,
        )
        self.playback_silence_seconds = Counter(
            "omni_playback_silence_seconds",
            "Length of the silences that omni_playback_underruns counts",
            registry=registry,
        )
        self.request_seconds = Histogram(
            "omni_request_seconds",
            "From the request's arrival to the end of its answer",
            buckets=_LONG,
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
        build = Gauge("omni_build_info", "Always 1; its labels say what runs", ["version", "model"], registry=registry)
        build.labels(__version__, model).set(1)
        registry.register(_PipelineFigures(pipeline, dropped_late))
        registry.register(_TraceFigures(traces))

    def count_tokens(self, usage: TokenUsage) -> None:
        """Add the tokens of one complete answer."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        for kind, tokens in usage.media_tokens.items():
            self._media_tokens.labels(kind).inc(tokens)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that an `Accept` header asks for, and the media type of that format.

        A header in which the version of a format is not a number gets Prometheus' text format.
        """
        sane = all(_SANE_VERSION.fullmatch(version) for version in _ANY_VERSION.findall(accept))
        encode, media_type = choose_encoder(accept if sane else "")
        return encode(self._registry), media_type


class _PipelineFigures(MetricSource):
    """Collects the metrics of the pipeline at each scrape, from the latest reports of the workers."""

    def __init__(self, pipeline: Pipeline, dropped_late: Callable[[], int]) -> None:
        self._pipeline = pipeline
        self._dropped_late = dropped_late

    def describe(self) -> Iterable[Metric]:
        return ()  # called on registration, when there may be no pipeline yet

    def collect(self) -> Iterator[Metric]:
        late = CounterMetricFamily("omni_late_messages", "Messages that came for requests that were over")
        late.add_metric([], self._dropped_late())
        yield late
        yield from self._stages()
        yield from self._own()
        yield from self._edges()
        yield from self._processes()

    def _stages(self) -> Iterator[Metric]:
        live = GaugeMetricFamily("omni_stage_live_requests", "Requests a stage holds state for", labels=["stage"])
        seconds = HistogramMetricFamily("omni_stage_step_seconds", "Time of one step of a stage", labels=["stage"])
        sizes = HistogramMetricFamily("omni_stage_batch_size", "Requests in one batch of a stage", labels=["stage"])
        counters = {
            field: CounterMetricFamily(f"omni_stage_{field}", meaning, labels=["stage"])
            for field, meaning in _STAGE_COUNTERS.items()
        }
        for name, stats in self._pipeline.stats.items():
            live.add_metric([name], stats.live_requests)
            _add(seconds, [name], stats.step_seconds)
            _add(sizes, [name], stats.batch_sizes)
            for field, family in counters.items():
                family.add_metric([name], getattr(stats, field))
        yield from (live, seconds, sizes, *counters.values())

    def _own(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {
            **{
                own: CounterMetricFamily(f"omni_stage_{own}", text, labels=["stage"])
                for own, text in _OWN_COUNTERS.items()
            },
            **{
                own: GaugeMetricFamily(f"omni_stage_{own}", text, labels=["stage"]) for own, text in _OWN_GAUGES.items()
            },
        }
        other = GaugeMetricFamily(
            "omni_stage_figure",
            "Values reported by stages that have no metric of their own",
            labels=["stage", "figure"],
        )
        for name, stats in self._pipeline.stats.items():
            for own, value in stats.extra.items():
                if own in families:
                    families[own].add_metric([name], value)
                else:
                    other.add_metric([name, own], value)
        yield from (family for family in (*families.values(), other) if family.samples)

    def _edges(self) -> Iterator[Metric]:
        labels = ["source", "target"]
        messages = CounterMetricFamily("omni_edge_messages", "Messages from stage to stage", labels=labels)
        size = CounterMetricFamily(
            "omni_edge_bytes", "Bytes of messages between stages in different processes", labels=labels
        )
        seconds = HistogramMetricFamily(
            "omni_edge_latency_seconds",
            "From the end of the sender's step until the receiver took the message",
            labels=labels,
        )
        for edge in self._pipeline.edges:
            messages.add_metric([edge.source, edge.target], edge.messages)
            size.add_metric([edge.source, edge.target], edge.bytes)
            _add(seconds, [edge.source, edge.target], edge.seconds)
        yield from (messages, size, seconds)

    def _processes(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("omni_worker_up", "Whether a worker's process runs", labels=["worker"])
        restarts = CounterMetricFamily("omni_worker_restarts", "Times a worker was started again", labels=["worker"])
        pids = self._pipeline.pids
        for worker, count in self._pipeline.restarts.items():
            up.add_metric([worker], worker in pids)
            restarts.add_metric([worker], count)
        memory = GaugeMetricFamily(
            "omni_process_resident_memory_bytes", "Memory of a process, shared pages included", labels=["process"]
        )
        cpu = CounterMetricFamily("omni_process_cpu_seconds", "CPU time of a process", labels=["process"])
        for process, pid in {"main": os.getpid(), **pids}.items():
            used = usage(pid)
            if used is not None:
                memory.add_metric([process], used.resident_bytes)
                cpu.add_metric([process], used.cpu_seconds)
        yield from (up, restarts, memory, cpu)


class _AdmissionFigures(MetricSource):
    """Collects the numbers of waiting requests, and of bytes that requests hold."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        admission = self._admission
        grants = admission.grants
        yield GaugeMetricFamily(
            "omni_requests_waiting", "Chat requests that wait to be let in", value=admission.waiting
        )
        yield GaugeMetricFamily(
            "omni_requests_leaving",
            "Chat requests that have ended, but that a worker has not forgotten yet",
            value=admission.leaving,
        )
        yield GaugeMetricFamily(
            "omni_held_bytes", "Bodies and undecoded media that chat requests hold", value=admission.held_bytes
        )
        yield GaugeMetricFamily(
            "omni_decoded_bytes", "Memory granted to chat requests for decoded media", value=grants.held
        )
        yield GaugeMetricFamily(
            "omni_decoded_limit_bytes", "Largest sum of the memory for decoded media", value=grants.limit
        )
        yield GaugeMetricFamily(
            "omni_requests_waiting_for_memory",
            "Chat requests whose media are not decoded yet because others hold the memory",
            value=grants.waiting,
        )


class _TraceFigures(MetricSource):
    """Collects the numbers of traces that were written, dropped or cut short."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def collect(self) -> Iterator[Metric]:
        traces = self._traces
        yield CounterMetricFamily("omni_traces_written", "Traces that were written or sent", value=traces.written)
        yield CounterMetricFamily(
            "omni_traces_dropped", "Traces not written: too many waited, or writing failed", value=traces.dropped
        )
        yield CounterMetricFamily(
            "omni_trace_spans_dropped", "Spans left out of traces that were too long", value=traces.dropped_spans
        )


def _add(family: HistogramMetricFamily, labels: list[str], figures: Distribution) -> None:
    bounds = [*map(floatToGoString, figures.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, map(float, accumulate(figures.counts)), strict=True)), figures.total)
