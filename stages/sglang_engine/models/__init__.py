"""Contains model definitions for SGLang's external model registry; each module names its class in ``EntryClass``.

`omni_decoder` has the code that the thinker and the talker share. Running the models belongs in the folder above.
"""
