"""Trains the vision tower and the audio tower of the demo model."""
