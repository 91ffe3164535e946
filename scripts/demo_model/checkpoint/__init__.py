"""The demo model as files: sizes, tokenizer, export."""
