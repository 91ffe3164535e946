"""Turns quantised weights into plain float32 weights while a checkpoint is being read.

On GPUs, SGLang multiplies with the quantised weights directly. On CPUs, SGLang needs kernels for this multiplication,
but no package registry has these kernels. So on a CPU, the model is built for unquantised weights, and this module
computes these weights. They equal the weights with which a GPU computes. But a GPU may also round the activations, so
results may differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from omni_pipeline.errors import StartupError
from stages.checkpoint.quantised_tensors import BODIES, needed, scale_name
from stages.checkpoint.quantization import FLOATS, Form, Quantization, is_quantised

Tensors = Mapping[str, torch.Tensor]

# AutoAWQ packs eight neighbouring numbers into one integer in this order, from the lowest four bits up.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def plain_weights(
    weights: Iterable[tuple[str, torch.Tensor]], quantization: Quantization
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a checkpoint. The tensors of each quantised weight are replaced by one unquantised float32
    weight.

    Raises:
        StartupError: A weight lacks a tensor that is needed to compute it.
    """
    wanted = needed(quantization)
    waiting: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in weights:
        module, _, suffix = name.rpartition(".")
        if not (is_quantised(name) or suffix == "input_scale" or (suffix == "weight" and tensor.dtype.itemsize == 1)):
            yield name, tensor
            continue
        if suffix in wanted:
            waiting[module][suffix] = tensor
            if len(waiting[module]) == len(wanted):
                yield f"{module}.weight", expand(waiting.pop(module), quantization)
    for module, tensors in waiting.items():
        missing = min(wanted - tensors.keys())
        raise StartupError(f"the checkpoint lacks {module}.{missing}, which is needed to compute the weight "
                           f"({quantization.title}); download the checkpoint again")  # fmt: skip


def expand(tensors: Tensors, quantization: Quantization) -> torch.Tensor:
    """Computes a weight, float32 [outputs, inputs], from all the tensors that `quantised_tensors.needed` lists."""
    scales = tensors[scale_name(quantization)].float()
    if quantization.form in FLOATS:
        weight = tensors[BODIES[quantization.form]].float()
        return weight * _spread(scales, quantization, weight.shape)
    if quantization.form is Form.PACKED:
        return _packed(tensors, scales, quantization)
    return _by_inputs(tensors, scales, quantization).t().contiguous()


def _spread(scales: torch.Tensor, quantization: Quantization, shape: torch.Size) -> torch.Tensor:
    """If each block of the weight has a scale, returns the scales in the shape of the weight: each scale is repeated
    for all numbers of its block. The last block may extend beyond the edge of the weight. If the weight is not divided
    into blocks, returns the scales unchanged.
    """
    outputs, inputs = quantization.block
    if not outputs:
        return scales
    return scales.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)[: shape[0], : shape[1]]


def _packed(tensors: Tensors, scales: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    bits = quantization.bits
    shape = torch.Size(tensors["weight_shape"].tolist())
    numbers = unpack_from_int32(tensors["weight_packed"], bits, shape).float()
    index = _group_index(tensors.get("weight_g_idx"), shape[1], scales.shape[1])
    if not quantization.symmetric:
        zeros = unpack_from_int32(tensors["weight_zero_point"], bits, scales.shape, packed_dim=0)
        numbers -= zeros.float()[:, index]
    return numbers * scales[:, index]


def _by_inputs(tensors: Tensors, scales: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """A weight [inputs, outputs]: AutoAWQ and AutoGPTQ store weights in this order."""
    awq = quantization.form is Form.AWQ
    bits = quantization.bits
    order = _AWQ_ORDER if awq else None
    numbers = _unpack(tensors["qweight"], bits, order) if awq else _unpack(tensors["qweight"].t(), bits).t()
    index = _group_index(tensors.get("g_idx") if quantization.reordered else None, len(numbers), len(scales))
    if quantization.symmetric:  # SGLang ignores zero points of symmetric weights
        return (numbers - 2 ** (bits - 1)) * scales[index]
    zeros = _unpack(tensors["qzeros"], bits, order) + (1 if quantization.lowered_zeros and not awq else 0)
    return (numbers - zeros[index]) * scales[index]


def _group_index(stored: torch.Tensor | None, inputs: int, groups: int) -> torch.Tensor:
    """The group of each input, int64 [inputs]."""
    return stored.long() if stored is not None else torch.arange(inputs) // (inputs // groups)


def _unpack(packed: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Unpacks unsigned numbers: from int32 [rows, words] to [rows, words · 32 / bits].

    Args:
        order: The index of each number of a word, from the lowest bits up; None if the indices ascend.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    numbers = (packed[..., None] >> shifts) & (2**bits - 1)
    if order is not None:
        numbers = numbers[..., torch.tensor(order).argsort()]
    return numbers.flatten(-2)
