"""Computes the memory that a deployment needs on each device, and divides the rest among the stages' caches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, structs

from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_memory import Cache, Needs, Request, Situation
from omni_pipeline.contract.stage_options import CacheOptions, StageOptions
from omni_pipeline.deployment.checkpoint import Checkpoint, described
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu
from omni_pipeline.sizes import MIB
from omni_pipeline.wire.tensor import ITEM_SIZE

# On the CPU, a stage holds its weights in this type, unless its `dtype` option names another type.
CPU_DTYPE = "float32"

PROCESS_BYTES = 600 * MIB
"""Memory of a GPU for each process on it: CUDA's context, loaded kernels, cuBLAS. An estimate, not a measurement."""

RANK_BYTES = 400 * MIB
"""Memory of a GPU for each rank of a stage with several ranks: NCCL's buffers. An estimate, not a measurement."""

KEPT_FREE = 0.03
"""Fraction of each GPU for memory that the driver reserves and that torch's allocator loses between blocks."""


class Holding(Struct, frozen=True):
    """The memory, in bytes, that one stage needs on one device.

    Attributes:
        activations: Bytes at the peak of a step. The stages of a worker take turns, so only the stage with the largest
            need has this value. The other stages have 0.
        process: The stage's share of the memory that its worker process needs independently of its stages.
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
        index: Index of the GPU; None for the machine's RAM.
        memory: Total bytes of the GPU, or available bytes of RAM.
        usable: The part of `memory` that the server divides among stages.
        limit: The largest part of `memory` that stages may use. The limit is larger than `usable` if the operator has
            set the memory of a stage.
    """

    index: int | None
    name: str
    memory: int
    usable: int
    limit: int
    holdings: tuple[Holding, ...]

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
    def label(self) -> str:
        return self.name if self.index is None else f"GPU {self.index} ({self.name})"


class CachePlan(Struct, frozen=True):
    """The cache of one stage.

    Attributes:
        tokens: Number of tokens that the cache holds.
        token_bytes: Bytes on each of the stage's devices for a token's keys and values.
        beside_bytes: Number of bytes on each of the stage's devices for all other data that is kept for a token.
        request_tokens: Number of tokens that the example request needs.
        limit: Maximum number of requests that the stage works on at the same time.
    """

    stage: str
    tokens: int
    token_bytes: int
    beside_bytes: int
    request_tokens: int
    limit: int | None

    @property
    def requests(self) -> int:
        """Number of example requests for which there is room at the same time."""
        held = self.tokens // self.request_tokens
        return held if self.limit is None else min(held, self.limit)


class Placement(Struct, frozen=True):
    """A deployment's memory, device by device.

    Attributes:
        devices: The GPUs in order, and the machine's RAM if it holds weights.
        caches: The caches in graph order.
        request: The example request.
        limits: Maximum number of simultaneous requests, by stage, for stages without a cache that have a limit.
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
        """Number of example requests for which every stage has room at the same time; None if no stage limits the
        number.
        """
        return min(self._rooms.values(), default=None)

    @property
    def bounded_by(self) -> tuple[str, ...]:
        """Names of the stages that limit `requests`: they have room for exactly `requests` requests."""
        return tuple(stage for stage, room in self._rooms.items() if room == self.requests)

    @property
    def _rooms(self) -> dict[str, int]:
        """Number of example requests for which each stage has room, for the stages that have a limit."""
        return {cache.stage: cache.requests for cache in self.caches} | self.limits

    def cache(self, stage: str) -> CachePlan | None:
        return next((cache for cache in self.caches if cache.stage == stage), None)


class _Demand(Struct):
    """The needs of one stage on its devices. `tokens`, the size of the stage's cache, is decided later."""

    plan: StagePlan
    worker: str
    places: tuple[int | None, ...]
    weights: int
    needs: Needs
    tokens: int | None = None


def place(
    deployment: Deployment,
    checkpoint: Checkpoint,
    *,
    ram: int | None = None,
    used: Mapping[int, int] | None = None,
    request: Request | None = None,
) -> Placement:
    """The memory placement of a deployment.

    Args:
        ram: Available bytes of the machine's RAM; None for no limit.
        used: Bytes of each GPU that other programs use, by the GPU's index.
        request: The example request, for counting requests and for dividing memory between caches.
    """
    request = request or Request()
    unpacked = _unpacked(deployment, checkpoint)
    demands = [
        _demand(deployment, unpacked if plan.device == "cpu" else checkpoint, worker, plan, request)
        for worker in deployment.workers
        for plan in worker.stages
    ]
    devices = [
        _empty(
            gpu,
            (used or {}).get(gpu.index, 0),
            any(_pinned(demand.plan) for demand in demands if gpu.index in demand.places),
        )
        for gpu in deployment.gpus
    ]
    if any(demand.places == (None,) and demand.weights for demand in demands):
        unlimited = sum(demand.weights for demand in demands) if ram is None else ram
        devices.append(DevicePlan(None, "RAM", unlimited, unlimited, unlimited, ()))
    devices = [structs.replace(device, holdings=_holdings(device.index, demands)) for device in devices]
    problems = _decide(demands, devices)
    devices = [
        structs.replace(device, holdings=tuple(_with_cache(holding, demands) for holding in device.holdings))
        for device in devices
    ]
    caches = tuple(_cache_plan(demand) for demand in demands if demand.needs.cache is not None)
    problems += [_overfull(device) for device in devices if not device.fits]
    problems += [
        f"{cache.stage} holds {cache.tokens:,} tokens, and one request takes {cache.request_tokens:,}."
        for cache in caches
        if cache.tokens < cache.request_tokens and all(device.fits for device in devices)
    ]
    return Placement(
        devices=tuple(devices),
        caches=caches,
        request=request,
        limits={
            demand.plan.name: demand.needs.requests
            for demand in demands
            if demand.needs.requests is not None and demand.needs.cache is None
        },
        problems=tuple(problems),
        notes=tuple(_tight(device) for device in devices if device.fits and device.left < 0),
    )


def _unpacked(deployment: Deployment, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint in the form in which a CPU holds it: dequantised weights in place of quantised weights."""
    spec = deployment.graph.checkpoint
    weighty = {stage.name for stage in deployment.graph.stages if stage.weights}
    plans = (plan for worker in deployment.workers for plan in worker.stages)
    if spec is None or spec.plain is None or not any(plan.device == "cpu" and plan.name in weighty for plan in plans):
        return checkpoint
    if not any(stored.fixed for stored in checkpoint.tensors.values()):
        return checkpoint
    return described(checkpoint.path, spec.plain(checkpoint.config), spec)


def _empty(gpu: Gpu, used: int, pinned: bool) -> DevicePlan:
    free = max(0, gpu.memory - used)
    usable = min(int(gpu.memory * (1 - KEPT_FREE)), free)
    return DevicePlan(gpu.index, gpu.name, gpu.memory, usable, free if pinned else usable, ())


def _pinned(plan: StagePlan) -> bool:
    """Whether the operator has set the memory of the stage or its cache."""
    options: StageOptions = plan.options
    given = (plan.memory, options.mem_fraction_static, options.max_total_tokens)
    return any(value is not None for value in given)


def sized(deployment: Deployment, placement: Placement) -> Deployment:
    """The deployment with a memory size for every stage on a GPU, and with a cache size wherever the operator has not
    set one.
    """
    return structs.replace(deployment, workers=tuple(_sized_worker(worker, placement) for worker in deployment.workers))


def refuse(placement: Placement) -> None:
    """Raise StartupError with the reasons if the deployment does not fit."""
    if not placement.fits:
        on_gpus = any(device.index is not None for device in placement.devices)
        hint = " `sgl-omni plan` with the same flags says what would fit." if on_gpus else ""
        raise StartupError(f"Not enough memory: {' '.join(placement.problems)}{hint}")


def _sized_worker(worker: WorkerPlan, placement: Placement) -> WorkerPlan:
    return structs.replace(worker, stages=tuple(_sized_stage(plan, placement) for plan in worker.stages))


def _sized_stage(plan: StagePlan, placement: Placement) -> StagePlan:
    if plan.device != "cuda":
        return plan
    held = [holding for device in placement.devices for holding in device.holdings if holding.stage == plan.name]
    memory = max(holding.total for holding in held)
    cache = placement.cache(plan.name)
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
    options: StageOptions = plan.options
    dtype = options.dtype or (CPU_DTYPE if plan.device == "cpu" else None)
    situation = Situation(
        config=checkpoint.config,
        options=options,
        device=plan.device,
        item_size=ITEM_SIZE.get(dtype or checkpoint.dtype, ITEM_SIZE[CPU_DTYPE]),
        ranks=plan.tp_size,
        device_memory=min((deployment.gpus[index].memory for index in plan.gpus), default=0),
        stages=frozenset(deployment.graph.stage_names),
        request=request,
    )
    weights = checkpoint.held_bytes(spec.weights, ITEM_SIZE.get(dtype) if dtype else None) if spec.weights else 0
    return _Demand(
        plan=plan,
        worker=worker.name,
        places=plan.gpus or (None,),
        weights=-(-weights // max(1, len(plan.gpus))),
        needs=spec.needs(situation) if spec.needs else Needs(),
    )


def _holdings(place: int | None, demands: Sequence[_Demand]) -> tuple[Holding, ...]:
    """The memory of each stage on a device, without its cache."""
    here = [demand for demand in demands if place in demand.places]
    if place is None:  # on the CPU, only weights are planned; other memory is allocated when it is needed
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
    own = {(holding.stage, device.index): holding for device in devices for holding in device.holdings}
    memory = {device.index: device.memory for device in devices}
    open_: list[_Demand] = []
    for demand in demands:
        cache, plan = demand.needs.cache, demand.plan
        if plan.memory is not None:
            problems += [
                f"{plan.name} may take {_gib(plan.memory)} of GPU {place}, and needs "
                f"{_gib(own[plan.name, place].fixed)}{' before its cache' if cache else ''}: "
                f"raise stages.{plan.name}.memory."
                for place in plan.gpus
                if own[plan.name, place].fixed > plan.memory
            ]
        if cache is None:
            continue
        demand.tokens = _given_tokens(demand, cache, memory, own)
        if demand.tokens is None:
            open_.append(demand)
    left = {device.index: device.left for device in devices}  # the caches have no size yet
    for demand in demands:
        if demand.tokens is not None:
            _take(left, demand, demand.tokens)
    _share(open_, left)
    return problems


def _given_tokens(
    demand: _Demand, cache: Cache, memory: Mapping[int | None, int], own: Mapping[tuple[str, int | None], Holding]
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
        most = max(own[plan.name, place].fixed for place in plan.gpus)
        return max(0, (plan.memory - most) // cache.bytes_per_token)
    return None


def _share(open_: list[_Demand], left: dict[int | None, int]) -> None:
    """Divide the memory that is left: first give each cache room for the same number of requests, then divide the
    rest.
    """
    unfilled = list(open_)
    while unfilled:
        weight: dict[int | None, int] = {}
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


def _take(left: dict[int | None, int], demand: _Demand, tokens: int) -> None:
    for place in demand.places:
        if place is not None:
            left[place] -= tokens * _cache(demand).bytes_per_token


def _cache(demand: _Demand) -> Cache:
    assert demand.needs.cache is not None
    return demand.needs.cache


def _cap(demand: _Demand) -> int:
    most = _cache(demand).most_tokens
    return most if most is not None else 1 << 62


def _with_cache(holding: Holding, demands: Iterable[_Demand]) -> Holding:
    demand = next(demand for demand in demands if demand.plan.name == holding.stage)
    if demand.tokens is None or demand.plan.device == "cpu":
        return holding
    return structs.replace(holding, cache=demand.tokens * _cache(demand).bytes_per_token)


def _cache_plan(demand: _Demand) -> CachePlan:
    cache = _cache(demand)
    assert demand.tokens is not None
    return CachePlan(
        stage=demand.plan.name,
        tokens=demand.tokens,
        token_bytes=cache.token_bytes,
        beside_bytes=cache.beside_bytes,
        request_tokens=cache.request_tokens,
        limit=demand.needs.requests,
    )


def _overfull(device: DevicePlan) -> str:
    parts = ", ".join(
        f"{holding.stage} {holding.total / 1024**3:.1f}"
        for holding in sorted(device.holdings, key=lambda holding: -holding.total)
    )
    if device.index is None:
        return (
            f"the weights need {_gib(device.taken)} on the CPU ({parts}), but only {_gib(device.usable)} is available. "
            "Free some, use a GPU (--device cuda), or give the stages a smaller dtype option."
        )
    return (
        f"{device.label} would have to hold {_gib(device.taken)} ({parts}), but only {_gib(device.limit)} can be used."
    )


def _tight(device: DevicePlan) -> str:
    return (
        f"{device.label} is tight: the requested memory leaves {_gib(device.memory - device.taken)} of "
        f"{_gib(device.memory)} for the driver and for fragments of memory."
    )


def _gib(size: Any) -> str:
    return f"{size / 1024**3:.1f} GiB"
