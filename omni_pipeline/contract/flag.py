"""A command-line flag as data: the framework has some, and a model can bring its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

# The groups of ``--help``, in this order.
MODEL = "Model"


PLACEMENT = "Where it computes"


MEMORY = "GPU memory"


NETWORK = "Network"


MEDIA = "Media the server may read"


LIMITS = "Limits"


INSIGHT = "Logs and traces"


class Flag(Struct, frozen=True):
    """One flag. It can also be given as an environment variable, see `variable`.

    Attributes:
        name: With its dashes.
        settings: Dotted paths of what it sets.
        help, panel, metavar: For ``--help``.
        default: The default that ``--help`` shows; False shows none.
        kind: Type of its value; `bool` for a flag without one, ``list[…]`` for one that can be repeated.
        environment: Name of its environment variable, if that is not ``SGL_OMNI_`` and the flag's name.
        parse: Converts the text to the value, if `kind` alone cannot. Raises ValueError with the reason.
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

    @property
    def variable(self) -> str:
        """``SGL_OMNI_MODEL_PATH`` for ``--model-path``."""
        return self.environment or "SGL_OMNI_" + self.parameter.upper()

    @property
    def parameter(self) -> str:
        """Name of the Python parameter that gets its value."""
        return self.name.lstrip("-").replace("-", "_")
