"""Runs a worker process. Sets up the process, builds its stages, runs the loop, and cleans up."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import msgspec
import zmq
from msgspec import Struct

from omni_pipeline import logs
from omni_pipeline.contract.graph import Graph, StageSpec, load_factory, load_object
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage import Ranks, Stage, StageContext
from omni_pipeline.errors import StartupError
from omni_pipeline.logs import Format
from omni_pipeline.os_process import die_with_parent, leave_stopping_to_parent, lower_priority, set_title
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Pulse, Ready, StartFailed
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.transport import Inbox, Outbox, endpoint
from omni_pipeline.worker import tensor_parallel
from omni_pipeline.worker.loop import WorkerLoop
from omni_pipeline.worker.pulse import PulseThread
from omni_pipeline.worker.routing import Routing

# The import path of this module. `__name__` cannot be used, because it is ``__main__`` when this module is run as a
# program.
MODULE = "omni_pipeline.worker.process"

logger = logging.getLogger(__name__)


class Assignment(Struct, frozen=True):
    """The input of a worker process at its start. The assignment is sent as msgpack, and the options of stages are sent
    as mappings.

    Attributes:
        plan: The worker's plan.
        incarnation: Number of earlier processes of this worker.
        graph_path: ``package.module:NAME`` of the graph.
        model_path: Directory of the checkpoint.
        run_dir: Private directory of the service for sockets and short-lived files.
        ranks: Set only in a follower, a process that shares the work of the worker's tensor-parallel stage.
        addresses: Known endpoint of each process, by stage and number of the replica.
        home: Endpoint of the main process.
        groups: For each stage in a replicated group of stages: the name of the group.
        epoch: The last `wire.messages.Moved.epoch` that is already included in `addresses`.
        log_level, log_format: Arguments of `logs.configure`.
        traced: Whether to record notes for traces of requests.
        link: How to reach other hosts; None if the service runs on one host.
        clock_offset: Seconds to add to the clock of this host to get the clock of the main host.
    """

    plan: WorkerPlan
    incarnation: int
    graph_path: str
    model_path: str
    run_dir: str
    addresses: dict[str, dict[int, str]]
    home: str
    epoch: int
    log_level: str
    log_format: Format
    groups: dict[str, str] = {}
    traced: bool = False
    ranks: Ranks | None = None
    link: HostLink | None = None
    clock_offset: float = 0.0

    @property
    def stages(self) -> frozenset[str]:
        """Names of all stages of the deployment."""
        return frozenset(self.addresses)

    @property
    def address(self) -> str:
        """Endpoint of this process's own inbox."""
        return endpoint(self.run_dir, self._file_name, self.incarnation)

    @property
    def title(self) -> str:
        """Name of this process: the worker's name and, in a follower, the rank."""
        return self.plan.name if self.ranks is None else f"{self.plan.name} rank {self.ranks.rank}"

    @property
    def scratch(self) -> str:
        """Directory for the short-lived files of this process, inside `run_dir`. The directory is removed when the
        process ends.
        """
        return os.path.join(self.run_dir, f"{self._file_name}.{self.incarnation}.scratch")

    @property
    def _file_name(self) -> str:
        return self.title.replace(" ", "-")


def run(assignment: Assignment, parent: int) -> int:
    """Run the worker of `assignment` until a message orders it to exit.

    Args:
        parent: Process id of the fork server.

    Returns:
        The exit code: 0 after an order to exit, 1 if the worker could not load or a stage broke.
    """
    leave_stopping_to_parent()
    faulthandler.enable()
    # Temporary files of libraries are in this directory. This directory is removed after the process ends, even if the
    # process is killed.
    os.mkdir(assignment.scratch, mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = assignment.scratch
    set_title(assignment.title)
    logs.configure(assignment.title, assignment.log_level, assignment.log_format)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with _network(assignment, context) as network, _sockets(assignment, context, network) as (inbox, outbox):
            if assignment.ranks is not None:
                return _follow(assignment, assignment.ranks, inbox)
            with _pulses(assignment, context, network):
                return _serve(assignment, network, inbox, outbox, parent)
    except Exception:
        logger.exception("worker %s ends", assignment.title)
        return 1
    finally:
        context.term()


@contextlib.contextmanager
def _network(assignment: Assignment, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Network | None]:
    """The link to other hosts while the block runs; None if the service runs on one host."""
    if assignment.link is None:
        yield None
        return
    network = Network(context, assignment.link)
    network.offset = assignment.clock_offset
    try:
        yield network
    finally:
        network.close()


@contextlib.contextmanager
def _sockets(
    assignment: Assignment, context: zmq.Context[zmq.Socket[bytes]], network: Network | None
) -> Iterator[tuple[Inbox, Outbox]]:
    inbox = Inbox(context, assignment.address, network)
    outbox = Outbox(context, network)
    try:
        yield inbox, outbox
    finally:
        inbox.close()
        outbox.close()


@contextlib.contextmanager
def _pulses(assignment: Assignment, context: zmq.Context[zmq.Socket[bytes]], network: Network | None) -> Iterator[None]:
    """If the worker has a GPU, send pulses while the block runs. Pulses show that no call waits for ever."""
    if not assignment.plan.gpus:
        yield
        return
    pulse = Pulse(assignment.plan.name, assignment.incarnation)
    thread = PulseThread(Outbox(context, network), assignment.home, pulse)
    try:
        yield
    finally:
        thread.close()


def _serve(assignment: Assignment, network: Network | None, inbox: Inbox, outbox: Outbox, parent: int) -> int:
    begin = time.monotonic()
    name, home = assignment.plan.name, assignment.home
    codec = Codec({})
    stages: dict[str, Stage] = {}
    try:
        try:
            graph: Graph = load_object(assignment.graph_path).narrowed(assignment.stages)
            codec = Codec(graph.body_types(), graph.advice_types())
            _load(assignment, graph, stages, outbox, codec)
        except Exception as error:
            if not isinstance(error, StartupError):
                logger.exception("worker %s could not load", name)
            reason = str(error) if isinstance(error, StartupError) else f"{type(error).__name__}: {error}"
            outbox.send(home, codec.encode(StartFailed(name, assignment.incarnation, reason)))
            return 1
        worker = WorkerLoop(
            name,
            stages,
            Routing(assignment.addresses, home, assignment.groups, assignment.plan.group, assignment.plan.replica),
            inbox=inbox,
            outbox=outbox,
            codec=codec,
            parent=parent,
            incarnation=assignment.incarnation,
            epoch=assignment.epoch,
            traced=assignment.traced,
            network=network,
        )
        seconds = time.monotonic() - begin
        followers = [
            pid for stage in stages.values() if isinstance(stage, tensor_parallel.Leader) for pid in stage.pids
        ]
        ready = Ready(name, assignment.incarnation, os.getpid(), list(stages), seconds, followers, inbox.remote_address)
        outbox.send(home, codec.encode(ready))
        worker.run()
    finally:
        for stage in stages.values():
            stage.close()
    return 0


def _follow(assignment: Assignment, place: Ranks, inbox: Inbox) -> int:
    """Run a follower of the worker's tensor-parallel stage."""
    graph: Graph = load_object(assignment.graph_path).narrowed(assignment.stages)
    plan = next(plan for plan in assignment.plan.stages if plan.tp_size > 1)
    factory = load_factory(graph.stage(plan.name))
    _share_cores(assignment)
    stage = factory(_context(assignment, graph.stage(plan.name), plan, place))
    try:
        tensor_parallel.follow(stage, inbox, Codec(graph.body_types(), graph.advice_types()))
    finally:
        stage.close()
    return 0


def _load(assignment: Assignment, graph: Graph, stages: dict[str, Stage], outbox: Outbox, codec: Codec) -> None:
    """Build the worker's stages into `stages`, in graph order."""
    specs = [graph.stage(plan.name) for plan in assignment.plan.stages]
    factories = [load_factory(spec) for spec in specs]
    _share_cores(assignment)
    for plan, spec, factory in zip(assignment.plan.stages, specs, factories, strict=True):

        def build(place: Ranks) -> Stage:
            return factory(_context(assignment, spec, plan, place))  # noqa: B023 - called in this iteration

        if plan.tp_size == 1:
            stages[plan.name] = build(Ranks())
        else:
            launch = functools.partial(_launch_follower, assignment)
            stages[plan.name] = tensor_parallel.Leader(build, plan.tp_size, launch, outbox, codec)


def _launch_follower(assignment: Assignment, place: Ranks) -> tuple[subprocess.Popen[bytes], str]:
    """Start the process of another rank in a fresh interpreter. Returns the process and the endpoint of its inbox."""
    # the follower's files are in the scratch directory of the worker
    own = msgspec.structs.replace(assignment, ranks=place, run_dir=assignment.scratch, link=None)
    return subprocess.Popen(command(own, os.getpid()), stdin=subprocess.DEVNULL), own.address


def _share_cores(assignment: Assignment) -> None:
    """Set the niceness of this thread and of the threads that it starts from now on, and the number of Torch threads.
    The threads that send and receive messages have been started before, so they keep the usual niceness.
    """
    if assignment.plan.niceness:
        lower_priority(threading.get_native_id(), assignment.plan.niceness)
    if "torch" in sys.modules:  # a worker without torch needs no limit on threads
        sys.modules["torch"].set_num_threads(assignment.plan.threads or 1)


def _context(assignment: Assignment, spec: StageSpec, plan: StagePlan, place: Ranks) -> StageContext:
    return StageContext(
        name=spec.name,
        model_path=assignment.model_path,
        device=plan.device,
        options=msgspec.convert(plan.options, spec.options),
        stages=assignment.stages,
        scratch=assignment.scratch,
        ranks=place,
        static=plan.static,
    )


def command(assignment: Assignment, parent: int) -> list[str]:
    """The command line of a process with this assignment. Writes the assignment to a file in the run directory."""
    path = os.path.join(assignment.run_dir, f"{assignment.title.replace(' ', '-')}.{assignment.incarnation}.assignment")
    with open(path, "wb") as file:
        file.write(msgspec.msgpack.encode(assignment))
    return [sys.executable, "-P", "-m", MODULE, path, str(parent)]


def main() -> None:
    """Entry point of a fresh interpreter: ``python -m omni_pipeline.worker.process ASSIGNMENT_FILE PARENT_PID``."""
    path, parent = sys.argv[1], int(sys.argv[2])
    with open(path, "rb") as file:
        assignment = msgspec.msgpack.decode(file.read(), type=Assignment)
    os.unlink(path)
    die_with_parent(parent, signal.SIGKILL)
    code = run(assignment, parent)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a normal exit would first destroy all modules, which takes seconds


if __name__ == "__main__":
    main()
