"""The OpenAI-style HTTP front end of a running pipeline. The server's process never imports torch."""
