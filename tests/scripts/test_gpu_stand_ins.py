"""The stand-ins for SGLang's compiled kernels give the same results as the kernels. If a kernel works in place, so does
the stand-in.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check.stand_ins import install, torch_kernels
from torch.nn import functional

EPSILON = 1e-6


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_sum_is_left_in_the_residual_and_its_norm_in_the_input() -> None:
    x, residual, weight = draw(5, 64), draw(5, 64, seed=1), draw(64, seed=2)
    total = x + residual
    torch_kernels.fused_add_rmsnorm(x, residual, weight, EPSILON)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(x, functional.rms_norm(total, (64,), weight, EPSILON))


def test_a_norm_leaves_its_input_alone_and_takes_a_place_for_its_result() -> None:
    x, weight = draw(5, 64, dtype=torch.bfloat16), draw(64, seed=2, dtype=torch.bfloat16)
    before, out = x.clone(), torch.empty_like(x)
    result = torch_kernels.rmsnorm(x, weight, EPSILON, out)
    assert torch.equal(x, before)
    assert result is out
    exact = functional.rms_norm(x.float(), (64,), weight.float(), EPSILON)
    torch.testing.assert_close(out.float(), exact, rtol=0.01, atol=0.01)


def test_heads_are_normalised_in_place() -> None:
    q, k, weight = draw(3, 4, 64), draw(3, 2, 64, seed=1), draw(64, seed=2)
    wanted = [functional.rms_norm(part, (64,), weight, EPSILON) for part in (q, k)]
    torch_kernels.qknorm(q, k, weight, weight, EPSILON)
    torch.testing.assert_close([q, k], wanted)


def test_a_gate_and_the_sum_of_experts() -> None:
    x, out = draw(5, 64), torch.empty(5, 32)
    torch_kernels.run_activation(x, out, "silu")
    torch.testing.assert_close(out, functional.silu(x[:, :32]) * x[:, 32:])
    kernels: list[tuple[Any, tuple[int, ...]]] = [
        (torch_kernels.run_activation_filtered, ()),
        (torch_kernels.run_activation_sorted_filtered, (0, 0, 9)),
    ]
    for filtered, more in kernels:
        again = torch.empty(5, 32)
        filtered(x, again, torch.zeros(5), 1, *more, "silu")
        assert torch.equal(again, out)
    parts, total = draw(5, 3, 8), torch.empty(5, 8)
    torch_kernels.moe_sum_reduce(parts, total, 2.0)
    torch.testing.assert_close(total, 2 * parts.sum(1))
    with pytest.raises(NotImplementedError, match="gelu"):
        torch_kernels.run_activation(x, out, "gelu")


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_places_are_sorted_by_expert_in_whole_blocks(tokens: int, block: int) -> None:
    """A place is the index of a pair of a token and one of its experts. In the result, which the experts' kernel reads,
    each block belongs to one expert, and each place is in exactly one block.
    """
    experts, each = 6, 3
    generator = torch.Generator().manual_seed(tokens)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:each] for _ in range(tokens)]).to(torch.int32)
    room = -(-(chosen.numel() + (experts + 1) * (block - 1)) // 4) * 4
    places, owners = torch.full((room,), -7, dtype=torch.int32), torch.full((-(-room // block),), -7, dtype=torch.int32)
    total = torch.zeros(1, dtype=torch.int32)
    torch_kernels.moe_align_block_size(chosen, experts + 1, block, places, owners, total, torch.empty(0), True)
    assert total.item() % block == 0
    seen = []
    for index, expert in enumerate(owners[: total.item() // block].tolist()):
        for place in places[index * block : (index + 1) * block].tolist():
            if place < chosen.numel():
                assert chosen.flatten()[place] == expert
                seen.append(place)
            else:
                assert place == chosen.numel()
    assert sorted(seen) == list(range(chosen.numel()))


def test_padding_is_kept_out_of_the_cache() -> None:
    keys, values = torch.zeros(6, 4), torch.zeros(6, 4)
    k, v = draw(4, 4), draw(4, 4, seed=1)
    torch_kernels.store_cache(k, v, keys, values, torch.tensor([3, 0, 5, 0], dtype=torch.int32), 6, 0)
    assert torch.equal(keys[[3, 5]], k[[0, 2]])
    assert torch.equal(values[[3, 5]], v[[0, 2]])
    assert not keys[[0, 1, 2, 4]].any()


def test_positions_are_one_less_and_not_below_zero() -> None:
    out = torch.empty(3, dtype=torch.int64)
    torch_kernels.clamp_position(out, torch.tensor([0, 1, 9]))
    assert out.tolist() == [0, 0, 8]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the stand-in for `sgl_kernel`, and restore the previous modules afterwards."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "sgl_kernel"}
    install.package()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "sgl_kernel"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("package")
def test_the_package_has_every_name_and_says_which_of_them_stand_in_for_nothing() -> None:
    kernels = importlib.import_module("sgl_kernel")
    assert kernels.fused_add_rmsnorm is torch_kernels.fused_add_rmsnorm
    types = importlib.import_module("sgl_kernel.scalar_type")
    assert {types.scalar_types.uint4b8: 1}
    with pytest.raises(NotImplementedError, match=r"no torch function replaces sgl_kernel\.kvcacheio\.transfer"):
        importlib.import_module("sgl_kernel.kvcacheio").transfer()
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.gemma_rmsnorm"):
        kernels.gemma_rmsnorm(1)


WRAPPERS = """
import torch
from stages.sglang_engine import environment
environment.prepare()
from gpu_check.stand_ins import install
install.package()
install.compiled()
from sglang.kernels.ops.attention.clamp_position import clamp_position_cuda
from sglang.kernels.ops.kvcache.kvcache import can_use_store_cache
from sglang.kernels.ops.layernorm import norm
from sglang.kernels.ops.moe import moe_align_block_size

assert norm.can_use_fused_inplace_qknorm(128, torch.bfloat16) and can_use_store_cache(256)
q, k, weight = torch.randn(3, 4, 128), torch.randn(3, 2, 128), torch.ones(128)
norm.fused_inplace_qknorm(q, k, weight, weight, 1e-6, head_dim=128)
torch.testing.assert_close(q.square().mean(-1), torch.ones(3, 4))
assert clamp_position_cuda(torch.tensor([0, 4])).tolist() == [0, 3]
places, owners, total = (torch.zeros(size, dtype=torch.int32) for size in (20, 5, 1))
chosen = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32)
moe_align_block_size(chosen, 4, 4, places, owners, total, torch.zeros(6, dtype=torch.int32), True, False)
assert (total.item(), owners[:3].tolist()) == (12, [0, 1, 2])
"""


def test_sglangs_own_wrappers_find_the_stand_ins() -> None:
    """The wrappers get SGLang's arguments. They run in a separate process, since SGLang keeps the kernels it found."""
    scripts = Path(__file__).parents[2] / "scripts"
    done = subprocess.run(
        [sys.executable, "-c", WRAPPERS], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{scripts}{os.pathsep}{scripts.parent}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
