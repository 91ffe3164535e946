"""Traces of single requests through all processes: collected here, and written to files or sent to OpenTelemetry."""
