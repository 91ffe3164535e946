"""Types for the number of bytes that messages carry on an edge. The number matters if the ends of the edge are on
different hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from omni_pipeline.contract.stage_memory import Situation


class Traffic(Struct, frozen=True):
    """The bytes of all messages of one example request on an edge.

    Attributes:
        text: Bytes if the prompt is text.
        media: Bytes if all tokens of the prompt are media of the kind that needs the most bytes on this edge.
    """

    text: int
    media: int


TellTraffic: TypeAlias = Callable[[Situation], Traffic]
"""Computes the traffic of an edge. The argument is the `Situation` of the stage that sends messages on this edge."""
