"""Reads checkpoints: sizes, tensors, quantisation and weights, and the memory that each stage needs.

Some facts about checkpoints are needed by several stages, or by the planner. The code that finds these facts belongs in
this package. The code that computes with the weights belongs in the stages.
"""
