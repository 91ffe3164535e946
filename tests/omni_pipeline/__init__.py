"""Tests of the framework. Their small stages are in `echo_stages`."""
