"""Puts the demo model into files: its configuration, its tokenizer and its weights."""
