"""Model definitions for SGLang's external model registry: each module here names its class in ``EntryClass``."""
