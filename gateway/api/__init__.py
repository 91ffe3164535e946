"""The HTTP API as data: what a body may contain, and what answers look like. Not here: how an answer is made."""
