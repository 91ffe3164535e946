"""Tests a server from end to end."""
