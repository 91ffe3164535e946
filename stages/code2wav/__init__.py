"""The stage code2wav, also called the vocoder: turns codec frames into sound, as they arrive.

The streaming vocoder and its state belong in this package. Audio file formats belong in `gateway.answers`.
This `__init__` imports nothing. So the simulation can import `chunk_order`, which decides the order of work, without
loading torch.
"""
