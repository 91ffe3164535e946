"""The stage talker_ar: turns the text of an answer, while it is generated, into codebook 0 of each codec frame.

The other codebooks belong in `stages.code_predictor`. The language model itself runs in `stages.sglang_engine`.
The package imports nothing by itself, because the simulation uses the order of work without torch.
"""
