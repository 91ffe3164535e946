"""The available memory is the smaller of two amounts: the system's free memory, and the memory left in the control
group.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_pipeline.deployment import host_memory

GIB = 1024**3


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The files of a system with 16 GiB of memory, of which 8 GiB are available. The control group may use 4 GiB and
    uses 1 GiB, half of it as cache.
    """
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{4 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 2}\n")
    return tmp_path


def test_control_group_bounds_what_is_available(system: Path) -> None:
    assert host_memory.available_bytes(system) == 3.5 * GIB


def test_unlimited_control_group_does_not(system: Path) -> None:
    (system / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert host_memory.available_bytes(system) == 8 * GIB


def test_unknown_system_has_unknown_memory(tmp_path: Path) -> None:
    assert host_memory.available_bytes(tmp_path) is None
    assert host_memory.total_bytes(tmp_path) is None


def test_control_group_bounds_the_whole_memory(system: Path) -> None:
    assert host_memory.total_bytes(system) == 4 * GIB
    (system / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert host_memory.total_bytes(system) == 16 * GIB
