"""Model definitions for SGLang's external model registry; each names its class in ``EntryClass``.

`omni_decoder` has what the thinker and the talker share. How SGLang runs them belongs in the folder above.
"""
