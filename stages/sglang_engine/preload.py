"""Imports everything an engine needs; slow, and done once in the process that workers are forked from."""

from stages.sglang_engine import environment

environment.prepare()
