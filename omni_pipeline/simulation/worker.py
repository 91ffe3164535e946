"""The loop of a simulated worker, and the GPUs that workers share."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from omni_pipeline.contract.simulation import SimulatedMessage, SimulatedStage, StepLaw
from omni_pipeline.simulation.clock import Clock
from omni_pipeline.simulation.network import Costs
from omni_pipeline.worker.loop import MOST_PASSES

_LEAST_SLEEP = 1e-6
"""A worker sleeps at least this number of seconds, so that rounding errors cannot stop the clock."""


class Gpu:
    """A GPU on which one step runs at a time. If several processes wait for the GPU, the process that has waited
    longest gets the GPU first.

    Attributes:
        busy: Seconds of all steps that have ended.
    """

    def __init__(self) -> None:
        self.busy = 0.0
        self._taken = False
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, taken: Callable[[], None]) -> None:
        """Call `taken` when the GPU is free. The caller must call `release` later."""
        if self._taken:
            self._waiting.append(taken)
        else:
            self._taken = True
            taken()

    def release(self, seconds: float) -> None:
        """Free the GPU after a step of this length."""
        self.busy += seconds
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._taken = False


class StageUse:
    """The work of one stage of a worker so far.

    Attributes:
        busy: Seconds of all its steps.
        steps: Number of steps that computed something.
        items: Number of items in all steps.
    """

    def __init__(self) -> None:
        self.busy = 0.0
        self.steps = self.items = 0


class _Sleep(NamedTuple):
    """Wait for a message, at most until this time."""

    until: float | None


class _Take(NamedTuple):
    """Wait for a GPU."""

    gpu: Gpu


class _Spend(NamedTuple):
    """Let time pass."""

    seconds: float


class Worker:
    """A simulated process. It has the same loop as a real worker (see `omni_pipeline.worker.loop`): the process
    receives messages, and then each stage that has work computes a step.

    Args:
        stages: The stages by name, in graph order.
        laws: The law of each stage.
        gpus: The GPUs of each stage.
        send: Sends the messages of a step to other processes.
        jitter: Returns a factor for the time of the next step.
    """

    def __init__(
        self,
        clock: Clock,
        stages: Mapping[str, SimulatedStage],
        laws: Mapping[str, StepLaw],
        gpus: Mapping[str, Sequence[Gpu]],
        costs: Costs,
        send: Callable[[Sequence[SimulatedMessage]], None],
        jitter: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._stages = stages
        self._laws = laws
        self._gpus = gpus
        self._costs = costs
        self._send = send
        self._jitter = jitter
        self._inbox: list[SimulatedMessage] = []
        self._sleeps = 0  # number of sleeps so far; the timer of an earlier sleep has no effect
        self._asleep = False
        self._passes = dict.fromkeys(stages, 0)
        self._loop = self._run()
        self.uses = {name: StageUse() for name in stages}
        clock.at(clock.now, self._go_on)

    def deliver(self, parcel: Sequence[SimulatedMessage]) -> None:
        """Put the messages of another process's step into the worker's inbox."""
        self._inbox += parcel
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._go_on()

    def _go_on(self) -> None:
        """Continue the loop until it has to wait."""
        for need in self._loop:
            if isinstance(need, _Spend):
                self._clock.at(self._clock.now + need.seconds, self._go_on)
                return
            if isinstance(need, _Take):
                need.gpu.take(self._take_turn)
                return
            self._asleep = True
            self._sleeps += 1
            if need.until is not None:
                until = max(need.until, self._clock.now + _LEAST_SLEEP)
                self._clock.at(until, functools.partial(self._end_sleep, self._sleeps))
            return

    def _take_turn(self) -> None:
        # The other worker's loop may be running now, so this loop continues in an event of its own.
        self._clock.at(self._clock.now, self._go_on)

    def _end_sleep(self, number: int) -> None:
        if number == self._sleeps:
            self._wake()

    def _run(self) -> Iterator[_Sleep | _Take | _Spend]:
        stages = self._stages
        while True:
            if not self._inbox and not any(stage.has_work(self._clock.now) for stage in stages.values()):
                times = [at for stage in stages.values() if (at := stage.wakes_at(self._clock.now)) is not None]
                yield _Sleep(min(times, default=None))
            inbox, self._inbox = self._inbox, []
            if inbox and self._costs.message:
                yield _Spend(self._costs.message * len(inbox))
            for message in inbox:
                stages[message.target].receive(message, self._clock.now)
            for name, stage in stages.items():
                if stage.has_work(self._clock.now) and not self._passes_over(name, stage):
                    yield from self._step(name, stage)

    def _step(self, name: str, stage: SimulatedStage) -> Iterator[_Sleep | _Take | _Spend]:
        gpus = self._gpus[name] if stage.computes(self._clock.now) else ()
        for gpu in gpus:
            yield _Take(gpu)
        batch = stage.begin(self._clock.now)
        seconds = self._laws[name].seconds(batch.items, batch.tokens) * self._jitter() if batch.items else 0.0
        if seconds:
            yield _Spend(seconds)
        use = self.uses[name]
        use.busy += seconds
        use.items += batch.items
        use.steps += bool(batch.items)
        messages = stage.finish(self._clock.now)
        for gpu in gpus:
            gpu.release(seconds)
        remote = [message for message in messages if message.target not in self._stages]
        if remote and self._costs.message:
            yield _Spend(self._costs.message * len(remote))
        if not batch.items and not messages:
            yield _Spend(_LEAST_SLEEP)
        if remote:
            self._send(remote)
        for message in messages:
            if message.target in self._stages:
                self._stages[message.target].receive(message, self._clock.now)

    def _passes_over(self, name: str, stage: SimulatedStage) -> bool:
        """Whether the loop skips a stage with work in this round, because another stage is urgent."""
        now = self._clock.now
        waits = (
            self._passes[name] < MOST_PASSES
            and any(other is not stage and other.has_work(now) and other.urgent(now) for other in self._stages.values())
            and stage.patient
        )
        self._passes[name] = self._passes[name] + 1 if waits else 0
        return waits
