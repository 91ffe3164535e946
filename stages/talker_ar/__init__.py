"""The stage talker_ar: turns the text of an answer, while it is generated, into codebook 0 of each codec frame.

The other codebooks belong in `stages.code_predictor`. The language model itself runs in `stages.sglang_engine`.
This `__init__` imports nothing. So the simulation can import `voice_order` and `text_pace`, which decide the order of
work, without loading torch.
"""
