"""Tests the conversion of timelines into OpenTelemetry's spans."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.traces import otlp
from gateway.traces.otlp import OtlpExport
from tests.gateway.traces.requests import TRACE_ID, spoken, traced

PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"


def sent(**figures: object) -> dict[str, ReadableSpan]:
    """The exported OpenTelemetry spans of a request, by name."""
    exporter = InMemorySpanExporter()
    OtlpExport("http://unused", exporter).write(spoken(**figures), {"thinker": "gpu"})
    return {span.name: span for span in exporter.get_finished_spans()}


def test_spans_are_a_tree_of_request_stages_and_steps() -> None:
    spans = sent()
    parents = {span.context.span_id: name for name, span in spans.items() if span.context}
    tree = {name: parents.get(span.parent.span_id) if span.parent else None for name, span in spans.items()}
    assert tree == {
        "chat tiny": None,
        "read": "chat tiny",
        "thinker": "chat tiny",
        "gateway → thinker": "thinker",
        "thinker queue": "thinker",
        "thinker step": "thinker",
        "decode": "chat tiny",
        "thinker → decode": "decode",
        "decode gather": "decode",
        "decode step": "decode",
    }


def test_trace_has_the_id_that_the_log_names() -> None:
    assert {f"{span.context.trace_id:032x}" for span in sent().values() if span.context} == {TRACE_ID}


def test_times_are_those_of_the_clock() -> None:
    step = sent()["thinker step"]
    assert step.start_time == pytest.approx(1_700_000_000.3 * 1e9, abs=1e3)
    assert step.end_time == pytest.approx(1_700_000_000.6 * 1e9, abs=1e3)


def test_root_says_what_was_asked_and_answered() -> None:
    root = sent(stage=None)["chat tiny"]
    assert root.kind is SpanKind.SERVER
    assert root.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.usage.output_tokens": 3,
        "omni.request_id": "req-1",
        "omni.outcome": "ok",
    }
    assert root.resource.attributes["service.name"] == "omni-pipeline"


def test_stage_says_where_it_ran_and_what_it_did() -> None:
    spans = sent()
    assert spans["thinker"].attributes is not None
    assert spans["thinker"].attributes["omni.process"] == "gpu"
    assert spans["thinker"].attributes["omni.steps"] == 1
    assert spans["thinker step"].attributes == {"omni.batch": 4}


@pytest.mark.parametrize(("outcome", "status"), [("ok", StatusCode.UNSET), ("failed", StatusCode.ERROR)])
def test_failure_is_the_status_of_the_root(outcome: str, status: StatusCode) -> None:
    root = sent(outcome=outcome, code="worker_lost")["chat tiny"]
    assert root.status.status_code is status
    assert root.attributes is not None
    assert root.attributes["error.type"] == "worker_lost"


def test_caller_is_the_parent() -> None:
    exporter = InMemorySpanExporter()
    OtlpExport("http://unused", exporter).write(traced(headers={"traceparent": PARENT}), {})
    [root] = exporter.get_finished_spans()
    assert root.parent is not None
    assert root.parent.is_remote
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"


def test_caller_that_does_not_sample_is_heeded() -> None:
    exporter = InMemorySpanExporter()
    OtlpExport("http://unused", exporter).write(traced(headers={"traceparent": UNSAMPLED}), {})
    assert exporter.get_finished_spans() == ()


def test_service_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-speech")
    assert sent()["chat tiny"].resource.attributes["service.name"] == "my-speech"


def test_single_steps_beyond_the_bound_are_left_out_but_stages_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MOST_DETAILS", 2)
    spans = sent()
    assert spans.keys() == {"chat tiny", "thinker", "decode", "read", "gateway → thinker"}
    assert spans["chat tiny"].attributes is not None
    assert spans["chat tiny"].attributes["omni.spans_left_out"] == 5


def test_collector_that_takes_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(exporter, "export", lambda spans: SpanExportResult.FAILURE)
    with pytest.raises(ConnectionError):
        OtlpExport("http://unused", exporter).write(spoken(), {})
