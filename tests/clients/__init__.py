"""Tests the server with the client libraries that people use, in environments of their own (`make test-clients`)."""
