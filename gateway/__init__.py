"""The HTTP server in front of a running pipeline, with an OpenAI-compatible API, and a benchmark client for this API.

Code that concerns HTTP or the API belongs in this package. Code that computes with a model belongs in `stages`. Code
that runs workers belongs in `omni_pipeline`. The server's process never imports torch.
"""
