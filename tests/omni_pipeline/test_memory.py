"""Weights that do not fit are noticed before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import Struct, structs

from omni_pipeline import memory
from omni_pipeline.checkpoint import Checkpoint
from omni_pipeline.deployment import Deployment, resolve
from omni_pipeline.errors import StartupError
from tests.omni_pipeline.sessions import echo_config

GIB = 1024**3


class Typed(Struct, frozen=True):
    dtype: str | None = None


def deployment(dtype: str | None = None) -> Deployment:
    """The echo graph where `shout` loads the ear's weights in `dtype`."""
    plain = resolve(echo_config())
    stages = tuple(
        structs.replace(stage, weights=("ear.",)) if stage.name == "shout" else stage for stage in plain.graph.stages
    )
    workers = tuple(
        structs.replace(worker, stages=tuple(structs.replace(plan, options=Typed(dtype)) for plan in worker.stages))
        for worker in plain.workers
    )
    return structs.replace(plain, graph=structs.replace(plain.graph, stages=stages), workers=workers)


@pytest.mark.parametrize(("dtype", "size"), [(None, 4), ("bfloat16", 2), ("float64", 8)])
def test_weights_are_counted_in_the_type_they_are_held_in(dtype: str | None, size: int) -> None:
    checkpoint = Checkpoint("x", {"ear.a": 100, "mouth.b": 1000})
    assert memory.weight_bytes(deployment(dtype), checkpoint) == {"split": 0, "shout": 100 * size, "join": 0}


def test_what_fits_is_let_through() -> None:
    memory.check(deployment(), Checkpoint("x", {"ear.a": 100}))


def test_what_does_not_fit_is_refused_with_figures_and_advice() -> None:
    with pytest.raises(StartupError) as caught:
        memory.check(deployment(), Checkpoint("x", {"ear.a": 2**40}))
    assert "the weights need 4096.0 GiB on the CPU (shout 4096.0), and " in str(caught.value)
    assert "--device cuda" in str(caught.value)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system with 8 GiB available and a control group of 4 GiB, of which 1 is used and half of that is cache."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{4 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 2}\n")
    return tmp_path


def test_control_group_bounds_what_is_available(system: Path) -> None:
    assert memory.available_bytes(system) == 3.5 * GIB


def test_unlimited_control_group_does_not(system: Path) -> None:
    (system / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory.available_bytes(system) == 8 * GIB


def test_unknown_system_has_unknown_memory(tmp_path: Path) -> None:
    assert memory.available_bytes(tmp_path) is None
