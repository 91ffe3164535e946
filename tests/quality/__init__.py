"""Tests of whether answers are right and speech is clear, on the only trained checkpoint: the demo model."""
