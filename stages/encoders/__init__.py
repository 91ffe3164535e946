"""The stages image_encoder and audio_encoder, and what they share."""
