"""Reads checkpoints: sizes, tensors, quantisation and weights, and the memory that each stage needs for them.

Facts about a checkpoint that several stages or the planner need belong here. Computing with the weights does not.
"""
