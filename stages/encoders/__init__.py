"""The stages image_encoder and audio_encoder, and what they share: batching and the cache of embeddings.

They turn pixels and mel features into embedding rows. Decoding media belongs in `stages.preprocessing`.
"""
