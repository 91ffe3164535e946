"""Every module that a worker with a GPU imports can be imported in CUDA mode."""

from __future__ import annotations

from fake_gpu import Accelerator

from tests.fake_gpu.imports import modules, names
from tests.fake_gpu.inside import imports as inside


def test_modules_of_gpu_workers_can_be_imported(accelerator: Accelerator) -> None:
    assert accelerator.load(modules()) == {}


def test_what_the_stages_import_of_sglang_and_others_is_there(engines: Accelerator) -> None:
    assert len([module for module, _ in names() if module.startswith("sglang.")]) > 40
    assert engines.run(inside.missing, names=names()) == []


def test_sglang_takes_its_cuda_platform_and_kernels(engines: Accelerator) -> None:
    found = engines.run(inside.platform)
    assert (found["device"], found["ours"]) == ("cuda", False)
    assert engines.kernels == "real"
    assert "sgl_kernel" in found["kernels"]
    assert found["operations"]


def test_modules_can_be_imported_with_a_stub_of_the_kernels() -> None:
    """SGLang's kernel library may fail to load on this machine. With a stub in its place, all other imports can still
    be tested.
    """
    with Accelerator(stub_kernels=True) as accelerator:
        assert accelerator.kernels == "stub"
        assert accelerator.load(modules()) == {}
        assert not accelerator.run(inside.platform)["operations"]
