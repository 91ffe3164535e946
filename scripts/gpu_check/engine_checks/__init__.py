"""The checks of part 2, our engine on SGLang: each is a module with `run(setup, checkpoint)`; `engine.py` runs them."""

SECONDS = {"thinker": 200, "talker": 150}
"""Names of the modules, each with the maximum seconds of the whole deadline that it may take."""
