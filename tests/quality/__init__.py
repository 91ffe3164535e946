"""Tests that answers are right and speech is clear, with the only trained checkpoint: the demo model."""
