"""The checks of part 1, each a module with a `run(setup)` that yields findings; `parts.py` runs them."""

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
"""Names of the modules, in the order in which they run, each with the maximum seconds that it may take."""
