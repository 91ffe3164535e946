"""The parts of Qwen3-Omni: one package for each stage, and the graph that the stages form.

In this package, *the reference* is the implementation of Qwen3-Omni in Hugging Face's `transformers`, whose results the
stages reproduce. Everything particular to this model belongs in this package. From the framework (`omni_pipeline`),
stages may import only `contract`, `wire` and a few helpers; `tests/test_floors.py` lists the permitted modules.
"""
