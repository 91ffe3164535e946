"""Ends the process groups of a single rank, which wait for peers that there are not."""

from __future__ import annotations

from sglang.srt.distributed import parallel_state


def leave_single_rank_groups() -> None:
    """Destroy every group in which this process is alone; SGLang asks none of them for anything then.

    Each of Gloo's groups has a thread that wakes up a hundred times a second: with all of them an idle worker uses
    more than 1 % of a core. The default group stays, and those that the scheduler itself holds on to.
    """
    for reference in list(parallel_state._groups.values()):
        group = reference()
        if group is not None and group.world_size == 1:
            group.destroy()
