"""Collects the timelines of traced requests from all processes, and writes or sends them.

The timelines are written to files or sent to an OpenTelemetry collector. The code with which workers record their part
of a timeline (their *notes*) is in `omni_pipeline.worker`. Metrics, which cover all requests, are in `gateway.metrics`.
"""
