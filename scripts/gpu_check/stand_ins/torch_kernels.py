"""Implements in torch the SGLang kernels that our models call, with the arguments and side effects of the real kernels.

The functions write where the real kernels write: `fused_add_rmsnorm` to both of its inputs, `qknorm` to its input. They
never wait for the device, and never make a tensor whose size depends on values. So decode steps can be captured as CUDA
graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None, **_: object) -> Tensor:
    """Replaces `sgl_kernel.rmsnorm`."""
    result = _normalised(x.float(), weight, eps).to(x.dtype)
    return result if out is None else out.copy_(result)


def fused_add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, *_: object, **__: object) -> None:
    """Replaces `sgl_kernel.fused_add_rmsnorm`. Writes the sum to `residual`, and the normalised sum to `x`."""
    total = x.float() + residual.float()
    residual.copy_(total)
    x.copy_(_normalised(total, weight, eps))


def qknorm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> None:
    """Normalise each head of q and k in place."""
    q.copy_(_normalised(q.float(), q_weight, eps))
    k.copy_(_normalised(k.float(), k_weight, eps))


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def silu_and_mul(x: Tensor, out: Tensor) -> Tensor:
    """Replaces `sgl_kernel.silu_and_mul`."""
    gate, up = x.float().chunk(2, -1)
    return out.copy_(functional.silu(gate) * up)


def run_activation(x: Tensor, out: Tensor, name: str) -> None:
    """The gated activation with this name."""
    if name != "silu":
        raise NotImplementedError(f"these replacement kernels compute only the activation 'silu', not {name!r}")
    silu_and_mul(x, out)


def run_activation_filtered(x: Tensor, out: Tensor, _experts: Tensor, _step: int, name: str) -> None:
    """A gated activation of the rows that have an expert. This function also computes the rows without an expert. Their
    results are never read.
    """
    run_activation(x, out, name)


def run_activation_sorted_filtered(
    x: Tensor, out: Tensor, _experts: Tensor, _step: int, _places: Tensor, _total: Tensor, _valid: int, name: str
) -> None:
    """A gated activation of rows that are sorted into blocks, each for one expert. This function computes all rows."""
    run_activation(x, out, name)


def moe_sum_reduce(x: Tensor, out: Tensor, factor: float) -> None:
    """Write the sum over the experts of `x` [tokens, experts, hidden], times `factor`, to `out`."""
    out.copy_(x.float().sum(1) * factor)


def moe_align_block_size(
    topk_ids: Tensor,
    buckets: int,
    block_size: int,
    sorted_ids: Tensor,
    expert_ids: Tensor,
    padded_total: Tensor,
    _workspace: Tensor,
    _pad: bool = False,
    *_: object,
) -> None:
    """Sort the indices of `topk_ids` by expert, and pad the indices of each expert to whole blocks.

    Args:
        buckets: Number of experts plus one; the first bucket is for ids of -1.
        sorted_ids: Receives the indices. A padding entry contains the total number of indices.
        expert_ids: Receives the expert of each block.
        padded_total: Receives the used length of `sorted_ids`.
    """
    bucket = topk_ids.flatten().long() + 1
    count = len(bucket)
    sizes = torch.zeros(buckets, dtype=torch.int64, device=bucket.device).scatter_add_(
        0, bucket, torch.ones_like(bucket)
    )
    padded = (sizes + block_size - 1) // block_size * block_size
    ends = padded.cumsum(0)
    order = bucket.argsort(stable=True)
    owner = bucket[order]
    rank = torch.arange(count, device=bucket.device) - (sizes.cumsum(0) - sizes)[owner]
    sorted_ids.fill_(count).scatter_(0, (ends - padded)[owner] + rank, order.to(sorted_ids.dtype))
    blocks = torch.arange(len(expert_ids), device=bucket.device) * block_size
    expert_ids.copy_((torch.searchsorted(ends, blocks, right=True) - 1).clamp_(max=buckets - 2))
    padded_total[:1].copy_(ends[-1:])


def store_cache(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, places: Tensor, _limit: int = 0, skipped: int = 0
) -> None:
    """Store keys and values in the KV cache, except for rows whose place in the cache is `skipped`. These rows are
    padding.
    """
    kept = (places == skipped)[:, None]
    index = places.long()
    for new, cache in ((k, k_cache), (v, v_cache)):
        cache.index_copy_(0, index, torch.where(kept, cache[index], new))


def clamp_position(out: Tensor, lengths: Tensor) -> None:
    """Positions of the sequences' last tokens."""
    out.copy_((lengths - 1).clamp_(min=0))
