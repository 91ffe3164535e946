"""Tests that answers are right and that speech is clear. The tests use the demo model, which is the only trained
checkpoint.
"""
