"""The checks that `parts.py` runs. Each check is a module with a function `run(setup)`, which yields findings."""

SECONDS = {
    "machine": 40,
    "rotary": 30,
    "predictor": 90,
    "sampler": 40,
    "vocoder": 60,
    "towers": 60,
    "ring": 60,
    "copies": 30,
}
"""The maximum number of seconds that each module may take. The modules run in this order."""
