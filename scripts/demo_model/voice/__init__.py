"""Trains the codec, the vocoder, the talker and the code predictor of the demo model."""
