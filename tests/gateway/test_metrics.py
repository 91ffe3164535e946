"""Tests the page of metrics: the values, the format that Prometheus' tools need, and the agreement with the docs and
the dashboard.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from gateway import metrics
from gateway.admission import Admission
from gateway.metrics import Metrics
from gateway.traces.traces import Traces
from omni_pipeline.config.schema import Limits
from omni_pipeline.os_process import ProcessUsage
from omni_pipeline.supervision.bindings import RouteReport
from omni_pipeline.supervision.prompt_loads import CacheUse
from omni_pipeline.supervision.remote_hosts import HostReport
from omni_pipeline.supervision.replica_choice import Reason
from omni_pipeline.supervision.worker_state import ReplicaReport
from omni_pipeline.wire.counters import Distribution, EdgeStats
from omni_pipeline.wire.messages import StageStats
from stages.messages import TokenUsage
from tests.gateway.scripted import ScriptedPipeline

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "observability.md").read_text()
DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def full(pipeline: ScriptedPipeline) -> Metrics:
    """Metrics in which every possible series has a value."""
    figures = dict.fromkeys((*metrics._OWN_COUNTERS, *metrics._OWN_GAUGES, "of-its-own"), 1.0)
    pipeline.stats = {"thinker": StageStats(extra=figures)}
    pipeline.edges = [EdgeStats("thinker", "decode", messages=3, bytes=500)]
    pipeline.restarts = {"thinker": 2, "decode": 0}
    pipeline.pids = {"decode": 1}
    pipeline.usages = {"decode": ProcessUsage(5, 2.5)}
    whole = Metrics(
        pipeline,
        model="tiny",
        admission=Admission(Limits()),
        dropped_late=lambda: 6,
        healthy=lambda: True,
        traces=Traces([], lambda: ()),
    )
    whole.requests.labels("ok").inc()
    whole.errors.labels("invalid_value").inc()
    whole.realtime_responses.labels("completed").inc()
    whole.realtime_speculations.labels("kept").inc()
    whole.media_bytes.labels("image").inc(7)
    usage = TokenUsage(prompt_tokens=11, completion_tokens=3, cached_tokens=4, media_tokens={"image": 5})
    whole.count_prompt(usage)
    whole.count_completion(usage)
    return whole


@pytest.fixture
def families() -> list[Metric]:
    return list(parse(full(ScriptedPipeline()).page()[0].decode()))


def samples(families: list[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(families: list[Metric], name: str, **labels: str) -> float:
    return samples(families)[name, frozenset(labels.items())]


# --- its values -------------------------------------------------------------------------------------------------------


def test_edges_and_workers_are_shown(families: list[Metric]) -> None:
    assert value(families, "omni_edge_messages_total", source="thinker", target="decode") == 3
    assert value(families, "omni_edge_bytes_total", source="thinker", target="decode") == 500
    assert value(families, "omni_worker_restarts_total", worker="thinker") == 2
    assert value(families, "omni_worker_up", worker="thinker") == 0
    assert value(families, "omni_worker_up", worker="decode") == 1


def test_own_figures_of_stages_have_names_and_the_unknown_ones_a_label(families: list[Metric]) -> None:
    assert value(families, "omni_stage_cache_hits_total", stage="thinker") == 1
    assert value(families, "omni_stage_kv_tokens_used", stage="thinker") == 1
    assert value(families, "omni_stage_figure", stage="thinker", figure="of-its-own") == 1


def test_distributions_become_histograms() -> None:
    pipeline = ScriptedPipeline()
    whole = full(pipeline)
    seconds = Distribution.over((0.1, 1.0))
    for figure in (0.05, 0.1, 0.5, 7.0):
        seconds.add(figure)
    pipeline.stats = {"thinker": StageStats(step_seconds=seconds)}
    families = list(parse(whole.page()[0].decode()))
    name = "omni_stage_step_seconds"
    buckets = [value(families, f"{name}_bucket", stage="thinker", le=bound) for bound in ("0.1", "1.0", "+Inf")]
    assert buckets == [2, 3, 4]
    assert value(families, f"{name}_sum", stage="thinker") == pytest.approx(7.65)
    assert value(families, f"{name}_count", stage="thinker") == 4


def test_memory_and_time_of_processes_are_shown(families: list[Metric]) -> None:
    assert value(families, "omni_process_resident_memory_bytes", process="main") > 10 * 1024**2
    assert value(families, "omni_process_cpu_seconds_total", process="main") > 0


# --- its form ---------------------------------------------------------------------------------------------------------


def test_openmetrics_is_given_to_those_who_ask() -> None:
    page, media_type = full(ScriptedPipeline()).page(OPENMETRICS)
    assert media_type.startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(page.decode())} >= {"omni_requests", "omni_stage_steps"}


def test_names_follow_prometheus_conventions(families: list[Metric]) -> None:
    """The test makes the same checks as promtool: each metric has a help text, units are base units with full names,
    only counters end in `_total`, and no name contains a metric type.
    """
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert re.fullmatch(r"omni(_[a-z]+)+", family.name), family.name
        assert family.documentation, family.name
        assert not family.documentation.endswith("."), family.name
        words = family.name.split("_")
        assert not {"ms", "s", "sec", "milliseconds", "minutes", "kb", "mb", "gb", "percent"} & set(words), family.name
        assert not {"counter", "gauge", "histogram", "total", "count", "sum", "bucket"} & set(words), family.name
        suffixes = {sample.name.removeprefix(family.name) for sample in family.samples}
        expected = {"counter": {"_total"}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}[family.type]
        assert suffixes <= expected, family.name


def test_each_host_has_its_metrics(every_family: list[Metric]) -> None:
    found = samples(every_family)
    assert found["omni_host_up", frozenset({("host", "b")})] == 1
    assert found["omni_host_up", frozenset({("host", "c")})] == 0
    assert found["omni_host_lease_age_seconds", frozenset({("host", "b")})] == 0.5
    assert ("omni_host_lease_age_seconds", frozenset({("host", "c")})) not in found
    assert found["omni_connections_lost_total", frozenset()] == 3


def test_the_usage_of_workers_is_shown(families: list[Metric]) -> None:
    assert value(families, "omni_process_resident_memory_bytes", process="decode") == 5
    assert value(families, "omni_process_cpu_seconds_total", process="decode") == 2.5


def test_labels_are_only_those_that_cannot_grow(families: list[Metric]) -> None:
    names = {label for family in families for sample in family.samples for label in sample.labels}
    known = {"le", "stage", "figure", "source", "target", "worker", "process", "outcome", "code", "kind", "status"}
    assert names == known | {"version", "model"}


# --- the docs ---------------------------------------------------------------------------------------------------------


def shown(families: list[Metric]) -> set[str]:
    """The names of the metrics as the docs write them: counters with `_total`, histograms without a suffix."""
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


@pytest.fixture
def every_family() -> list[Metric]:
    """The metrics of a pipeline with replicas on several hosts, which has all metrics."""
    pipeline = ScriptedPipeline()
    pipeline.hosts = [HostReport("b", 0.5), HostReport("c", None)]
    pipeline.connections_lost = 3
    pipeline.replicas = [ReplicaReport("vocoder", 0, True, 3)]
    pipeline.routes = [RouteReport("all", {Reason.PREFIX: 2}, CacheUse(expected=30, found=25))]
    return list(parse(full(pipeline).page()[0].decode()))


def test_every_metric_is_documented_and_nothing_else(every_family: list[Metric]) -> None:
    documented = {
        name for row in DOCS.splitlines() if row.startswith("| `omni_") for name in names_in(row.split("|")[1])
    }
    assert documented == shown(every_family)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bomni_[a-z_]+", text))


def test_documented_types_are_true(every_family: list[Metric]) -> None:
    types = {name: family.type for family in every_family for name in shown([family])}
    for row in DOCS.splitlines():
        if row.startswith("| `omni_") and len(row.split("|")) == 5:
            _, names, kinds, _, _ = row.split("|")
            assert {types[name] for name in names_in(names)} == set(kinds.strip().split(", ")), row


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    alerts = [
        row.split("|")[2] for row in DOCS.splitlines() if row.count("|") == 3 and "omni_" in row and "omni-" not in row
    ]
    return [*panels, *alerts]


def test_every_name_in_dashboard_and_alerts_exists(families: list[Metric]) -> None:
    series = {sample.name for family in families for sample in family.samples}
    series |= {
        f"{family.name}{end}"
        for family in families
        if family.type == "histogram"
        for end in ("_bucket", "_sum", "_count")
    }
    used = {name for expression in expressions() for name in names_in(expression)}
    assert used <= series


def test_dashboard_shows_every_metric(families: list[Metric]) -> None:
    used = {name for panel in expressions() for name in names_in(panel)}
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    hidden = {"omni_stage_figure", "omni_stage_received_total", "omni_stage_sent_total", "omni_stage_frames_total"}
    hidden |= {"omni_stage_chunks_total", "omni_stage_cache_bytes", "omni_build_info"}
    assert shown(families) - bare == hidden


def test_dashboard_is_one_that_grafana_takes() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for expression in expressions():
        assert all(expression.count(left) == expression.count(right) for left, right in ("()", "{}", "[]")), expression
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_with_replicas_the_series_of_stages_and_edges_name_them() -> None:
    pipeline = ScriptedPipeline()
    whole = full(pipeline)
    plain = whole.page()[0].decode()
    assert "replica" not in plain
    pipeline.replicas = [ReplicaReport("vocoder", 0, True, 3), ReplicaReport("vocoder", 1, False, 0)]
    pipeline.edges = [EdgeStats("a", "code2wav", messages=3), EdgeStats("a", "code2wav", messages=4, replica=1)]
    lines = whole.page()[0].decode().splitlines()
    assert 'omni_replica_up{group="vocoder",replica="0"} 1.0' in lines
    assert 'omni_replica_up{group="vocoder",replica="1"} 0.0' in lines
    assert 'omni_replica_bound_requests{group="vocoder",replica="0"} 3.0' in lines
    assert 'omni_edge_messages_total{replica="1",source="a",target="code2wav"} 4.0' in sorted_labels(lines)
    assert 'omni_stage_live_requests{replica="0",stage="thinker"} 0.0' in sorted_labels(lines)
    names = {line.partition("{")[0].partition(" ")[0] for line in plain.splitlines() if not line.startswith("#")}
    assert names <= {line.partition("{")[0].partition(" ")[0] for line in lines}


def test_choices_of_replicas_are_counted() -> None:
    pipeline = ScriptedPipeline()
    pipeline.replicas = [ReplicaReport("all", 0, True, 3), ReplicaReport("vocoder", 0, True, 3)]
    pipeline.routes = [
        RouteReport("all", {Reason.PREFIX: 2, Reason.LOAD: 1, Reason.ONLY: 0}, CacheUse(expected=30, found=25)),
        RouteReport("vocoder", {Reason.PREFIX: 0, Reason.LOAD: 4, Reason.ONLY: 5}, None),
    ]
    families = list(parse(full(pipeline).page()[0].decode()))
    assert value(families, "omni_route_choices_total", group="all", reason="prefix") == 2
    assert value(families, "omni_route_choices_total", group="vocoder", reason="only") == 5
    assert value(families, "omni_route_expected_cached_tokens_total", group="all") == 30
    assert value(families, "omni_route_cached_tokens_total", group="all") == 25
    assert not any(labels == frozenset({("group", "vocoder")}) for _, labels in samples(families))


def sorted_labels(lines: list[str]) -> list[str]:
    """The samples in `lines`, with their labels in alphabetical order."""
    found = []
    for line in lines:
        name, brace, rest = line.partition("{")
        labels, _, value = rest.partition("} ")
        found.append(f"{name}{{{','.join(sorted(labels.split(',')))}}} {value}" if brace else line)
    return found
