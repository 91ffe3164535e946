"""Tests complete servers: requests over HTTP, answers, logs, metrics and use of resources."""
