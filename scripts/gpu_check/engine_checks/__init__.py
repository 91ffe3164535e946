"""The checks of our engine on SGLang, which `engine.py` runs. Each check is a module with a function `run(setup,
checkpoint)`.
"""

SECONDS = {"thinker": 200, "talker": 150}
"""The maximum number of seconds that each module may take. The modules run in this order."""
