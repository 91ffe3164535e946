"""The stage code_predictor: computes the residual codes of every codec frame. Residual codes are the codes of all
codebooks except codebook 0.

The stage's network, its CUDA graphs and its choice of codes belong in this package. Codebook 0 comes from
`stages.talker_ar`.
"""

from stages.code_predictor.stage import CodePredictor

__all__ = ["CodePredictor"]
