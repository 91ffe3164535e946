"""The stage code2wav, also called the vocoder: turns codec frames into sound, as they arrive.

The streaming vocoder and its state belong in this package. Audio file formats belong in `gateway.answers`.
The package imports nothing by itself, because the simulation uses the order of work without torch.
"""
