"""The text server, end to end."""
