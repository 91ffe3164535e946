"""The checks of part 1, each a module with `run(setup)` that gives findings; `parts.py` runs them in this order."""

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
"""Names of the modules, and the most seconds that each may take of the whole deadline."""
