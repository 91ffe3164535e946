"""The tools that compile kernels for workers on GPUs are found, made from Python packages, or reported as missing."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni_pipeline.cli import app
from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from omni_pipeline.kernels import cuda_toolkit, toolchain
from omni_pipeline.kernels.cuda_toolkit import PARTS, assemble, installed, lacking, toolkit_of
from omni_pipeline.service import serve
from tests.omni_pipeline.deployment.test_gpu_assignment import environment as environment_of
from tests.omni_pipeline.echo_stages import ECHO_PATH
from tests.omni_pipeline.sessions import running

SYSTEM = "/usr/bin:/bin"


@pytest.fixture(autouse=True)
def _machine_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these tests independent of the machine that runs them: hide any installed CUDA toolkit, and use an empty
    cache.
    """
    monkeypatch.setattr(cuda_toolkit, "USUAL", tmp_path / "no-cuda")
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def toolkit(home: Path, parts: Iterable[str] = PARTS) -> Path:
    """A directory with the files of a CUDA toolkit; each file is an empty script."""
    for part in parts:
        (home / part).parent.mkdir(parents=True, exist_ok=True)
        (home / part).write_text("#!/bin/sh\n")
        (home / part).chmod(0o755)
    return home


# --- what a worker finds ---


def test_worker_finds_the_programs_of_its_environment_although_that_is_not_activated(tmp_path: Path) -> None:
    """A Python environment may extend another environment. The programs are found even if they are in the directory of
    the extended environment.
    """
    environment = toolchain.prepared({"PATH": SYSTEM, "XDG_CACHE_HOME": str(tmp_path)})
    first, *others = environment["PATH"].split(":")
    assert first == os.path.dirname(sys.executable)
    assert others[-2:] == SYSTEM.split(":")
    own = ":".join([first, *others[:-2]])
    assert shutil.which("ninja", path=own) is not None


def test_toolkit_of_the_environment_takes_the_place_of_one_that_is_not_installed() -> None:
    home = Path(toolchain.prepared({**os.environ, "PATH": SYSTEM})["CUDA_HOME"])
    assert home.parent.parent.parent == Path(os.environ["XDG_CACHE_HOME"])
    assert lacking(home) == []


def test_installed_toolkit_is_taken_from_path_or_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, usual = toolkit(tmp_path / "own"), toolkit(tmp_path / "usual")
    monkeypatch.setattr(cuda_toolkit, "USUAL", usual)
    assert installed({"PATH": f"{own}/bin"}) == own
    assert installed({"PATH": SYSTEM}) == usual
    assert toolchain.prepared({"PATH": f"{own}/bin"})["CUDA_HOME"] == str(own)


def test_directory_above_a_wrapper_of_nvcc_is_no_toolkit(tmp_path: Path) -> None:
    """Debian has a wrapper of nvcc in ``/usr/bin``. But Debian has no ``/usr/lib64/libcudart.so``, and libraries need
    this file in a toolkit.
    """
    wrapper = toolkit(tmp_path / "local", PARTS[:2])
    assert installed({"PATH": f"{wrapper}/bin"}) is None
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "nvcc").symlink_to(toolkit(tmp_path / "own") / "bin/nvcc")
    assert installed({"PATH": str(linked)}) == tmp_path / "own"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_toolkit_that_the_operator_names_is_taken_whole_or_refused(tmp_path: Path, variable: str) -> None:
    named = {"PATH": SYSTEM, variable: str(toolkit(tmp_path / "named"))}
    assert toolchain.find(named).missing == ()
    assert toolchain.prepared(named)["CUDA_HOME"] == named[variable]
    (tmp_path / "named/bin/nvcc").unlink()
    (line,) = toolchain.find(named).missing
    assert f"CUDA_HOME is {named[variable]}, which lacks bin/nvcc" in line


# --- messages when something is missing ---


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Hides the programs of the environment and of the system, and NVIDIA's packages."""

    def take(*, leave: Iterable[str] = ()) -> None:
        programs = toolkit(tmp_path / "programs", leave)
        programs.mkdir(exist_ok=True)
        monkeypatch.setattr(toolchain, "_own_directories", list)
        monkeypatch.setattr(cuda_toolkit, "packages", list)
        monkeypatch.setenv("PATH", str(programs))

    return take


GPU_STAGES = Config(model_path="x", graph=ECHO_PATH, stages={"split": StageConfig()}, log_level="error")


def test_everything_that_is_missing_is_named_with_what_to_do(bare: Callable[..., None]) -> None:
    bare()
    lines = toolchain.find(os.environ).missing
    assert [line.partition(":")[0] for line in lines] == ["c++", "gcc", "ninja", "nvcc"]
    assert all("install" in line for line in lines)


@pytest.mark.parametrize("there", ["c++", "gcc", "ninja"])
def test_what_is_there_is_not_named(bare: Callable[..., None], there: str) -> None:
    bare(leave=[there])
    assert there not in [line.partition(":")[0] for line in toolchain.find(os.environ).missing]


def test_compiler_of_the_operators_choice_is_looked_for(bare: Callable[..., None]) -> None:
    bare(leave=["my-c++"])
    own = {**os.environ, "CXX": "my-c++ -pipe", "NVCC_CCBIN": "other"}
    assert [line.partition(":")[0] for line in toolchain.find(own).missing] == ["other", "ninja", "nvcc"]


async def test_server_on_gpus_says_what_is_missing_before_it_loads(
    bare: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare(leave=["c++", "gcc"])
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: parse("2x24GB"))
    with pytest.raises(StartupError, match=r"lacks tools for the compilation:\n  ninja: .*\n  nvcc: .*"):
        await serve(GPU_STAGES, None)  # type: ignore[arg-type] - nothing is shown so early


def test_deployment_on_the_cpu_needs_nothing(bare: Callable[..., None]) -> None:
    bare()
    assert toolchain.missing(resolve(GPU_STAGES, ()).workers) == ()
    assert toolchain.missing(resolve(GPU_STAGES, parse("2x24GB")).workers) != ()


def test_check_refuses_for_this_machine_and_notes_for_another(
    bare: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare(leave=["c++", "gcc", "ninja"])
    flags = ["config", "check", "--model-path", "x"]
    result = CliRunner().invoke(app, [*flags, "--gpus", "1xH100-80GB"])
    assert result.exit_code == 0
    assert "nvcc: the CUDA compiler" in result.stdout
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: parse("1xH100-80GB"))
    result = CliRunner().invoke(app, flags)
    assert isinstance(result.exception, StartupError)
    assert "nvcc: the CUDA compiler" in str(result.exception)
    assert CliRunner().invoke(app, [*flags, "--device", "cpu"]).exit_code == 0


# --- toolkits made from packages ---


def package(directory: Path, *files: str) -> Path:
    for file in files:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text(file)
    return directory


def nvcc(directory: Path, release: str) -> Path:
    compiler = toolkit(directory, ["bin/nvcc"]) / "bin/nvcc"
    compiler.write_text(f"#!/bin/sh\necho release {release}, V{release}\n")
    return package(directory, "bin/nvcc.profile", "nvvm/bin/cicc")


def headers(directory: Path, version: int) -> Path:
    package(directory, "include/cuda_runtime.h", "include/cuda_runtime_api.h", "lib/libcudart.so.12")
    (directory / "include/cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {version}\n")
    return directory


def test_packages_of_cuda_12_are_put_together(tmp_path: Path) -> None:
    compiler = package(nvcc(tmp_path / "cuda_nvcc", "12.8"), "include/crt/host_config.h")
    runtime = package(headers(tmp_path / "cuda_runtime", 12080), "include/crt/host_defines.h")
    own = toolkit_of([package(tmp_path / "cublas", "include/cublas.h", "lib/libcublas.so.12"), compiler, runtime])
    home = assemble(own, os.environ)
    assert lacking(home) == []
    for part in ("include/cublas.h", "include/crt/host_config.h", "include/crt/host_defines.h", "nvvm/bin/cicc",
                 "lib64/libcublas.so", "lib64/libcudart.so.12", "lib/libcudart.so"):  # fmt: skip
        assert (home / part).read_text(), part


def test_package_of_the_newest_cuda_is_taken_alone(tmp_path: Path) -> None:
    older, newer = (headers(nvcc(tmp_path / name, "13.0"), 13000) for name in ("cu13", "cu14"))
    assert toolkit_of([older, newer, package(tmp_path / "cudnn", "include/cudnn.h")]) == [newer]


@pytest.mark.parametrize("parts", [["cuda_nvcc"], ["cuda_runtime"], []])
def test_parts_of_a_toolkit_are_none(tmp_path: Path, parts: list[str]) -> None:
    both = {
        "cuda_nvcc": nvcc(tmp_path / "cuda_nvcc", "12.8"),
        "cuda_runtime": headers(tmp_path / "cuda_runtime", 12080),
    }
    assert toolkit_of([both[name] for name in parts]) == []


@pytest.mark.parametrize(("release", "alike"), [("12.8", True), ("12.9", False)])
def test_compiler_of_another_release_is_told_to_take_the_headers(tmp_path: Path, release: str, alike: bool) -> None:
    home = assemble([headers(nvcc(tmp_path / "both", release), 12080)], os.environ)
    assert ("CCCL_DISABLE" in (home / "bin/nvcc.profile").read_text()) != alike


def made(home: Path) -> list[str]:
    return sorted(entry.name for entry in home.parent.iterdir())


def test_toolkit_is_made_once_for_all_workers_and_anew_for_other_packages(tmp_path: Path) -> None:
    sources = [headers(nvcc(tmp_path / "both", "12.8"), 12080)]
    with ThreadPoolExecutor(8) as pool:
        (home,) = set(pool.map(lambda _: assemble(sources, os.environ), range(8)))
    assert made(home) == sorted([home.name, "lock"])
    inode = home.stat().st_ino
    assert assemble(sources, os.environ) == home
    assert home.stat().st_ino == inode
    package(sources[0], "lib/libcublas.so.12")
    assert assemble(sources, os.environ) != home


def test_cache_without_locks_serves_all_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    sources = [headers(nvcc(tmp_path / "both", "12.8"), 12080)]
    with ThreadPoolExecutor(8) as pool:
        (home,) = set(pool.map(lambda _: assemble(sources, os.environ), range(8)))
    assert lacking(home) == []
    assert made(home) == sorted([home.name, "lock"])


def test_toolkit_that_has_lost_a_part_is_made_again(tmp_path: Path) -> None:
    sources = [headers(nvcc(tmp_path / "both", "12.8"), 12080)]
    home = assemble(sources, os.environ)
    (home / "lib64/libcudart.so").unlink()
    assert assemble(sources, os.environ) == home
    assert lacking(home) == []
    assert made(home) == sorted([home.name, "lock"])


def test_cache_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    sources = [headers(nvcc(tmp_path / "both", "12.8"), 12080)]
    cache = assemble(sources, os.environ).parent
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    cache.chmod(0o777)
    elsewhere = assemble(sources, os.environ)
    assert cache not in elsewhere.parents
    assert stat.S_IMODE(elsewhere.parent.stat().st_mode) == 0o700
    assert lacking(elsewhere) == []
    shutil.rmtree(elsewhere.parent)


def test_driver_is_found_by_linkers_although_only_its_versioned_name_is_there(tmp_path: Path) -> None:
    driver = package(tmp_path / "driver", "libcuda.so.1")
    environment = {**os.environ, "LD_LIBRARY_PATH": f":{tmp_path}:{driver}"}
    home = assemble([headers(nvcc(tmp_path / "both", "12.8"), 12080)], environment)
    assert (home / "lib64/stubs/libcuda.so").resolve() == driver / "libcuda.so.1"


async def test_worker_on_a_gpu_has_the_toolchain_and_others_do_not(
    run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with this variable, setproctitle leaves the environment of the process readable
    monkeypatch.setenv("SPT_NOENV", "1")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "named")))
    monkeypatch.setenv("PATH", SYSTEM)
    async with running(GPU_STAGES, gpus=parse("1x24GB")) as session:
        on_gpu, on_cpu = (environment_of(session, name) for name in ("join", "split"))
    assert on_gpu["CUDA_HOME"] == str(tmp_path / "named")
    assert on_gpu["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    assert on_cpu["PATH"] == SYSTEM


# --- it compiles ---


def test_kernel_for_hopper_compiles_and_links_with_the_environments_own_packages(tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    driver.mkdir()
    stub = ["c++", "-shared", "-x", "c++", "-", "-Wl,-soname,libcuda.so.1", "-o", str(driver / "libcuda.so.1")]
    subprocess.run(stub, input='extern "C" int cuInit(unsigned) { return 0; }', text=True, check=True)
    environment = toolchain.prepared({**os.environ, "PATH": SYSTEM, "LD_LIBRARY_PATH": str(driver)})
    home = environment["CUDA_HOME"]
    (tmp_path / "kernel.cu").write_text(KERNEL)
    target = "-gencode=arch=compute_90a,code=sm_90a"
    subprocess.run([f"{home}/bin/nvcc", target, "-Xcompiler", "-fPIC", "-c", "kernel.cu", "-o", "kernel.o"],
                   cwd=tmp_path, env=environment, check=True)  # fmt: skip
    link = ["c++", "-shared", "-Wl,--no-undefined", "kernel.o", f"-L{home}/lib64", f"-L{home}/lib64/stubs",
            "-lcudart", "-lcuda", "-o", "kernel.so"]  # fmt: skip
    subprocess.run(link, cwd=tmp_path, env=environment, check=True)
    assert b"sm_90a" in (tmp_path / "kernel.o").read_bytes()


KERNEL = """
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda/std/type_traits>
__global__ void twice(__nv_bfloat16* x) { x[threadIdx.x] += x[threadIdx.x]; }
extern "C" int run(void* x) {
    if (cuInit(0)) return 1;
    twice<<<1, 32>>>((__nv_bfloat16*)x);
    return cudaGetLastError();
}
"""
