"""The OpenAI-style HTTP face of a running pipeline. It never imports torch."""
