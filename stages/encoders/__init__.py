"""The stages image_encoder and audio_encoder, and their common parts: batching and the cache of embeddings.

The two stages turn pixels and mel features into embedding rows, which are the inputs of the thinker. Decoding media
belongs in `stages.preprocessing`.
"""
