"""The names and meaning of everything on `/metrics`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as MetricSource

from omni_pipeline.wire import StageStats
from stages.messages import Usage

_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 5, 10)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_STAGE_COUNTERS = {
    "received": "Messages a stage has taken",
    "sent": "Messages a stage has sent",
    "steps": "Batches a stage has computed",
    "busy_seconds": "Time a stage has spent computing",
    "dropped_late": "Messages a stage dropped because their request was over",
}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")


class Metrics:
    """The figures of one gateway, in a registry of its own.

    Args:
        stages: Gives the latest figures of each stage.
        dropped_late: Gives how many messages came for requests that were over.
    """

    def __init__(self, stages: Callable[[], Mapping[str, StageStats]], dropped_late: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "omni_requests", "Chat requests by how they ended", ["outcome"], registry=registry
        )  # outcome: ok, refused (4xx), failed (5xx), cancelled (the client left)
        self.errors = Counter("omni_errors", "Errors by code", ["code"], registry=registry)
        self.in_flight = Gauge("omni_requests_in_flight", "Chat requests being served", registry=registry)
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
        # Of speech, as it comes from the pipeline, whether or not the answer is streamed.
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
        self.real_time_factor = Histogram(
            "omni_real_time_factor",
            "From the request's arrival to the last sound, by the length of the sound",
            buckets=_FACTORS,
            registry=registry,
        )
        self.playback_underruns = Counter(
            "omni_playback_underruns",
            "How often a player that starts with the first sound would have had nothing to play",
            registry=registry,
        )
        self.playback_silence_seconds = Counter(
            "omni_playback_silence_seconds", "How long it would have had nothing to play", registry=registry
        )
        self.request_seconds = Histogram(
            "omni_request_seconds",
            "From the request's arrival to the end of its answer",
            buckets=_LONG,
            registry=registry,
        )
        self.media_seconds = Histogram(
            "omni_media_seconds", "Loading the media of a request that has any", buckets=_FIRST, registry=registry
        )
        self.media_bytes = Counter("omni_media_bytes", "Bytes of media loaded, by kind", ["kind"], registry=registry)
        self._prompt_tokens = Counter("omni_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached_tokens = Counter("omni_cached_tokens", "Prompt tokens found in a cache", registry=registry)
        self._media_tokens = Counter("omni_media_tokens", "Prompt tokens of media", ["kind"], registry=registry)
        self._completion_tokens = Counter("omni_completion_tokens", "Generated tokens", registry=registry)
        registry.register(_Stages(stages, dropped_late))

    def count_tokens(self, usage: Usage) -> None:
        """Add the tokens of one complete answer."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        for kind, tokens in usage.media_tokens.items():
            self._media_tokens.labels(kind).inc(tokens)

    def page(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _Stages(MetricSource):
    """The stages' own figures, read at the moment they are asked for."""

    def __init__(self, stages: Callable[[], Mapping[str, StageStats]], dropped_late: Callable[[], int]) -> None:
        self._stages = stages
        self._dropped_late = dropped_late

    def describe(self) -> list[Metric]:
        return []  # which figures there are is known only once the stages have spoken

    def collect(self) -> Iterator[Metric]:
        stages = self._stages()
        late = CounterMetricFamily("omni_late_messages", "Answers that came for requests that were over")
        late.add_metric([], self._dropped_late())
        yield late
        live = GaugeMetricFamily("omni_stage_live_requests", "Requests a stage holds something for", labels=["stage"])
        for name, stats in stages.items():
            live.add_metric([name], stats.live_requests)
        yield live
        for field, meaning in _STAGE_COUNTERS.items():
            family = CounterMetricFamily(f"omni_stage_{field}", meaning, labels=["stage"])
            for name, stats in stages.items():
                family.add_metric([name], getattr(stats, field))
            yield family
        extras: dict[str, GaugeMetricFamily] = {}
        for name, stats in stages.items():
            for figure, value in stats.extra.items():
                metric = f"omni_stage_{_NOT_IN_NAMES.sub('_', figure)}"
                gauge = extras.setdefault(metric, GaugeMetricFamily(metric, "A stage's own figure", labels=["stage"]))
                gauge.add_metric([name], value)
        yield from extras.values()
