"""Timelines of traced requests: collected from all processes, then written to files or sent to OpenTelemetry.

What a worker notes is recorded in `omni_pipeline.worker`. Metrics, which cover all requests, are in `gateway.metrics`.
"""
