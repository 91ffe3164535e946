"""The stage code_predictor: the residual codes of every codec frame."""

from stages.code_predictor.stage import CodePredictor

__all__ = ["CodePredictor"]
