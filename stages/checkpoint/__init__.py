"""Reads checkpoints: sizes, tensors, quantisation and weights, and the memory that each stage needs for them.

Code that tells several stages or the planner about a checkpoint belongs here. Computing with the weights does not.
"""
