"""Reads checkpoints: sizes, tensors, quantisation and weights, and the memory that each stage needs.

Facts about a checkpoint that several stages or the planner need belong in this package. Computing with the weights
belongs in the stages.
"""
