"""Defines the interface between the simulation of a deployment and the simulated stages of a model.

A simulated stage behaves as the real stage does, but computes nothing: it only decides which requests are in the next
step, and which messages follow. The simulation computes the time of each step with a formula, the *law* of the stage
(see `StepLaw`). Times are seconds of a virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from msgspec import Struct

MESSAGE_BYTES = 200
"""Approximate number of bytes of a message without its data."""


class StepLaw(Struct, frozen=True, forbid_unknown_fields=True):
    """The time of a step as a function of its batch, in seconds.

    The time is the sum of three parts: `step`, `item` for each item of the batch, and `token` for each prompt token. If
    there are `points`, they replace `step` and `item`: the time is interpolated between the two nearest points, and
    extended in a straight line beyond the last point.

    Attributes:
        points: Pairs of a number of items and a time, in the order of the number of items.
    """

    step: float = 0.0
    item: float = 0.0
    token: float = 0.0
    points: tuple[tuple[float, float], ...] = ()

    def seconds(self, items: float, tokens: int = 0) -> float:
        return self._of_items(items) + self.token * tokens

    def scaled(self, factor: float) -> StepLaw:
        """A law that multiplies the time of every batch by `factor`, compared with this law."""
        points = tuple((items, factor * seconds) for items, seconds in self.points)
        return StepLaw(factor * self.step, factor * self.item, factor * self.token, points)

    def _of_items(self, items: float) -> float:
        if not self.points:
            return self.step + self.item * items
        if len(self.points) == 1 or items <= self.points[0][0]:
            return self.points[0][1]
        pairs = list(zip(self.points, self.points[1:], strict=False))
        (few, short), (many, long) = next((pair for pair in pairs if items <= pair[1][0]), pairs[-1])
        return short + (long - short) * (items - few) / (many - few)


class SimulatedRequest(Struct, frozen=True):
    """A request of the load.

    Attributes:
        prompt_tokens: Length of the whole prompt, with its media tokens.
        media_tokens: Number of prompt tokens of pictures and clips.
        answer_tokens: Length of the text of the answer.
        audio_frames: Number of codec frames of the answer; 0 for an answer without speech.
    """

    id: str
    prompt_tokens: int
    media_tokens: int
    answer_tokens: int
    audio_frames: int


class SimulatedMessage(Struct, frozen=True):
    """A message between two stages.

    Attributes:
        request_id: Id of the request. Empty for `wire.messages.Advice` about several requests. All replicas of the
            target receive this advice.
        body: The content. The entry stage receives a `SimulatedRequest`, and the collector an `Output`.
        size: Number of bytes.
    """

    request_id: str
    source: str
    target: str
    body: Any
    size: int = MESSAGE_BYTES


class Output(Struct, frozen=True):
    """A part of an answer that has reached the collector.

    Attributes:
        tokens: Number of text tokens.
        sound: Length of the sound in seconds.
        last: Whether the stream ends.
    """

    tokens: int = 0
    sound: float = 0.0
    last: bool = False


class Batch(Struct, frozen=True):
    """The work of one step. A step without items takes no time: it only sends messages.

    Attributes:
        items: Number of items, such as requests or frames. The time of the step depends on this number (see `StepLaw`).
        tokens: Number of prompt tokens.
    """

    items: int = 0
    tokens: int = 0


class SimulatedStage(Protocol):
    """A stage without its network. `simulation.worker` calls its methods in the same way as `worker.loop` calls the
    methods of a real stage.
    """

    @property
    def patient(self) -> bool:
        """Whether the next step may wait while a stage of the same worker is urgent."""

    def has_work(self, now: float) -> bool:
        """Whether a step has work to do now."""

    def computes(self, now: float) -> bool:
        """Whether the next step needs the stage's device. Called only while `has_work` is true."""

    def wakes_at(self, now: float) -> float | None:
        """The time at which `has_work` can become true without a message."""

    def urgent(self, now: float) -> bool:
        """Whether a listener will notice if the next step is late."""

    def receive(self, message: SimulatedMessage, now: float) -> None:
        """Accept a message."""

    def begin(self, now: float) -> Batch:
        """Begin a step, and return its work."""

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        """End the step, and return its messages. `now` is the argument of `begin` plus the time of the step."""


class StageSite(Struct, frozen=True):
    """The input of a simulated stage when it is built.

    Attributes:
        name: The stage's name in the graph.
        options: An instance of the stage's options struct.
        replica: Number of the stage's replica.
        on_gpu: Whether the stage computes on a GPU.
        stages: Names of all stages that the deployment runs.
    """

    name: str
    options: Any
    replica: int
    on_gpu: bool
    stages: frozenset[str]


class LawSet(Struct, frozen=True):
    """The times of the steps of a model's stages, as one law for each stage.

    Attributes:
        laws: The law of each stage. The steps of a stage without a law take no time.
        source: Where the times were published or measured, as a sentence.
    """

    laws: dict[str, StepLaw]
    source: str


class SimulationModel(Struct, frozen=True):
    """The simulated stages of a model.

    Attributes:
        stages: For each stage, by name, the function that builds it.
        route: Function that returns the stages that a request passes through.
        outputs: Function that returns the stages that send a part of a request's answer to the collector. The request
            ends when all their streams have ended.
        law_sets: Sets of laws, keyed by the name for ``--laws NAME``. The first set is the default.
        item_counters: For each stage, by name, the metric that counts the items in the stage's batches. For a stage
            that is not listed, the items are requests.
        frame_seconds: Length of the sound of one of the request's audio frames.
    """

    stages: dict[str, Callable[[StageSite], SimulatedStage]]
    route: Callable[[SimulatedRequest], Collection[str]]
    outputs: Callable[[SimulatedRequest], Collection[str]]
    law_sets: dict[str, LawSet]
    item_counters: dict[str, str]
    frame_seconds: float
