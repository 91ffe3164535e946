"""Describes which stages of a graph one request passes through, and until when the request needs each stage."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class AnswerStream(Struct, frozen=True):
    """One of the streams that make up an answer.

    Attributes:
        stages: Stages that are needed until the stream has ended.
        first: Further stages that are needed only until the first message of the stream has arrived.
    """

    stages: frozenset[str]
    first: frozenset[str] = frozenset()


class Route(Struct, frozen=True):
    """The stages of one request.

    Attributes:
        before: Stages that are needed until the first message of the answer has arrived.
        outputs: The streams, by the stage that sends them to the collector. The answer is complete when all
            streams have ended.
    """

    before: frozenset[str]
    outputs: Mapping[str, AnswerStream]

    @property
    def all(self) -> frozenset[str]:
        """All stages that the request passes through."""
        return self.before.union(*(output.stages | output.first for output in self.outputs.values()))
