"""One worker process: its loop, its start, its ranks, its recorder. Not: who starts and watches it."""
