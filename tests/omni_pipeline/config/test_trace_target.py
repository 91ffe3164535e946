"""The configuration and OpenTelemetry's environment variables select the target of traces."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from omni_pipeline.config import trace_target
from omni_pipeline.config.schema import Trace
from omni_pipeline.errors import StartupError

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}
SPANS = "http://collector:4318/v1/traces"


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        (BASE, SPANS),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/own/path"}, "http://c/own/path"),
        (BASE | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/own/path"}, "http://c/own/path"),
        (BASE | {"OTEL_SDK_DISABLED": "true"}, None),
        (BASE | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (BASE | {"OTEL_TRACES_EXPORTER": "otlp"}, SPANS),
        (BASE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, SPANS),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
    ],
)
def test_environment_names_the_collector(environment: dict[str, str], endpoint: str | None) -> None:
    resolved = trace_target.resolve_trace(Trace(), environment)
    assert resolved.otlp_endpoint == endpoint
    assert resolved.on == (endpoint is not None)


def test_configuration_wins_over_the_environment() -> None:
    resolved = trace_target.resolve_trace(Trace(otlp_endpoint="http://mine:4318"), BASE)
    assert resolved.otlp_endpoint == "http://mine:4318/v1/traces"


def test_protocol_that_is_not_spoken_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        resolved = trace_target.resolve_trace(Trace(), BASE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert not resolved.on
    assert "grpc" in caplog.text


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.usefixtures("no_packages")
def test_without_the_packages_the_environment_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not trace_target.resolve_trace(Trace(), BASE).on
    assert "opentelemetry-sdk" in caplog.text


@pytest.mark.usefixtures("no_packages")
def test_without_the_packages_the_configuration_is_refused() -> None:
    with pytest.raises(StartupError, match="opentelemetry-sdk"):
        trace_target.resolve_trace(Trace(otlp_endpoint="http://mine:4318"), {})


def test_directory_is_made(tmp_path: Path) -> None:
    trace_target.prepare(Trace(dir=str(tmp_path / "a" / "b")))
    assert (tmp_path / "a" / "b").is_dir()


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="traces"):
        trace_target.prepare(Trace(dir=str(tmp_path / "file" / "below")))
