"""HTTP itself: connections, request ids, keys, origins, error bodies, event streams. Not here: what is asked."""
