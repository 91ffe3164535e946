"""`CudaRules` finds a planted fault of each kind, and the error names the fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.cuda_rules import CudaRules, HostRead, TypeMix


@pytest.fixture
def rules() -> Iterator[CudaRules]:
    with CudaRules() as rules:
        yield rules


def rows(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(3, 4, dtype=dtype, device="cuda")


def places() -> torch.Tensor:
    return torch.tensor([2, 0], device="cuda")


@pytest.mark.parametrize(
    "fault",
    [
        lambda: rows() + torch.zeros(3, 4, dtype=torch.bfloat16),
        lambda: functional.linear(rows(), torch.zeros(5, 4, dtype=torch.bfloat16)),
        lambda: torch.cat((rows(), torch.zeros(1, 4, dtype=torch.bfloat16))),
        lambda: rows().index_copy_(0, torch.tensor([0]), rows()[:1]),
        lambda: torch.zeros(9, 4).index_select(0, places()),
    ],
)
def test_tensors_of_two_devices_do_not_meet(rules: CudaRules, fault: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="device"):
        fault()


@pytest.mark.parametrize(
    "fault",
    [
        lambda: places().max().item(),
        lambda: bool(places().any()),
        lambda: rows()[places() > 0],
        lambda: rows().masked_select(rows() > 0),
        lambda: places().nonzero(),
        lambda: places().repeat_interleave(places()),
        lambda: torch.bincount(places()),
        lambda: torch.equal(rows(), rows()),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_host_cannot_ask_for_what_only_the_device_knows(
    rules: CudaRules, fault: Callable[[], Any], inference: bool
) -> None:
    with torch.inference_mode(inference), pytest.raises(HostRead):
        fault()


@pytest.mark.parametrize(
    "fault",
    [
        lambda: rows() + rows(torch.float32),
        lambda: rows().mul_(rows(torch.float32)),
        lambda: torch.cat((rows(), rows(torch.float32))),
        lambda: torch.where(rows() > 0, rows(), rows(torch.float32)),
    ],
)
def test_types_do_not_meet_unless_that_is_allowed_where_they_do(rules: CudaRules, fault: Callable[[], Any]) -> None:
    with pytest.raises(TypeMix, match=r"bfloat16 and torch\.float32"):
        fault()


def scored() -> torch.Tensor:
    return rows() + rows(torch.float32)


def test_types_meet_where_that_is_allowed() -> None:
    with CudaRules([f"{__name__}:scored"]):
        assert scored().dtype == torch.float32


def fetch() -> None:
    rows().cpu()
    places().tolist()
    torch.zeros(3, 4, dtype=torch.bfloat16).copy_(rows())


def send() -> None:
    torch.zeros(2).to("cuda")
    rows().copy_(torch.zeros(4))
    rows()[torch.tensor([0])]
    rows()[[0, 1]] = 1.0


def test_copies_are_counted_by_the_function_that_makes_them(rules: CudaRules) -> None:
    fetch()
    assert rules.to_host == {f"{__name__}:fetch": 3}
    rules.forget()
    send()
    assert rules.to_device == {f"{__name__}:send": 4}
    assert not rules.to_host


@pytest.mark.parametrize("fault", [fetch, send, lambda: torch.tensor([1.0], device="cuda")])
def test_nothing_is_copied_while_a_graph_is_captured(rules: CudaRules, fault: Callable[[], Any]) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=torch.cuda.graph_pool_handle()):
        rows().add_(1)
        with pytest.raises(HostRead, match="captured"):
            fault()


def test_kernels_are_counted_and_views_are_not(rules: CudaRules) -> None:
    x = rows()
    rules.forget()
    with torch.inference_mode():
        functional.linear(x[:2].view(2, 4), x).t().softmax(-1)
    assert rules.kernels == {"mm": 1, "_softmax": 1}


def test_kernels_beyond_torch_are_held_to_the_same_rules(rules: CudaRules) -> None:
    rules.launch("norm", rows(), None)
    assert rules.kernels["norm"] == 1
    with pytest.raises(RuntimeError, match="norm was given a tensor on cpu"):
        rules.launch("norm", rows(), torch.zeros(4))
    with pytest.raises(TypeMix):
        rules.launch("norm", rows(), rows(torch.float32), alike=True)


def test_the_cpu_computes_as_ever(rules: CudaRules) -> None:
    assert (torch.arange(3) + 1).tolist() == [1, 2, 3]
    assert not rules.kernels
