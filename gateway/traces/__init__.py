"""Collects the timelines of traced requests from all processes, and writes or sends them.

The timelines are written to files or sent to an OpenTelemetry collector. Workers record their notes in
`omni_pipeline.worker`. Metrics, which cover all requests, are in `gateway.metrics`.
"""
