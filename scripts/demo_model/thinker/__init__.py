"""Trains the thinker of the demo model."""
