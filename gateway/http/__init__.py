"""HTTP as such: connections, request ids, keys, origins, error bodies, event streams. Not: what is asked."""
