"""Finds or assembles the tools with which libraries compile GPU kernels at first use.

The search for compilers, ``ninja`` and a CUDA toolkit belongs in this package. The kernels themselves belong to the
libraries.
"""
