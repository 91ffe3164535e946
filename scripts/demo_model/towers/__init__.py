"""Training of the vision tower and the audio tower."""
