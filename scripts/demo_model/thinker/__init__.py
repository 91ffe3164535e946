"""Training of the thinker."""
