"""Lets a checkpoint with FP8 weights run on a CPU: they are loaded as such, and then multiplied by their scales.

SGLang has FP8 products for GPUs, and for CPUs by kernels that no registry has. What it does before that, it does here
too: finding out which layers are quantised, making room for weights and scales, dividing them among ranks. The products
are then those of the numbers that the FP8 ones stand for. A GPU also rounds what is multiplied by them.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod, Fp8MoEMethod
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod, UnquantizedLinearMethod
from torch.nn import Parameter

from omni_pipeline.errors import StartupError


def expand(weight: torch.Tensor, scale: torch.Tensor, block: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The numbers that FP8 ones stand for.

    Args:
        weight: float8 [..., rows, columns].
        scale: float32 [..., blocks of rows, blocks of columns], the last ones cut off at the edge.
        block: Rows and columns of a block.
    """
    scales = scale.repeat_interleave(block[0], dim=-2)[..., : weight.shape[-2], :]
    scales = scales.repeat_interleave(block[1], dim=-1)[..., : weight.shape[-1]]
    return (weight.to(torch.float32) * scales).to(dtype)


def expand_linear(method: Fp8LinearMethod, layer: Any) -> None:
    """In place of `Fp8LinearMethod.process_weights_after_loading`."""
    _expand(layer, "weight", _block(method.quant_config), layer.orig_dtype)
    layer.quant_method = UnquantizedLinearMethod()
    layer.quant_method.process_weights_after_loading(layer)


def expand_experts(method: Fp8MoEMethod, layer: Any) -> None:
    """In place of `Fp8MoEMethod.process_weights_after_loading`."""
    for name in ("w13_weight", "w2_weight"):
        _expand(
            layer, name, _block(method.quant_config), layer.moe_runner_config.params_dtype or torch.get_default_dtype()
        )
    layer.quant_method = UnquantizedFusedMoEMethod()
    layer.quant_method.create_moe_runner(layer, layer.moe_runner_config)
    layer.quant_method.process_weights_after_loading(layer)


def install() -> None:
    """Put them in place."""
    types = [*Fp8Config.get_supported_act_dtypes(), torch.float32]
    Fp8Config.get_supported_act_dtypes = classmethod(lambda _: types)
    Fp8LinearMethod.process_weights_after_loading = expand_linear
    Fp8MoEMethod.process_weights_after_loading = expand_experts


def _block(config: Fp8Config) -> list[int]:
    if config.weight_block_size is None:
        raise StartupError("on a CPU, FP8 weights need a scale for each block (weight_block_size)")
    return list(config.weight_block_size)


def _expand(layer: Any, name: str, block: list[int], dtype: torch.dtype) -> None:
    scale = f"{name}_scale_inv"
    expanded = expand(getattr(layer, name).data, getattr(layer, scale).data, block, dtype)
    setattr(layer, name, Parameter(expanded, requires_grad=False))
    delattr(layer, scale)
