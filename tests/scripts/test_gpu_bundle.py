"""The bundle for a machine without SGLang and without a network contains the required files of SGLang. The bundle is
unpacked only if its files are unchanged.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gpu_check import bare, bundle


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sglang/srt/managers/scheduler.py", True),
        ("sglang/kernels/jit/csrc/elementwise/kvcache.cuh", True),
        ("sglang-0.5.23.dist-info/METADATA", True),
        ("sglang/srt/mem_cache/rust_tree_core/mem_cache.cpython-312-x86_64-linux-gnu.so", False),
        ("sglang/multimodal_gen/runtime/server.py", False),
        ("sglang/test/kits/kit.py", False),
        (
            "sglang/srt/layers/moe/moe_runner/triton_utils/configs/E=128,N=768,device_name=NVIDIA_H100_80GB_HBM3.json",
            True,
        ),
        ("sglang/srt/layers/moe/moe_runner/triton_utils/configs/E=128,N=768,device_name=NVIDIA_L40S.json", False),
    ],
)
def test_sources_are_kept_and_the_rest_is_not(name: str, wanted: bool) -> None:
    assert bundle.is_wanted(name) is wanted


def test_versions_are_those_of_the_project() -> None:
    pinned = bundle.pins(bundle.CONSTRAINTS.read_text())
    assert pinned["sglang"] == "0.5.23"
    assert {"msgspec", "pyzmq", "pydantic-core", "apache-tvm-ffi"} <= pinned.keys()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    with zipfile.ZipFile(tmp_path / "whole.whl", "w") as wheel:
        wheel.writestr("sglang/__init__.py", "here = True\n")
        wheel.writestr("sglang/kernel.so", b"\0" * 100)
    bundle.cut(tmp_path / "whole.whl", directory / "sglang-1-py3-none-any.whl")
    bundle.write_manifest(directory, "3.12")
    return directory


def test_what_was_collected_is_unpacked_with_our_entry_point(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "unpacked"
    target.mkdir()
    bare.unpack(made, target)
    assert (target / "sglang" / "__init__.py").read_text() == "here = True\n"
    assert not (target / "sglang" / "kernel.so").exists()
    script = "from importlib.metadata import entry_points\n"
    script += "print([p.value for p in entry_points(group='sglang.srt.platforms') if p.dist.version == '0'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(target)}
    )
    assert "stages.sglang_engine.cpu_platform:activate" in done.stdout


def test_a_damaged_file_is_refused(made: Path, tmp_path: Path) -> None:
    [wheel] = made.glob("*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(ValueError, match="is damaged: make the bundle again"):
        bare.unpack(made, tmp_path)


def test_without_a_bundle_it_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bare.main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "results")]) == 2
    assert "make one with scripts/gpu_check/bundle.py" in capsys.readouterr().err


def test_both_parts_run_and_the_worse_one_decides(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "scripts"
    here.mkdir()
    (here / "parts.py").write_text("import sglang, sys; print(sglang.here, sys.argv[1:], flush=True)")
    (here / "engine.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(bare, "HERE", here)
    monkeypatch.setattr(bare, "_MARGIN", 1)
    flags = [
        "--bundle",
        str(made),
        "--minutes",
        "0.08",
        "--device",
        "cpu",
        "--small",
        "--out",
        str(tmp_path / "results"),
    ]
    assert bare.main(flags) == 1
    first, last = capfd.readouterr().out.splitlines()
    assert first.startswith("True ['--device', 'cpu', '--seconds'")
    assert "'--small'" in first
    assert json.loads(last) == {
        "check": "engine",
        "result": "FAIL",
        "figures": {"problem": "the script itself was out of time"},
    }
