"""What happens to single requests, over all processes: collected here, and given to files or to OpenTelemetry."""
