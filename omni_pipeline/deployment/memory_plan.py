"""Computes the memory that a deployment needs on each device, and divides the remaining memory among the stages'
caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct, structs

from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_memory import Cache, Needs, Request, Situation
from omni_pipeline.contract.stage_options import CacheOptions, StageOptions
from omni_pipeline.deployment.checkpoint import Checkpoint, described
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu
from omni_pipeline.sizes import MIB
from omni_pipeline.wire.tensor import ITEM_SIZE

# On the CPU, a stage stores its weights in this type, except if its `dtype` option specifies another type.
CPU_DTYPE = "float32"

PROCESS_BYTES = 600 * MIB
"""Memory of a GPU for each process on it: CUDA's context, loaded kernels, cuBLAS. An estimate, not a measurement."""

RANK_BYTES = 400 * MIB
"""Memory of a GPU for each rank of a stage with several ranks: NCCL's buffers. An estimate, not a measurement."""

KEPT_FREE = 0.03
"""Fraction of each GPU's memory that no stage may use. The driver reserves a part of the memory, and torch's allocator
loses a part between blocks.
"""


Place: TypeAlias = int | str
"""Identifies a device of a deployment. An index stands for a GPU. The name of a host stands for the host's RAM."""


class Holding(Struct, frozen=True):
    """The memory, in bytes, that one stage needs on one device.

    Attributes:
        activations: Bytes at the peak of a step. The stages of a worker compute one after the other, so only the stage
            with the largest peak has this value. The other stages have 0.
        process: The stage's share of the memory of the worker process itself. All stages of the worker on this device
            have equal shares. For a stage with several ranks, this memory includes NCCL's buffers.
    """

    stage: str
    worker: str
    weights: int = 0
    state: int = 0
    activations: int = 0
    graphs: int = 0
    process: int = 0
    cache: int = 0

    @property
    def fixed(self) -> int:
        """Number of bytes of all memory except the cache."""
        return self.weights + self.state + self.activations + self.graphs + self.process

    @property
    def total(self) -> int:
        return self.fixed + self.cache


class DevicePlan(Struct, frozen=True):
    """One device and the stages on it.

    Attributes:
        index: Index of the GPU among the GPUs of all hosts; None for a host's RAM.
        memory: Total bytes of the GPU, or available bytes of RAM.
        usable: Number of bytes of `memory` that the server divides among the stages. On a GPU, this is the free memory,
            but at most `memory` minus a reserve.
        limit: Maximum number of bytes of `memory` that the stages may occupy. Usually, this is `usable`. If the
            operator has set the memory of a stage on the GPU, this is all free memory of the GPU.
        host: Name of the host; empty for the main host.
        offset: `index` of the first GPU of the same host.
    """

    index: int | None
    name: str
    memory: int
    usable: int
    limit: int
    holdings: tuple[Holding, ...]
    host: str = ""
    offset: int = 0

    @property
    def place(self) -> Place:
        return self.host if self.index is None else self.index

    @property
    def taken(self) -> int:
        return sum(holding.total for holding in self.holdings)

    @property
    def left(self) -> int:
        """Usable bytes that remain; negative if the stages need more than the usable bytes."""
        return self.usable - self.taken

    @property
    def fits(self) -> bool:
        return self.taken <= self.limit

    @property
    def title(self) -> str:
        """The device in messages: ``GPU 0``, or ``RAM of b``."""
        short = "RAM" if self.index is None else f"GPU {self.index - self.offset}"
        return f"{short} of {self.host}" if self.host else short

    @property
    def label(self) -> str:
        return self.title if self.index is None else f"{self.title} ({self.name})"


class CachePlan(Struct, frozen=True):
    """The cache of one stage in one worker.

    Attributes:
        tokens: Size of the cache in tokens.
        token_bytes: Bytes on each of the stage's devices for a token's keys and values.
        beside_bytes: Bytes on each of the stage's devices for all other data of a token.
        request_tokens: Number of tokens that the example request needs.
        limit: Maximum number of requests that the stage works on at the same time.
    """

    stage: str
    worker: str
    tokens: int
    token_bytes: int
    beside_bytes: int
    request_tokens: int
    limit: int | None

    @property
    def requests(self) -> int:
        """Maximum number of example requests that can use the cache at the same time."""
        held = self.tokens // self.request_tokens
        return held if self.limit is None else min(held, self.limit)


class Placement(Struct, frozen=True):
    """A deployment's memory, device by device.

    Attributes:
        devices: The devices of all hosts. The main host comes first. The devices of a host are its GPUs, in order, and
            the host's RAM if weights are stored in the RAM.
        caches: The caches in graph order.
        request: The example request.
        limits: For each stage that has a limit on requests and no cache: the maximum number of simultaneous requests of
            all its replicas together.
        problems: Reasons why the deployment does not fit, as sentences; empty if it fits.
        notes: Warnings about a deployment that fits, as sentences.
    """

    devices: tuple[DevicePlan, ...]
    caches: tuple[CachePlan, ...]
    request: Request
    limits: dict[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def requests(self) -> int | None:
        """Maximum number of example requests that every stage can process at the same time; None if no stage limits the
        number.
        """
        return min(self._rooms.values(), default=None)

    @property
    def bounded_by(self) -> tuple[str, ...]:
        """Names of the stages that determine `requests`. Each of them can process exactly this number of example
        requests at the same time.
        """
        return tuple(stage for stage, room in self._rooms.items() if room == self.requests)

    @property
    def _rooms(self) -> dict[str, int]:
        """For each stage that has a limit, the maximum number of example requests that the stage can process at the
        same time.
        """
        rooms: Counter[str] = Counter()
        for cache in self.caches:
            rooms[cache.stage] += cache.requests
        return {**rooms, **self.limits}

    def cache(self, stage: str, worker: str | None = None) -> CachePlan | None:
        """The cache of a stage in `worker`, or in the stage's first worker."""
        return next(
            (cache for cache in self.caches if cache.stage == stage and worker in (None, cache.worker)),
            None,
        )


class _Demand(Struct):
    """The memory that one stage needs on its devices. `tokens`, the size of the stage's cache, is set later."""

    plan: StagePlan
    worker: str
    host: str
    places: tuple[Place, ...]
    weights: int
    needs: Needs
    tokens: int | None = None


def place(
    deployment: Deployment,
    checkpoint: Checkpoint,
    *,
    ram: int | None = None,
    used: Mapping[int, int] | None = None,
    hosts: Mapping[str, HostFacts] | None = None,
    request: Request | None = None,
) -> Placement:
    """The memory placement of a deployment.

    Args:
        ram: Available bytes of the main host's RAM; None for no limit.
        used: Bytes of each GPU of the main host that other programs use, by the GPU's index.
        hosts: The facts of the other hosts, by the host's name. The RAM of a host without facts has no limit.
        request: The example request, for counting requests and for dividing memory between caches.
    """
    request = request or Request()
    unpacked = _unpacked(deployment, checkpoint)
    demands = [
        _demand(deployment, unpacked if plan.device == "cpu" else checkpoint, worker, plan, request)
        for worker in deployment.workers
        for plan in worker.stages
    ]
    facts = {"": HostFacts(ram=ram, used=dict(used or {})), **(hosts or {})}
    devices = [
        device
        for host in dict.fromkeys(("", *(gpu.host for gpu in deployment.gpus), *deployment.hosts))
        for device in _devices(host, deployment.gpus, facts.get(host, HostFacts()), demands)
    ]
    devices = [structs.replace(device, holdings=_holdings(device, demands)) for device in devices]
    problems = _decide(demands, devices)
    devices = [
        structs.replace(device, holdings=tuple(_with_cache(holding, demands) for holding in device.holdings))
        for device in devices
    ]
    caches = tuple(_cache_plan(demand) for demand in demands if demand.needs.cache is not None)
    problems += [_overfull(device) for device in devices if not device.fits]
    problems += [
        f"the KV cache of {_label(cache)} has room for {cache.tokens:,} tokens, but one request needs "
        f"{cache.request_tokens:,} tokens."
        for cache in caches
        if cache.tokens < cache.request_tokens and all(device.fits for device in devices)
    ]
    limits: Counter[str] = Counter()
    for demand in demands:
        if demand.needs.requests is not None and demand.needs.cache is None:
            limits[demand.plan.name] += demand.needs.requests
    return Placement(
        devices=tuple(devices),
        caches=caches,
        request=request,
        limits=dict(limits),
        problems=tuple(problems),
        notes=tuple(_tight(device) for device in devices if device.fits and device.left < 0),
    )


def _unpacked(deployment: Deployment, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is in the memory of a CPU: with dequantised weights instead of quantised weights."""
    spec = deployment.graph.checkpoint
    weighty = {stage.name for stage in deployment.graph.stages if stage.weights}
    plans = (plan for worker in deployment.workers for plan in worker.stages)
    if spec is None or spec.plain is None or not any(plan.device == "cpu" and plan.name in weighty for plan in plans):
        return checkpoint
    if not any(stored.fixed for stored in checkpoint.tensors.values()):
        return checkpoint
    return described(checkpoint.path, spec.plain(checkpoint.config), spec)


def _devices(host: str, gpus: Sequence[Gpu], facts: HostFacts, demands: Sequence[_Demand]) -> Iterator[DevicePlan]:
    """The GPUs of a host, and the host's RAM if weights are stored in the RAM. The result contains no stages yet."""
    for gpu in gpus:
        if gpu.host == host:
            pinned = any(_pinned(demand.plan) for demand in demands if gpu.index in demand.places)
            yield _empty(gpu, facts.used.get(gpu.number, 0), pinned)
    here = [demand for demand in demands if demand.host == host]
    if any(demand.places == (host,) and demand.weights for demand in here):
        unlimited = sum(demand.weights for demand in here) if facts.ram is None else facts.ram
        yield DevicePlan(None, "RAM", unlimited, unlimited, unlimited, (), host)


def _empty(gpu: Gpu, used: int, pinned: bool) -> DevicePlan:
    free = max(0, gpu.memory - used)
    usable = min(int(gpu.memory * (1 - KEPT_FREE)), free)
    limit = free if pinned else usable
    return DevicePlan(gpu.index, gpu.name, gpu.memory, usable, limit, (), gpu.host, gpu.offset)


def _pinned(plan: StagePlan) -> bool:
    """Whether the operator has set the memory of the stage, or the size of the stage's cache."""
    options: StageOptions = plan.options
    given = (plan.memory, options.mem_fraction_static, options.max_total_tokens)
    return any(value is not None for value in given)


def sized(deployment: Deployment, placement: Placement) -> Deployment:
    """The deployment with a memory size for every stage on a GPU. If such a stage has a cache, the result also has the
    size of the cache in tokens. A size in tokens that the operator has set does not change.
    """
    return structs.replace(deployment, workers=tuple(_sized_worker(worker, placement) for worker in deployment.workers))


def refuse(placement: Placement) -> None:
    """Raise StartupError with the reasons if the deployment does not fit."""
    if not placement.fits:
        on_gpus = any(device.index is not None for device in placement.devices)
        hint = " `sgl-omni plan` with the same flags shows what would fit." if on_gpus else ""
        raise StartupError(f"Not enough memory: {' '.join(placement.problems)}{hint}")


def _sized_worker(worker: WorkerPlan, placement: Placement) -> WorkerPlan:
    return structs.replace(worker, stages=tuple(_sized_stage(plan, worker.name, placement) for plan in worker.stages))


def _sized_stage(plan: StagePlan, worker: str, placement: Placement) -> StagePlan:
    if plan.device != "cuda":
        return plan
    held = [
        holding
        for device in placement.devices
        for holding in device.holdings
        if (holding.stage, holding.worker) == (plan.name, worker)
    ]
    memory = max(holding.total for holding in held)
    cache = placement.cache(plan.name, worker)
    if cache is None:
        return structs.replace(plan, memory=memory)
    options: CacheOptions = plan.options
    if options.max_total_tokens is None:
        options = structs.replace(options, max_total_tokens=cache.tokens)
    static = max(holding.weights for holding in held) + cache.tokens * cache.token_bytes
    return structs.replace(plan, memory=memory, static=static, options=options)


def _demand(
    deployment: Deployment, checkpoint: Checkpoint, worker: WorkerPlan, plan: StagePlan, request: Request
) -> _Demand:
    spec = deployment.graph.stage(plan.name)
    dtype = _chosen_dtype(plan)
    situation = situation_of(deployment, checkpoint, plan, request)
    weights = checkpoint.held_bytes(spec.weights, ITEM_SIZE.get(dtype) if dtype else None) if spec.weights else 0
    return _Demand(
        plan=plan,
        worker=worker.name,
        host=worker.host,
        places=plan.gpus or (worker.host,),
        weights=-(-weights // max(1, len(plan.gpus))),
        needs=spec.needs(situation) if spec.needs else Needs(),
    )


def situation_of(deployment: Deployment, checkpoint: Checkpoint, plan: StagePlan, request: Request) -> Situation:
    """The facts about a stage from which its memory and its messages are computed."""
    return Situation(
        config=checkpoint.config,
        options=plan.options,
        device=plan.device,
        item_size=ITEM_SIZE.get(_chosen_dtype(plan) or checkpoint.dtype, ITEM_SIZE[CPU_DTYPE]),
        ranks=plan.tp_size,
        device_memory=min((deployment.gpus[index].memory for index in plan.gpus), default=0),
        stages=frozenset(deployment.graph.stage_names),
        request=request,
    )


def _chosen_dtype(plan: StagePlan) -> str | None:
    """The type in which a stage stores its weights; None for the type of the checkpoint."""
    options: StageOptions = plan.options
    return options.dtype or (CPU_DTYPE if plan.device == "cpu" else None)


def _holdings(device: DevicePlan, demands: Sequence[_Demand]) -> tuple[Holding, ...]:
    """The memory of each stage on a device, without its cache."""
    here = [demand for demand in demands if device.place in demand.places]
    if device.index is None:  # on the CPU, only weights are planned; other memory is allocated when it is needed
        return tuple(
            Holding(demand.plan.name, demand.worker, weights=demand.weights) for demand in here if demand.weights
        )
    holdings: list[Holding] = []
    for demand in here:
        mates = [other for other in here if other.worker == demand.worker]
        largest = max(mates, key=lambda mate: mate.needs.activations)
        process = PROCESS_BYTES + (RANK_BYTES if demand.plan.tp_size > 1 else 0)
        holdings.append(
            Holding(
                stage=demand.plan.name,
                worker=demand.worker,
                weights=demand.weights,
                state=demand.needs.state,
                activations=demand.needs.activations if demand is largest else 0,
                graphs=demand.needs.graphs,
                process=process // len(mates),
            )
        )
    return tuple(holdings)


def _decide(demands: Sequence[_Demand], devices: Sequence[DevicePlan]) -> list[str]:
    """Set the tokens of every cache. Returns a sentence for each memory budget that is too small for its stage."""
    problems: list[str] = []
    own = {(holding.worker, holding.stage, device.place): holding for device in devices for holding in device.holdings}
    memory = {device.place: device.memory for device in devices}
    titles = {device.place: device.title for device in devices}
    open_: list[_Demand] = []
    for demand in demands:
        cache, plan = demand.needs.cache, demand.plan
        if plan.memory is not None:
            problems += [
                f"{plan.name} may use {_gib(plan.memory)} of {titles[place]}, but needs "
                f"{_gib(own[demand.worker, plan.name, place].fixed)}{' even without its KV cache' if cache else ''}: "
                f"raise stages.{plan.name}.memory."
                for place in plan.gpus
                if own[demand.worker, plan.name, place].fixed > plan.memory
            ]
        if cache is None:
            continue
        demand.tokens = _given_tokens(demand, cache, memory, own)
        if demand.tokens is None:
            open_.append(demand)
    left = {device.place: device.left for device in devices}  # the caches have no size yet
    for demand in demands:
        if demand.tokens is not None:
            _take(left, demand, demand.tokens)
    _share(open_, left)
    return problems


def _given_tokens(
    demand: _Demand, cache: Cache, memory: Mapping[Place, int], own: Mapping[tuple[str, str, Place], Holding]
) -> int | None:
    """Number of tokens of a cache, if the configuration decides the number; otherwise None."""
    plan = demand.plan
    options: StageOptions = plan.options
    if options.max_total_tokens is not None:
        return options.max_total_tokens
    if plan.device == "cpu":
        return cache.default_tokens or cache.request_tokens
    if options.mem_fraction_static is not None:
        smallest = min(memory[place] for place in plan.gpus)
        return max(0, int(options.mem_fraction_static * smallest - demand.weights) // cache.bytes_per_token)
    if plan.memory is not None:
        most = max(own[demand.worker, plan.name, place].fixed for place in plan.gpus)
        return max(0, (plan.memory - most) // cache.bytes_per_token)
    return None


def _share(open_: list[_Demand], left: dict[Place, int]) -> None:
    """Divide the remaining memory among the caches. Each cache gets room for the same number of requests. But a cache
    never gets more tokens than its maximum. Afterwards, each cache in the order of `open_` gets as much of the rest as
    it can use.
    """
    unfilled = list(open_)
    while unfilled:
        weight: dict[Place, int] = {}
        for demand in unfilled:
            for place in demand.places:
                weight[place] = weight.get(place, 0) + _cache(demand).request_tokens * _cache(demand).bytes_per_token
        requests = max(0.0, min(left[place] / each for place, each in weight.items()))
        capped = [demand for demand in unfilled if _cap(demand) < requests * _cache(demand).request_tokens]
        for demand in capped or unfilled:
            demand.tokens = min(_cap(demand), int(requests * _cache(demand).request_tokens))
            _take(left, demand, demand.tokens)
        unfilled = [demand for demand in unfilled if demand.tokens is None]
    for demand in open_:
        assert demand.tokens is not None
        room = max(0, min(left[place] for place in demand.places)) // _cache(demand).bytes_per_token
        more = min(room, _cap(demand) - demand.tokens)
        demand.tokens += more
        _take(left, demand, more)


def _take(left: dict[Place, int], demand: _Demand, tokens: int) -> None:
    for place in demand.places:
        if not isinstance(place, str):  # caches in the RAM of a host are not planned
            left[place] -= tokens * _cache(demand).bytes_per_token


def _cache(demand: _Demand) -> Cache:
    assert demand.needs.cache is not None
    return demand.needs.cache


def _cap(demand: _Demand) -> int:
    most = _cache(demand).most_tokens
    return most if most is not None else 1 << 62


def _with_cache(holding: Holding, demands: Iterable[_Demand]) -> Holding:
    demand = next(each for each in demands if (each.plan.name, each.worker) == (holding.stage, holding.worker))
    if demand.tokens is None or demand.plan.device == "cpu":
        return holding
    return structs.replace(holding, cache=demand.tokens * _cache(demand).bytes_per_token)


def _cache_plan(demand: _Demand) -> CachePlan:
    cache = _cache(demand)
    assert demand.tokens is not None
    return CachePlan(
        stage=demand.plan.name,
        worker=demand.worker,
        tokens=demand.tokens,
        token_bytes=cache.token_bytes,
        beside_bytes=cache.beside_bytes,
        request_tokens=cache.request_tokens,
        limit=demand.needs.requests,
    )


def _label(part: Holding | CachePlan) -> str:
    """The name of a stage and, if the stage has replicas, the number of the replica."""
    return f"{part.stage}@{part.worker.rpartition('@')[2]}" if "@" in part.worker else part.stage


def _overfull(device: DevicePlan) -> str:
    parts = ", ".join(
        f"{_label(holding)} {holding.total / 1024**3:.1f}"
        for holding in sorted(device.holdings, key=lambda holding: -holding.total)
    )
    if device.index is None:
        host = f" of {device.host}" if device.host else ""
        return (
            f"the weights need {_gib(device.taken)} on the CPU{host} ({parts}), but only {_gib(device.usable)} is "
            "available. Free some memory, use a GPU (--device cuda), or set a smaller dtype for the stages."
        )
    return f"the stages on {device.label} need {_gib(device.taken)} ({parts}), but can use only {_gib(device.limit)}."


def _tight(device: DevicePlan) -> str:
    return (
        f"{device.label} has little free memory: the requested memory leaves only {_gib(device.memory - device.taken)} "
        f"of {_gib(device.memory)} for the GPU driver and for memory fragmentation."
    )


def _gib(size: Any) -> str:
    return f"{size / 1024**3:.1f} GiB"
