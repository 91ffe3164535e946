"""Tests the server with popular client libraries, each in its own environment (`make test-clients`)."""
