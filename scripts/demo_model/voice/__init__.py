"""Training of the codec, the vocoder, the talker and its code predictor."""
