"""Finds or assembles the tools that libraries use to compile GPU kernels at first use.

The search for compilers, ``ninja`` and a CUDA toolkit belongs in this package. The kernels themselves are in the
libraries.
"""
