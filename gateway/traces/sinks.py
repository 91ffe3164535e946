"""Creates the trace sinks that the configuration asks for."""

from __future__ import annotations

from pathlib import Path

from gateway.traces.perfetto_files import ChromeFiles
from gateway.traces.traces import Sink
from omni_pipeline.config.schema import Trace


def sinks(trace: Trace) -> list[Sink]:
    """The configured sinks for traces; empty if no sink is configured."""
    made: list[Sink] = []
    if trace.dir is not None:
        made.append(ChromeFiles(Path(trace.dir), trace.files, trace.total_bytes))
    if trace.otlp_endpoint is not None:
        from gateway.traces.otlp import OtlpExport

        made.append(OtlpExport(trace.otlp_endpoint))
    return made
