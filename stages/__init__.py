"""The parts of Qwen3-Omni: one package for each stage, and the graph that the stages form.

In this package, *the reference* is the implementation of Qwen3-Omni in Hugging Face's `transformers`, whose results the
stages reproduce. Everything particular to this model belongs in this package. Stages may import only the contract, the
messages and a few helpers from the framework; `tests/test_floors.py` lists the permitted modules.
"""
