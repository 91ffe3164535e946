"""Finds, or makes, the tools that compile GPU kernels when a library first needs them.

The search for compilers, ``ninja`` and a CUDA toolkit belongs here. The kernels themselves belong to the libraries.
"""
