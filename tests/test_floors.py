"""The code has floors: a room imports only rooms on lower floors, and imports never form a cycle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.floors import circles, importers, read_modules, read_rooms, upward

ROOT = Path(__file__).parents[1]
PACKAGES = ("omni_pipeline", "stages", "gateway")

FRAMEWORK = (
    (
        "omni_pipeline",
        "omni_pipeline.cpu_detection",
        "omni_pipeline.errors",
        "omni_pipeline.os_process",
        "omni_pipeline.sizes",
    ),
    ("omni_pipeline.gpus", "omni_pipeline.logs", "omni_pipeline.wire"),
    ("omni_pipeline.contract",),
    ("omni_pipeline.config", "omni_pipeline.kernels", "omni_pipeline.worker"),
    ("omni_pipeline.supervision",),
    ("omni_pipeline.deployment",),
    ("omni_pipeline.hosts", "omni_pipeline.simulation"),
    ("omni_pipeline.commands", "omni_pipeline.service"),
    ("omni_pipeline.cli",),
)

# Modules of the framework that a stage may import: the contract, and modules that do not depend on a pipeline.
OPEN_TO_STAGES = (
    "omni_pipeline.contract",
    "omni_pipeline.wire",
    "omni_pipeline.errors",
    "omni_pipeline.logs",
    "omni_pipeline.os_process",
    "omni_pipeline.sizes",
    "omni_pipeline.gpus",
    "omni_pipeline.cpu_detection",
)
STAGES = (
    (
        "stages",
        "stages.messages",
        "stages.cuda_habits",
        "stages.cpu_graphs",
        "stages.compiled",
        "stages.context_length",
        "stages.playback",
        "stages.queue_order",
        "stages.token_bytes",
    ),
    (
        "stages.flags",
        "stages.options",
        "stages.sampling_filters",
        "stages.decoder_kernels",
        "stages.reasoning_track",
    ),
    ("stages.checkpoint", "stages.grammars"),
    ("stages.sglang_engine", "stages.encoders"),
    ("stages.preprocessing", "stages.mm_aggregate", "stages.decode"),
    ("stages.thinker", "stages.talker_ar", "stages.code_predictor", "stages.code2wav"),
    ("stages.simulation", "stages.topology"),
    ("stages.routes",),
)

GATEWAY = (
    ("gateway", "gateway.fair_limit"),
    (
        "gateway.pipeline",
        "gateway.prompt_chain",
        "gateway.grants",
        "gateway.bodies",
        "gateway.playback",
        "gateway.traces",
        "gateway.voice_load",
    ),
    ("gateway.admission",),
    ("gateway.api", "gateway.metrics", "gateway.bench"),
    ("gateway.http", "gateway.media"),
    ("gateway.answers", "gateway.playground"),
    ("gateway.realtime",),
    ("gateway.serving",),
)


def test_framework_has_floors() -> None:
    assert upward(read_rooms(ROOT, ["omni_pipeline"]), FRAMEWORK) == []


def test_framework_knows_no_model() -> None:
    rooms = read_rooms(ROOT, PACKAGES)
    strangers = {
        f"{room} imports {target}"
        for room, targets in rooms.items()
        for target in targets
        if room.startswith("omni_pipeline") and not target.startswith("omni_pipeline")
    }
    assert strangers == set()


def test_stages_have_floors() -> None:
    floors = ((*OPEN_TO_STAGES, "omni_pipeline"), *STAGES)
    rooms = {name: room for name, room in read_rooms(ROOT, PACKAGES).items() if name.startswith("stages")}
    assert upward(rooms, floors) == []


def test_gateway_has_floors() -> None:
    below = tuple(room for floor in FRAMEWORK[:6] for room in floor)
    floors = ((*below, "stages.messages", "stages.routes"), *GATEWAY)
    rooms = {name: room for name, room in read_rooms(ROOT, PACKAGES).items() if name.startswith("gateway")}
    assert upward(rooms, floors) == []


def test_scripts_import_no_tests() -> None:
    assert importers(ROOT / "scripts", "tests") == []


def test_no_module_is_in_a_circle() -> None:
    assert circles(read_modules(ROOT, PACKAGES)) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "floors"),
    [
        ("omni_pipeline/wire/transport.py", "from omni_pipeline.worker.loop import Worker", FRAMEWORK),
        ("omni_pipeline/supervision/worker_lifecycle.py", "from omni_pipeline.deployment import resolve", FRAMEWORK),
        ("omni_pipeline/errors.py", "import omni_pipeline.logs", FRAMEWORK),
    ],
)
def test_planted_import_is_found(copy: Path, file: str, line: str, floors: tuple[tuple[str, ...], ...]) -> None:
    path = copy / file
    path.write_text(f"{path.read_text()}\n\ndef planted() -> None:\n    {line}\n")
    [found] = upward(read_rooms(copy, ["omni_pipeline"]), floors)
    assert found.startswith(f"{file} imports ")


@pytest.mark.parametrize("line", ["from tests.server import Server", "from tests import server", "import tests"])
def test_planted_import_of_tests_is_found(tmp_path: Path, line: str) -> None:
    scripts = Path(shutil.copytree(ROOT / "scripts", tmp_path / "scripts"))
    planted = scripts / "trials" / "report.py"
    planted.write_text(f"{planted.read_text()}\n\ndef planted() -> None:\n    {line}\n")
    assert importers(scripts, "tests") == ["trials/report.py"]


def test_planted_circle_is_found(copy: Path) -> None:
    path = copy / "omni_pipeline" / "sizes.py"
    path.write_text(f"{path.read_text()}\nimport omni_pipeline.gpus\n")
    assert circles(read_modules(copy, PACKAGES)) == [["omni_pipeline.gpus", "omni_pipeline.sizes"]]


def test_room_without_a_floor_is_found(copy: Path) -> None:
    (copy / "omni_pipeline" / "attic.py").write_text("")
    assert upward(read_rooms(copy, ["omni_pipeline"]), FRAMEWORK) == ["omni_pipeline.attic has no floor"]
