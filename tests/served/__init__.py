"""End-to-end tests of a server."""
