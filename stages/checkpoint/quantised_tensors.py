"""Lists the tensors that a checkpoint stores for a quantised weight: their names, shapes and types. The names,
shapes and types depend on the format of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from stages.checkpoint.quantization import FLOATS, Form, Quantization, Sharing

BODIES = {
    Form.FP8: "weight",
    Form.AWQ: "qweight",
    Form.GPTQ: "qweight",
    Form.PACKED: "weight_packed",
    Form.FLOAT: "weight",
}
"""For each format, the ending of the name of the tensor that contains the quantised numbers of a weight."""

Entry = tuple[str, tuple[int, ...], int]
"""The ending of a tensor's name, the tensor's shape, and the bytes of one element."""


def scale_name(quantization: Quantization) -> str:
    """The ending of the names of all tensors that contain scales."""
    if quantization.form in (Form.AWQ, Form.GPTQ):
        return "scales"
    return "weight_scale_inv" if quantization.form is Form.FP8 and quantization.block[0] else "weight_scale"


def needed(quantization: Quantization) -> frozenset[str]:
    """The endings of the names of all tensors that are needed to compute a weight."""
    names = {BODIES[quantization.form], scale_name(quantization)}
    packed = quantization.form is Form.PACKED
    if not quantization.symmetric:
        names.add("weight_zero_point" if packed else "qzeros")
    if quantization.reordered:
        names.add("weight_g_idx" if packed else "g_idx")
    return frozenset(names | ({"weight_shape"} if packed else set()))


def entries(quantization: Quantization, outputs: int, inputs: int, item_size: int) -> Iterator[Entry]:
    """The tensors that are stored in place of a quantised weight [outputs, inputs].

    Args:
        item_size: Bytes of one number of an unquantised weight.
    """
    if quantization.form in FLOATS:
        yield from _float(quantization, outputs, inputs, item_size)
        return
    words, groups = quantization.bits, _shared(inputs, quantization.group or inputs)
    if quantization.form is Form.PACKED:
        yield "weight_packed", (outputs, _words(inputs, words)), 4
        yield "weight_scale", (outputs, groups), item_size
        yield "weight_shape", (2,), 8
        if not quantization.symmetric:
            yield "weight_zero_point", (_words(outputs, words), groups), 4
        if quantization.reordered:
            yield "weight_g_idx", (inputs,), 4
        return
    awq = quantization.form is Form.AWQ
    yield "qweight", (inputs, _words(outputs, words)) if awq else (_words(inputs, words), outputs), 4
    yield "qzeros", (groups, _words(outputs, words)), 4
    yield "scales", (groups, outputs), 2
    if not awq:
        yield "g_idx", (inputs,), 4


def _float(quantization: Quantization, outputs: int, inputs: int, item_size: int) -> Iterator[Entry]:
    own = quantization.form is Form.FP8
    yield "weight", (outputs, inputs), 1
    scales = {
        Sharing.TENSOR: () if own else (1,),
        Sharing.CHANNEL: (outputs, 1),
        Sharing.BLOCK: tuple(map(_shared, (outputs, inputs), quantization.block)) if quantization.block[0] else (),
    }
    yield scale_name(quantization), scales[quantization.sharing], 4 if own else item_size
    if quantization.static_inputs:
        yield "input_scale", () if own else (1,), 4 if own else item_size


def sizes(
    quantization: Quantization, module: str, shape: tuple[int, ...], item_size: int
) -> Iterator[tuple[str, tuple[int, int, bool]]]:
    """Yields a pair for each stored tensor of a quantised weight: the tensor's name and a tuple. The tuple contains the
    number of elements, the number of bytes, and whether the tensor keeps its type when it is loaded.
    """
    outputs, inputs = shape
    for name, own, size in entries(quantization, outputs, inputs, item_size):
        elements = math.prod(own)
        fixed = name in (BODIES[quantization.form], "qzeros", "weight_zero_point", "weight_shape") or "g_idx" in name
        yield f"{module}.{name}", (elements, elements * size, fixed)


def _words(numbers: int, bits: int) -> int:
    """Number of 32-bit integers that are needed to pack `numbers` values of `bits` bits each."""
    return -(-numbers * bits // 32)


def _shared(numbers: int, sharing: int) -> int:
    return -(-numbers // sharing)
