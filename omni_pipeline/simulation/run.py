"""Runs one simulation: builds the workers of a deployment, sends them the load's requests, and records the answers."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from omni_pipeline.contract.graph import COLLECTOR, Graph
from omni_pipeline.contract.simulation import (
    Output,
    SimulatedMessage,
    SimulatedRequest,
    SimulationModel,
    StageSite,
    StepLaw,
)
from omni_pipeline.simulation.clock import Clock
from omni_pipeline.simulation.load import Load, RequestShape
from omni_pipeline.simulation.network import Costs, Network
from omni_pipeline.simulation.results import Answer, Latency, Prediction, Use
from omni_pipeline.simulation.site import SiteWorker
from omni_pipeline.simulation.worker import Gpu, Worker
from omni_pipeline.supervision.replica_choice import Candidate, choose

MAIN = ""
"""Name of the host of the main process."""


class Scenario(Struct, frozen=True):
    """A deployment to simulate.

    Attributes:
        graph: The stages that the deployment runs.
        laws: The law of each stage (see `StepLaw`). The steps of a stage without a law take no time.
        gpu_labels: The names of the GPUs in the results, by their indices.
        jitter: Maximum random change of the time of each step, as a fraction of the time that the law gives. Without
            such changes, simulated workers can stay synchronised with each other. Real workers do not stay
            synchronised.
    """

    graph: Graph
    model: SimulationModel
    workers: tuple[SiteWorker, ...]
    laws: Mapping[str, StepLaw]
    costs: Costs = Costs()
    gpu_labels: Mapping[int, str] = {}
    jitter: float = 0.0


def simulate(scenario: Scenario, load: Load, shape: RequestShape) -> Prediction:
    """Simulate a load. The result depends only on the arguments."""
    return Simulation(scenario, load, shape).run()


class Simulation:
    """One simulation.

    Attributes:
        answers: All requests that have been sent, by id.
        measured: Ids of the measured requests.
        sounds: For each piece of sound, the time of its arrival and its length in seconds.
    """

    def __init__(self, scenario: Scenario, load: Load, shape: RequestShape) -> None:
        self._scenario, self._load, self._shape = scenario, load, shape
        self._clock = Clock()
        self._network = Network(self._clock, scenario.costs)
        self._gpus = {gpu: Gpu() for gpu in sorted(_gpus_of(scenario.workers))}
        self._sites: dict[str, list[SiteWorker]] = {}
        for site in scenario.workers:
            for stage in site.stages:
                self._sites.setdefault(stage.name, []).append(site)
        self._jitters = random.Random(f"jitter {load.seed}")
        self._hosts = {site.name: site.host for site in scenario.workers}
        self._workers = {site.name: self._worker(site) for site in scenario.workers}
        self._bound: dict[str, dict[str, int]] = {}
        self._open = {(site.group, site.replica): 0 for site in scenario.workers if site.group}
        self._latest: dict[str, int] = {}
        self._numbers = itertools.count()
        self._dice = random.Random(load.seed)
        self._begun = 0  # clients that have sent a request
        self._before = load.before  # requests that are sent before the load
        self._began = 0.0  # when the load began or, with `continues`, when its last client began
        self._unmet = 0  # measured requests that are not answered yet
        self._ended = 0.0
        self._gateway_until = 0.0
        self.answers: dict[str, Answer] = {}
        self.measured: list[str] = []
        self.sounds: list[tuple[float, float]] = []

    def run(self) -> Prediction:
        """Simulate until the measured time is over, or until all measured requests are answered."""
        load = self._load
        if self._before:
            self._submit()
        else:
            self._begin_load()
        until = load.measured_from + load.seconds if load.seconds else math.inf
        self._clock.run(self._complete, until)
        return self._prediction()

    # --- the parts ---

    def _worker(self, site: SiteWorker) -> Worker:
        scenario = self._scenario
        names = frozenset(scenario.graph.stage_names)
        stages = {
            stage.name: scenario.model.stages[stage.name](
                StageSite(stage.name, stage.options, site.replica, bool(stage.gpus), names)
            )
            for stage in site.stages
        }
        return Worker(
            self._clock,
            stages,
            {name: scenario.laws.get(name, StepLaw()) for name in stages},
            {stage.name: [self._gpus[gpu] for gpu in sorted(stage.gpus)] for stage in site.stages},
            scenario.costs,
            functools.partial(self._send, site.host),
            functools.partial(self._jitters.uniform, 1 - scenario.jitter, 1 + scenario.jitter),
        )

    def _send(self, host: str, messages: Sequence[SimulatedMessage]) -> None:
        """Send messages from a host. The messages to one process travel together."""
        parcels: dict[str, list[SimulatedMessage]] = {}
        for message in messages:
            for site in self._receivers(message):
                parcels.setdefault(site.name, []).append(message)
        for name, parcel in parcels.items():
            target, deliver = self._hosts[name], functools.partial(self._workers[name].deliver, parcel)
            self._network.send(host, target, sum(message.size for message in parcel), deliver)
        for message in messages:
            if message.target == COLLECTOR:
                self._network.send(host, MAIN, message.size, functools.partial(self._collect, message))

    def _receivers(self, message: SimulatedMessage) -> Iterable[SiteWorker]:
        sites = self._sites.get(message.target, [])
        bound = self._bound.get(message.request_id)
        if bound is None:
            return sites if not message.request_id else ()
        return [site for site in sites if not site.group or bound.get(site.group) == site.replica]

    # --- the clients ---

    def _begin_load(self) -> None:
        load, self._began = self._load, self._clock.now
        if load.rate:
            self._arrive()
            return
        starts = [0.0, *sorted(self._dice.uniform(0.0, load.spread) for _ in range(load.streams - 1))]
        for start in starts:
            self._clock.at(self._clock.now + start, self._begin_client)

    def _arrive(self) -> None:
        """Send a request of an open loop, and plan the next one."""
        self._begun += 1
        self._submit()
        self._clock.at(self._clock.now + self._dice.expovariate(self._load.rate), self._arrive)

    def _begin_client(self) -> None:
        self._begun += 1
        if self._load.continues:
            self._began = self._clock.now
        if self._sends():
            self._submit()

    def _sends(self) -> bool:
        """Whether a client of a closed loop sends one more request."""
        load = self._load
        return bool(load.seconds) or load.continues or len(self.measured) < load.requests

    def _measures(self) -> bool:
        """Whether the request that is sent now is measured."""
        load = self._load
        if self._before:
            return False
        if load.seconds:
            return self._clock.now >= load.measured_from
        ready = not load.continues or self._begun == load.streams
        return ready and len(self.measured) < load.requests

    def _submit(self) -> None:
        shape = self._shape
        request = SimulatedRequest(
            str(next(self._numbers)), shape.prompt_tokens, shape.media_tokens, shape.answer_tokens, shape.audio_frames
        )
        model = self._scenario.model
        self.answers[request.id] = Answer(self._clock.now, set(model.outputs(request)))
        if self._measures():
            self.measured.append(request.id)
            self._unmet += 1
        # The gateway is one thread, so it handles requests one after the other.
        self._gateway_until = max(self._gateway_until, self._clock.now) + self._scenario.costs.gateway
        self._clock.at(self._gateway_until, functools.partial(self._enter, request))

    def _enter(self, request: SimulatedRequest) -> None:
        self._bound[request.id] = self._bind(request)
        entry = self._scenario.graph.entry
        self._send(MAIN, [SimulatedMessage(request.id, "", entry, request)])

    def _bind(self, request: SimulatedRequest) -> dict[str, int]:
        """Choose the replica with the fewest open requests in each group that the request needs."""
        bound = {}
        needed = {site.group for name in self._scenario.model.route(request) for site in self._sites.get(name, ())}
        for group in sorted(needed - {""}):
            candidates = [Candidate(replica, load) for (name, replica), load in self._open.items() if name == group]
            chosen = choose(candidates, 0, math.inf, self._latest.get(group, -1)).replica
            bound[group] = self._latest[group] = chosen
            self._open[group, chosen] += 1
        return bound

    def _collect(self, message: SimulatedMessage) -> None:
        output, answer, now = message.body, self.answers[message.request_id], self._clock.now
        assert isinstance(output, Output)
        if output.tokens:
            answer.write(now, output.tokens)
        if output.sound:
            answer.speak(now, output.sound)
            self.sounds.append((now, output.sound))
        if output.last:
            answer.streams.discard(message.source)
            if not answer.streams:
                self._end(message.request_id, answer)

    def _end(self, request_id: str, answer: Answer) -> None:
        answer.ended_at = self._clock.now
        for group, replica in self._bound.pop(request_id).items():
            self._open[group, replica] -= 1
        if request_id in self.measured:
            self._unmet -= 1
            self._ended = self._clock.now
        if self._before:
            self._before -= 1
            if not self._before:
                self._begin_load()
                return
        if self._before or (not self._load.rate and self._sends()):
            self._submit()

    def _complete(self) -> bool:
        """Whether all measured requests have been answered. Always False if `Load.seconds` determines the length of the
        measured time.
        """
        return not self._load.seconds and len(self.measured) == self._load.requests and not self._unmet

    # --- the results ---

    def _prediction(self) -> Prediction:
        load, clock = self._load, self._clock
        if load.seconds:
            begin, end = load.measured_from, load.measured_from + load.seconds
        else:
            begin, end = self._began, self._ended
        seconds = end - begin
        measured = [self.answers[request_id] for request_id in self.measured]
        whole = [each for each in measured if each.ended_at is not None]
        ended = [each for each in self.answers.values() if each.ended_at is not None and begin < each.ended_at <= end]
        sent = [each for each in self.answers.values() if begin < each.sent_at <= end]
        sound = sum(length for at, length in self.sounds if begin < at <= end)
        spoken = [each for each in whole if each.sound]
        gpus = self._gpu_uses(clock.now)
        stages = self._stage_uses(clock.now)
        return Prediction(
            seconds=seconds,
            answers=len(whole),
            answers_per_second=len(ended) / seconds if seconds else 0.0,
            audio_seconds_per_second=sound / seconds if seconds else 0.0,
            ttft=Latency.of([each.text_at - each.sent_at for each in measured if each.text_at is not None]),
            ttfa=Latency.of([each.sound_at - each.sent_at for each in measured if each.sound_at is not None]),
            e2e=Latency.of([each.ended_at - each.sent_at for each in whole if each.ended_at is not None]),
            gapless=sum(not each.gaps for each in spoken) / len(spoken) if spoken else None,
            stages=stages,
            gpus=gpus,
            bottleneck=max(gpus or stages, key=lambda use: use.busy, default=None),
            backlog=(len(sent) - len(ended)) / len(sent) if sent else 0.0,
            unanswered=sum(each.ended_at is None for each in self.answers.values()),
            host_bytes_per_second={
                f"{source or 'main'} → {target or 'main'}": sent / clock.now
                for (source, target), sent in self._network.sent.items()
            },
        )

    def _gpu_uses(self, seconds: float) -> tuple[Use, ...]:
        labels = self._scenario.gpu_labels
        return tuple(
            Use(labels.get(index, f"GPU {index}"), gpu.busy / seconds, where=", ".join(self._on_gpu(index)))
            for index, gpu in self._gpus.items()
        )

    def _on_gpu(self, index: int) -> Iterable[str]:
        return (
            _label(stage.name, site)
            for site in self._scenario.workers
            for stage in site.stages
            if index in stage.gpus
        )  # fmt: skip

    def _stage_uses(self, seconds: float) -> tuple[Use, ...]:
        labels = self._scenario.gpu_labels
        found = []
        for site in self._scenario.workers:
            for stage in site.stages:
                use = self._workers[site.name].uses[stage.name]
                place = ", ".join(labels.get(gpu, f"GPU {gpu}") for gpu in stage.gpus) or site.host or "main"
                batch = use.items / use.steps if use.steps else None
                found.append(Use(_label(stage.name, site), use.busy / seconds, batch, place))
        return tuple(found)


def _label(stage: str, site: SiteWorker) -> str:
    return f"{stage}@{site.replica}" if site.group else stage


def _gpus_of(workers: Iterable[SiteWorker]) -> set[int]:
    return {gpu for site in workers for stage in site.stages for gpu in stage.gpus}
