"""Whether a deployment's weights fit into the RAM that is free, found out before they are read."""

from __future__ import annotations

from pathlib import Path

from omni_pipeline.checkpoint import Checkpoint
from omni_pipeline.deployment import Deployment
from omni_pipeline.errors import StartupError
from omni_pipeline.wire import ITEM_SIZE

# On the CPU weights are held in this type unless a stage's `dtype` option says otherwise.
CPU_DTYPE = "float32"

_GIB = 1024**3


def check(deployment: Deployment, checkpoint: Checkpoint) -> None:
    """Raise StartupError when the weights of the stages on the CPU need more RAM than is available."""
    needs = weight_bytes(deployment, checkpoint)
    available = available_bytes()
    if available is None or sum(needs.values()) <= available:
        return
    parts = ", ".join(f"{name} {need / _GIB:.1f}" for name, need in needs.items() if need)
    raise StartupError(
        f"Not enough memory: the weights need {sum(needs.values()) / _GIB:.1f} GiB on the CPU ({parts}), "
        f"and {available / _GIB:.1f} GiB is available. Free some, use a GPU (--device cuda), or give the stages "
        "a smaller dtype option."
    )


def weight_bytes(deployment: Deployment, checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of weights that each stage on the CPU will hold, by stage."""
    needs = {}
    for worker in deployment.workers:
        for plan in worker.stages:
            dtype = getattr(plan.options, "dtype", None) or CPU_DTYPE
            if plan.device == "cpu":
                elements = checkpoint.count(deployment.graph.stage(plan.name).weights)
                needs[plan.name] = elements * ITEM_SIZE.get(dtype, ITEM_SIZE[CPU_DTYPE])
    return needs


def available_bytes(root: Path = Path("/")) -> int | None:
    """RAM that can still be taken: the system's, or the control group's if that is less; None where it is unknown.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    known = [free for free in (_system_free(root), _group_free(root)) if free is not None]
    return min(known, default=None)


def _system_free(root: Path) -> int | None:
    try:
        return _fields(root / "proc/meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return None


def _group_free(root: Path) -> int | None:
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        # Page cache counts as used, but gives way.
        used -= _fields(group / "memory.stat").get("inactive_file", 0)
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def _fields(path: Path) -> dict[str, int]:
    """The second word of each line by the first."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
