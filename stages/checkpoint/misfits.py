"""Finds out whether a stage can compute with a checkpoint's weights, and returns the reason if it cannot. Possible
reasons are the quantisation of the weights, the GPU of the stage, and the number of the stage's ranks.

The statements about SGLang come from its sources (0.5.23, ``srt/layers/quantization``).
`tests/stages/checkpoint/test_misfits.py` checks the statements that need no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec import Struct

from omni_pipeline.contract.stage_fit import Share, TellMisfit
from stages.checkpoint import quantization
from stages.checkpoint.model_config import DecoderConfig, read
from stages.checkpoint.quantised_parts import misplaced
from stages.checkpoint.quantization import FLOATS, Form, Quantization, Sharing

# Marlin's expert kernels need widths that are multiples of this number. AWQ weights whose groups are smaller than this
# number may have other widths, because SGLang also has Triton kernels for AWQ.
_MARLIN_ROWS = 64

# Minimum compute capabilities of a GPU. Marlin's integer kernels need `_MARLIN_CAPABILITY`. FP8 experts (Triton or
# CUTLASS kernels) need `_FP8_CAPABILITY`.
_MARLIN_CAPABILITY = (8, 0)
_FP8_CAPABILITY = (8, 9)


class _Width(Struct, frozen=True):
    """A width of the model, such as its number of attention heads. Each rank gets an equal share of the width.

    Attributes:
        unit: Each rank's share must be a multiple of this number.
    """

    name: str
    size: int
    unit: int = 1


def thinker(share: Share) -> str | None:
    """The reason why the stage thinker cannot compute with its weights; None if it can."""
    return _decoder(share, "thinker", read(share.config).thinker_config.text_config)


def talker(share: Share) -> str | None:
    """The reason why the stage talker_ar cannot compute with its weights; None if it can."""
    config = read(share.config).talker_config
    return None if config is None else _decoder(share, "talker", config.text_config)


def plain(prefix: str) -> TellMisfit:
    """Returns the check for a stage whose weights (the tensors under `prefix`) must not be quantised."""

    def misfit(share: Share) -> str | None:
        held = (name for name in share.tensors if name.startswith(prefix))
        name = next(filter(quantization.is_quantised, held), None)
        return name and f"{name} is quantised, but only the decoders of thinker and talker may be quantised"

    return misfit


def _decoder(share: Share, part: str, decoder: DecoderConfig) -> str | None:
    found = quantization.read(share.config, part)
    reasons = (
        misplaced(found, part, share.tensors),
        _unable(found, share) if found is not None and share.device == "cuda" else None,
        *_uneven(share, decoder, found if share.device == "cuda" else None),
    )
    return next((reason for reason in reasons if reason is not None), None)


def _unable(found: Quantization, share: Share) -> str | None:
    """The reason why SGLang cannot compute with weights in this format on this GPU; None if it can."""
    floats = found.form in FLOATS
    least = _FP8_CAPABILITY if floats else _MARLIN_CAPABILITY
    if share.capability is not None and share.capability < least:
        have, need = (".".join(map(str, capability)) for capability in (share.capability, least))
        return f"experts in {found.title} need compute capability {need}, but this GPU has {have}"
    if floats:
        return None
    if found.sharing is Sharing.GROUP and found.group not in (32, 64, 128):
        return f"SGLang's kernels support only the group sizes 32, 64 and 128, not {found.group} ({found.title})"
    if found.form is Form.AWQ:
        return None
    if not found.symmetric:
        return (
            f"SGLang has no kernels for experts in {found.title} with zero points; use a symmetric checkpoint, or AWQ"
        )
    if share.ranks > 1 and (found.form is Form.GPTQ or found.reordered):
        return (
            f"with several ranks, SGLang uses wrong scales for experts in {found.title}"
            f"{' with activation order' if found.reordered else ''}"
        )
    return None


def _uneven(share: Share, decoder: DecoderConfig, found: Quantization | None) -> Iterator[str]:
    for width in _widths(share.ranks, decoder, found):
        part = width.size / share.ranks
        if part % width.unit:
            rest = "" if part == int(part) else " (not a whole number)"
            shared = f", so each rank would get {part:g}{rest}" if share.ranks > 1 else ""
            unit = f", which is not a multiple of {width.unit} ({found.title})" if found and width.unit > 1 else ""
            yield f"{width.name} is {width.size}{shared}{unit}"


def _widths(ranks: int, decoder: DecoderConfig, found: Quantization | None) -> Iterator[_Width]:
    yield _Width("num_attention_heads", decoder.num_attention_heads)
    if found is None:
        yield _Width("moe_intermediate_size", decoder.moe_intermediate_size)
        return
    if found.sharing is Sharing.BLOCK:
        both = math.lcm(*found.block)
        outputs = inputs = experts = both
    else:
        outputs, inputs = 1, found.group or 1
        experts = inputs if found.form in (*FLOATS, Form.AWQ) else math.lcm(inputs, _MARLIN_ROWS)
    yield _Width("moe_intermediate_size", decoder.moe_intermediate_size, experts)
    yield _Width("num_attention_heads · head_dim", decoder.query_width, math.lcm(outputs, inputs))
    # If there are fewer key heads than ranks, SGLang assigns the same head to several ranks.
    yield _Width(
        "num_key_value_heads · head_dim", max(decoder.num_key_value_heads, ranks) * decoder.head_width, outputs
    )
