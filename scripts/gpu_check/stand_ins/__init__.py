"""Replaces SGLang's compiled kernels by the same operations in torch, on a machine that does not have the kernels."""
