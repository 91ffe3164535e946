"""Tests of the framework, with small stages of their own in `echo_stages`."""
