"""Collects the timelines of traced requests from all processes, and writes or sends them.

The timelines go to files or to OpenTelemetry. Workers record their notes in `omni_pipeline.worker`. Metrics, which
cover all requests, are in `gateway.metrics`.
"""
