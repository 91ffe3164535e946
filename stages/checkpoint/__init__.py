"""Reads checkpoints: sizes, tensors, quantisation and weights, and the memory that each stage needs for them.

What several stages or the planner need to know of a checkpoint belongs here. Computing with the weights does not.
"""
