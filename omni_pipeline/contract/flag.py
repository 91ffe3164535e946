"""Defines the type of command-line flags. The framework's flags and the additional flags of a model have this type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

# The groups of ``--help``, in this order.
MODEL = "Model"


PLACEMENT = "Devices and placement"


MEMORY = "GPU memory"


NETWORK = "Network"


MEDIA = "Media that the server may read"


LIMITS = "Limits"


INSIGHT = "Logs and traces"


class Flag(Struct, frozen=True):
    """One flag. The value of a flag can also come from an environment variable (see `variable`).

    Attributes:
        name: Name of the flag, with its dashes.
        settings: Dotted paths of the settings that the flag sets.
        help, panel, metavar: The flag's help text, its group, and the placeholder of its value, for ``--help``.
        default: The default that ``--help`` shows; with False, ``--help`` shows no default.
        kind: Type of the value; `bool` for a flag without a value, ``list[…]`` for a flag that can be repeated.
        environment: Name of the flag's environment variable. None if the name consists of ``SGL_OMNI_`` and the flag's
            name.
        guards: Whether the flag restricts the rights of clients. If the environment variable of such a flag is set but
            empty, the flag does not get its default. Instead, the value of a flag of kind `str` is empty, and for flags
            of other kinds the start fails.
        parse: Function that converts the text to the value; None if `kind` is sufficient for the conversion. The
            function raises ValueError with the reason.
    """

    name: str
    settings: tuple[str, ...]
    help: str
    panel: str
    metavar: str | None = None
    default: str | bool = False
    kind: Any = str
    parse: Callable[[str], Any] | None = None
    environment: str | None = None
    guards: bool = False

    @property
    def variable(self) -> str:
        """Name of the environment variable, such as ``SGL_OMNI_MODEL_PATH`` for ``--model-path``."""
        return self.environment or "SGL_OMNI_" + self.parameter.upper()

    @property
    def parameter(self) -> str:
        """Name of the Python parameter that receives the flag's value."""
        return self.name.lstrip("-").replace("-", "_")
