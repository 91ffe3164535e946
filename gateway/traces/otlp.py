"""Sends timelines to an OpenTelemetry collector, over HTTP, through OpenTelemetry's own packages.

The module is imported only if a collector is configured. OpenTelemetry's environment variables for sampling, headers,
time-outs and the resource have their usual effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.traces.perfetto_files import summary
from gateway.traces.request_timeline import GATEWAY, TRANSFER, Span, Traced
from omni_pipeline import __version__

# Maximum number of spans that are sent for the waits, steps and transfers of one request. The totals per stage also
# count waits, steps and transfers beyond this limit.
MOST_DETAILS = 1000

# Maximum number of spans in one message to the collector.
_BATCH = 512

_SERVICE = "omni-pipeline"

# Maps the names of the values in `Traced.figures` to the names in OpenTelemetry's conventions.
_NAMES = {
    "model": "gen_ai.request.model",
    "answer_id": "gen_ai.response.id",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "code": "error.type",
}


class OtlpExport:
    """Sends traces to an OpenTelemetry collector; see `traces.Sink`.

    Args:
        endpoint: Full URL that spans are posted to.
        exporter: Exporter to use; None creates an exporter for `endpoint`.
    """

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        self._exporter = exporter or OTLPSpanExporter(endpoint=endpoint)
        self._ended = _Ended()
        self._ids = _Ids()
        resource = Resource.create({"service.version": __version__})
        # If the environment sets no service name, OpenTelemetry's default name begins with `unknown_service`.
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": _SERVICE}))
        provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer(_SERVICE, __version__)

    def write(self, timeline: Traced, places: Mapping[str, str]) -> None:
        """Send one timeline. Raises ConnectionError if the collector does not accept it."""
        self._ids.trace_id = int(timeline.trace_id, 16)
        _make_spans(self._tracer, timeline, places)
        spans = iter(self._ended.take())
        while batch := list(islice(spans, _BATCH)):
            if self._exporter.export(batch) is not SpanExportResult.SUCCESS:
                raise ConnectionError("the OpenTelemetry collector did not accept the trace")

    def close(self) -> None:
        self._exporter.shutdown()


class _Ids(RandomIdGenerator):
    """Gives each trace the id that the log shows for its request."""

    trace_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id


class _Ended(SpanProcessor):
    """Collects ended spans until `take` is called. Used in one thread only."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


def _make_spans(tracer: Tracer, timeline: Traced, places: Mapping[str, str]) -> None:
    def make(
        name: str,
        begin: float,
        end: float,
        parent: Context,
        attributes: dict[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Context:
        span = tracer.start_span(name, parent, kind, attributes, start_time=_nanoseconds(begin, timeline))
        if parent is caller and timeline.figures.get("outcome") == "failed":
            span.set_status(Status(StatusCode.ERROR, str(timeline.figures.get("code"))))
        span.end(_nanoseconds(end, timeline))
        return set_span_in_context(span, parent)

    # `Context()` is empty, because a request without a parent span must not become a child of this thread's current
    # span.
    caller = TraceContextTextMapPropagator().extract(timeline.headers, Context())
    name = f"chat {timeline.figures.get('model', '')}".rstrip()
    root = make(name, timeline.began, timeline.ended, caller, dict(_attributes(timeline)), SpanKind.SERVER)
    tracks = {GATEWAY: root}
    for track, total in timeline.sums.items():
        if track != GATEWAY:
            attributes = {"omni.process": places.get(track, track)}
            attributes |= {f"omni.{name}": value for name, value in summary(total).items()}
            tracks[track] = make(track, total.begin, total.end, root, attributes)
    for span in timeline.spans[:MOST_DETAILS]:
        make(_title(span), span.begin, span.end, tracks[span.track], {"omni.batch": span.batch} if span.batch else {})


def _title(span: Span) -> str:
    if span.name == TRANSFER:
        return f"{span.source} → {span.track}"
    return span.name if span.track == GATEWAY else f"{span.track} {span.name}"


def _attributes(timeline: Traced) -> Iterator[tuple[str, Any]]:
    yield "gen_ai.operation.name", "chat"
    for name, value in timeline.figures.items():
        if value is not None and name != "trace_id":
            yield _NAMES.get(name, f"omni.{name}"), value
    left_out = timeline.left_out + max(0, len(timeline.spans) - MOST_DETAILS)
    if left_out:
        yield "omni.spans_left_out", left_out


def _nanoseconds(when: float, timeline: Traced) -> int:
    return round((when + timeline.epoch) * 1e9)
