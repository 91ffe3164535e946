"""Contains the OpenAI-compatible HTTP server in front of a running pipeline, and a benchmark client for the API.

Everything that concerns HTTP or the API belongs here. Computing with a model belongs in `stages`, and running workers
in `omni_pipeline`. The server's process never imports torch.
"""
