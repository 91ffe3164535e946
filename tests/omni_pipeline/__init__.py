"""Tests the framework, with the small stages in `echo_stages`."""
