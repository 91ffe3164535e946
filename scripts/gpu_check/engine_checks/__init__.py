"""The checks of part 2: our engine on SGLang, each a module with `run(setup, checkpoint)`; `engine.py` runs them."""

SECONDS = {"thinker": 200, "talker": 150}
"""Names of the modules, and the most seconds that each may take of the whole deadline."""
