"""The framework under omni-pipeline: wire, transport, graph, workers and their supervisor. It knows no model."""

__version__ = "0.1.0"
