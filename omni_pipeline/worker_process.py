"""The life of a worker process: make ready, build the stages, run the loop, leave."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import tempfile
import time
from typing import Any

import msgspec
import zmq
from msgspec import Struct

from omni_pipeline import logs
from omni_pipeline.deployment import WorkerPlan
from omni_pipeline.errors import StartupError
from omni_pipeline.graph import COLLECTOR, Graph, StageSpec, load_factory, load_object
from omni_pipeline.logs import Format
from omni_pipeline.process import leave_stopping_to_parent, set_title
from omni_pipeline.stage import Stage, StageContext
from omni_pipeline.transport import Inbox, Outbox, endpoint
from omni_pipeline.wire import Codec, Ready, StartFailed
from omni_pipeline.worker import Worker

logger = logging.getLogger(__name__)


class Assignment(Struct, frozen=True):
    """All that a worker process is told when it starts; as msgpack, with options as plain values.

    Attributes:
        plan: Its stages.
        incarnation: How many processes this worker had before.
        graph_path: ``package.module:NAME`` of the graph.
        model_path: Directory of the checkpoint.
        run_dir: Private directory for sockets and short-lived files.
        addresses: Endpoint of the process that runs each stage, and of the main process as `graph.COLLECTOR`.
        epoch: The last `wire.Moved` that `addresses` knows of.
        log_level, log_format: As `logs.configure` takes them.
        traced: Whether to note what is done for each request.
    """

    plan: WorkerPlan
    incarnation: int
    graph_path: str
    model_path: str
    run_dir: str
    addresses: dict[str, str]
    epoch: int
    log_level: str
    log_format: Format
    traced: bool = False

    @property
    def stages(self) -> frozenset[str]:
        """Names of all stages of the deployment."""
        return frozenset(self.addresses) - {COLLECTOR}

    @property
    def address(self) -> str:
        """Endpoint of this worker's own inbox."""
        return endpoint(self.run_dir, self.plan.name, self.incarnation)

    @property
    def scratch(self) -> str:
        """Directory for this process's own short-lived files, in `run_dir`; it goes with the process."""
        return os.path.join(self.run_dir, f"{self.plan.name}.{self.incarnation}.scratch")


def run(assignment: Assignment, parent: int) -> int:
    """Be the worker of `assignment` until told to leave.

    Args:
        parent: Process id of the fork server.

    Returns:
        The exit code: 0 when told to leave, 1 when the worker could not load or broke.
    """
    leave_stopping_to_parent()
    faulthandler.enable()
    # What libraries leave in the directory for temporary files goes with the process, even after a kill.
    os.mkdir(assignment.scratch, mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = assignment.scratch
    set_title(assignment.plan.name)
    logs.configure(assignment.plan.name, assignment.log_level, assignment.log_format)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = Inbox(context, assignment.address)
    outbox = Outbox(context)
    try:
        return _serve(assignment, inbox, outbox, parent)
    except Exception:
        logger.exception("worker %s ends", assignment.plan.name)
        return 1
    finally:
        inbox.close()
        outbox.close()
        context.term()


def _serve(assignment: Assignment, inbox: Inbox, outbox: Outbox, parent: int) -> int:
    begin = time.monotonic()
    name, home = assignment.plan.name, assignment.addresses[COLLECTOR]
    codec = Codec({})
    stages: dict[str, Stage] = {}
    try:
        try:
            graph: Graph = load_object(assignment.graph_path).narrowed(assignment.stages)
            codec = Codec(graph.body_types())
            _load(assignment, graph, stages)
        except Exception as error:
            if not isinstance(error, StartupError):
                logger.exception("worker %s could not load", name)
            reason = str(error) if isinstance(error, StartupError) else f"{type(error).__name__}: {error}"
            outbox.send(home, codec.encode(StartFailed(name, assignment.incarnation, reason)))
            return 1
        worker = Worker(
            name,
            stages,
            assignment.addresses,
            inbox=inbox,
            outbox=outbox,
            codec=codec,
            parent=parent,
            incarnation=assignment.incarnation,
            epoch=assignment.epoch,
            traced=assignment.traced,
        )
        seconds = time.monotonic() - begin
        outbox.send(home, codec.encode(Ready(name, assignment.incarnation, os.getpid(), list(stages), seconds)))
        worker.run()
    finally:
        for stage in stages.values():
            stage.close()
    return 0


def _load(assignment: Assignment, graph: Graph, stages: dict[str, Stage]) -> None:
    """Build the worker's stages into `stages`, in graph order."""
    specs = [graph.stage(plan.name) for plan in assignment.plan.stages]
    factories = [load_factory(spec) for spec in specs]
    if "torch" in sys.modules:  # a worker without it needs no bound
        sys.modules["torch"].set_num_threads(assignment.plan.threads)
    for plan, spec, factory in zip(assignment.plan.stages, specs, factories, strict=True):
        stages[plan.name] = factory(_context(assignment, spec, plan.device, plan.options))


def _context(assignment: Assignment, spec: StageSpec, device: str, options: Any) -> StageContext:
    return StageContext(
        name=spec.name,
        model_path=assignment.model_path,
        device=device,
        options=msgspec.convert(options, spec.options),
        stages=assignment.stages,
        scratch=assignment.scratch,
    )


def main() -> None:
    """Entry of a process of its own: ``python -m omni_pipeline.worker_process ASSIGNMENT_FILE PARENT_PID``."""
    path, parent = sys.argv[1], int(sys.argv[2])
    with open(path, "rb") as file:
        assignment = msgspec.msgpack.decode(file.read(), type=Assignment)
    os.unlink(path)
    sys.exit(run(assignment, parent))


if __name__ == "__main__":
    main()
