"""Reads a checkpoint's ``quantization_config``: the format of the stored weights, and the names of the quantised
weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from msgspec import Struct

from omni_pipeline.errors import StartupError

PARTS = ("thinker", "talker")
"""The parts of the model whose decoders may be quantised."""

_LINEAR = re.compile(r"(thinker|talker)\.model\.layers\.\d+\..*_proj")

# Endings of tensor names that only quantised weights have.
_ENDINGS = tuple(
    f".{name}"
    for name in (
        *("qweight", "qzeros", "scales", "g_idx"),
        *("weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx", "weight_shape"),
    )
)

PLACES = ("quantization_config", "compression_config")
"""Keys under which a configuration may store the quantisation. If several of these keys are present, the first one
counts.
"""

# Names of quantisation methods that are always refused, each with the reason.
_REFUSED = {
    "bitsandbytes": "its weights are unpacked at each use, and this server does not support this unpacking",
    "gguf": "it is a separate file format, and this server reads only safetensors files",
    "mxfp4": "its 4-bit floats need a GPU and kernels that are not supported",
    "mxfp8": "its scales, one for 32 numbers, need a GPU and kernels that are not supported",
    "modelopt": "NVIDIA ModelOpt writes several formats, and none of them is supported",
    "hqq": "SGLang cannot read it",
    "quanto": "SGLang cannot read it",
    "torchao": "SGLang can quantise a checkpoint to this form, but cannot read checkpoints in this form",
}


class Form(Enum):
    """A format in which quantised weights are stored."""

    FP8 = "fp8"
    AWQ = "awq"
    GPTQ = "gptq"
    PACKED = "compressed-tensors pack-quantized"
    FLOAT = "compressed-tensors float-quantized"


class Sharing(Enum):
    """Which numbers of a weight share one scale."""

    TENSOR = "all"
    CHANNEL = "the numbers of one output"
    GROUP = "the numbers of some neighbouring inputs of one output"
    BLOCK = "a rectangle of outputs and inputs"


FLOATS = (Form.FP8, Form.FLOAT)


class Names(Struct, frozen=True):
    """A set of modules. As in the quantisation formats, the modules are described by names and by patterns. The names
    are kept in sets, because a checkpoint may list thousands of modules, and every layer is looked up in the sets.

    Attributes:
        ends: Ends of names. An entry matches a module if the module's name equals the entry, or ends with a dot and the
            entry.
        runs: Parts of names. A part matches a module if the part occurs anywhere in the module's name. The part must
            begin at the beginning of the name or after a dot, and end before a dot or at the end of the name.
        patterns: Regular expressions that match a name from its beginning.
    """

    ends: frozenset[str] = frozenset()
    runs: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    def has(self, module: str) -> bool:
        words = module.split(".")
        if self.ends and any(".".join(words[begin:]) in self.ends for begin in range(len(words))):
            return True
        if self.runs and any(
            ".".join(words[begin:end]) in self.runs
            for begin in range(len(words))
            for end in range(begin + 1, len(words) + 1)
        ):
            return True
        return any(re.match(pattern, module) for pattern in self.patterns)


class Quantization(Struct, frozen=True, kw_only=True):
    """The quantisation of some weights of one part.

    Attributes:
        part: ``thinker`` or ``talker``.
        form: The format in which the weights are stored.
        bits: Number of bits of one stored number.
        sharing: Which numbers share a scale.
        group: The number of inputs in a group, if the numbers of a group share a scale.
        block: The numbers of outputs and inputs of a block, if the numbers of a block share a scale.
        symmetric: Whether zero is in the middle of the stored range. If not, every group has its own zero point.
        reordered: Whether a tensor lists the group of each input. If not, neighbouring inputs form a group.
        lowered_zeros: Whether the stored zero points are too low by 1, as AutoGPTQ writes them.
        static_inputs: Whether scales of activations are stored too.
        left: The modules that stay unquantised.
        only: The modules that are quantised; None means all modules except those in `left`.
    """

    part: str
    form: Form
    bits: int
    sharing: Sharing
    group: int = 0
    block: tuple[int, int] = (0, 0)
    symmetric: bool = True
    reordered: bool = False
    lowered_zeros: bool = False
    static_inputs: bool = False
    left: Names = Names()
    only: Names | None = None

    @property
    def title(self) -> str:
        """The quantisation in words, for error messages."""
        size = {Sharing.GROUP: f", groups of {self.group}", Sharing.BLOCK: f", blocks of {self.block}"}
        return f"{self.form.value} with {self.bits} bits{size.get(self.sharing, '')}"

    def covers(self, module: str) -> bool:
        """Whether a linear layer of the checkpoint is quantised, according to the configuration.

        Args:
            module: The layer's name, such as ``thinker.model.layers.0.self_attn.q_proj``.
        """
        if not _LINEAR.fullmatch(module) or not module.startswith(f"{self.part}."):
            return False
        # If the configuration is in the section of one part, it may contain module names without the part's prefix.
        names = (module, module.removeprefix(f"{self.part}."))
        return not any(map(self.left.has, names)) and (self.only is None or any(map(self.only.has, names)))


def said(config: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a part, unchanged from the file; None if the part has no such entry.

    The entry may be at the top level of ``config.json`` or in the part's own section.
    """
    own = config.get(f"{part}_config") or {}
    sections = (config, own, own.get("text_config") or {})
    return next((section[place] for section in sections for place in PLACES if section.get(place)), None)


def is_quantised(tensor: str) -> bool:
    """Whether a tensor's name shows that it belongs to a quantised weight."""
    return tensor.endswith(_ENDINGS)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the same model with weights that are not quantised."""
    sections = {}
    for part in PARTS:
        own = config.get(f"{part}_config")
        if own:
            sections[f"{part}_config"] = _without(own, text_config=_without(own.get("text_config") or {}))
    return _without(config, **sections)


def _without(section: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in PLACES} | changed


def read(config: Mapping[str, Any], part: str) -> Quantization | None:
    """The quantisation of a part's weights; None if the weights are not quantised.

    Args:
        config: A parsed ``config.json``.

    Raises:
        StartupError: The server cannot use the format of the weights, or the configuration does not describe this
            format.
    """
    source = said(config, part)
    if source is None:
        return None
    try:
        return _READERS[_method(source)](source, part)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise StartupError(f"config.json: quantization_config cannot be read: {error!r}") from error


def _method(source: Mapping[str, Any]) -> str:
    method = str(source.get("quant_method", "")).lower().replace("_", "-")
    if method not in _READERS:
        reason = next((reason for name, reason in _REFUSED.items() if method.startswith(name)), None)
        raise _refusal(f"quant_method {method!r}", reason or f"use one of {', '.join(_READERS)}")
    return method


def _fp8(source: Mapping[str, Any], part: str) -> Quantization:
    block = source.get("weight_block_size")
    scheme = source.get("activation_scheme", "dynamic")
    if block and scheme != "dynamic":
        raise _refusal(
            f"activation_scheme {scheme!r} with weight_block_size",
            "weights with weight_block_size need the activation_scheme 'dynamic'",
        )
    left = source.get("ignored_layers") or source.get("modules_to_not_convert") or ()
    return Quantization(
        part=part,
        form=Form.FP8,
        bits=8,
        sharing=Sharing.BLOCK if block else Sharing.TENSOR,
        block=(int(block[0]), int(block[1])) if block else (0, 0),
        static_inputs=scheme == "static",
        left=Names(runs=frozenset(name.strip(".") for name in left)),
    )


def _awq(source: Mapping[str, Any], part: str) -> Quantization:
    bits, group = int(source.get("bits", source.get("w_bit", 4))), source.get("group_size", source.get("q_group_size"))
    if bits != 4:
        raise _refusal(f"AWQ with {bits} bits", "SGLang has AWQ kernels for 4 bits only")
    if str(source.get("version", "gemm")).lower() != "gemm":
        raise _refusal(f"AWQ version {source['version']!r}", "SGLang reads only the version 'gemm'")
    if not source.get("zero_point", True):
        raise _refusal("AWQ with 'zero_point': false", "SGLang has kernels only for AWQ with zero points")
    return Quantization(
        part=part,
        form=Form.AWQ,
        bits=bits,
        sharing=Sharing.GROUP,
        group=_group(group),
        symmetric=False,
        left=Names(patterns=_anywhere(source.get("modules_to_not_convert"))),
    )


def _gptq(source: Mapping[str, Any], part: str) -> Quantization:
    group = int(source["group_size"])
    return Quantization(
        part=part,
        form=Form.GPTQ,
        bits=_four_or_eight(source["bits"], "GPTQ"),
        sharing=Sharing.CHANNEL if group == -1 else Sharing.GROUP,
        group=0 if group == -1 else _group(group),
        symmetric=bool(source.get("sym", True)),
        reordered=bool(source.get("desc_act", False)) and group != -1,
        lowered_zeros=source.get("checkpoint_format", source.get("format", "gptq")) != "gptq_v2",
        left=Names(patterns=(*_anywhere(source.get("modules_to_not_convert")), *_dynamic(source.get("dynamic") or {}))),
        only=_blocks(source.get("block_name_to_quantize")),
    )


def _dynamic(rules: Mapping[str, Any]) -> Iterator[str]:
    """Patterns of the modules that GPTQModel's rules exclude from quantisation. A rule that changes the format of a
    module is refused, because all quantised modules must have the same format.
    """
    for rule, changed in rules.items():
        if rule.startswith("-:"):
            yield rule.removeprefix("-:")
        elif changed:
            raise _refusal(f"dynamic rule {rule!r}", "all quantised layers must be stored in the same way")


def _auto_round(source: Mapping[str, Any], part: str) -> Quantization:
    """The quantisation of a checkpoint that AutoRound has written. AutoRound packs the weights in the same way as
    AutoGPTQ or AutoAWQ. The configuration lists the layers that are not quantised.
    """
    packing = source.get("packing_format", "auto_round:auto_gptq")
    if packing not in ("auto_round:auto_gptq", "auto_round:auto_awq") or source.get("data_type", "int") != "int":
        raise _refusal(f"AutoRound packing_format {packing!r}", "use 'auto_round:auto_gptq' or 'auto_round:auto_awq'")
    bits = _four_or_eight(source["bits"], "AutoRound")
    if packing.endswith("awq") and (bits != 4 or source["sym"]):
        raise _refusal(
            f"{packing} with {bits} bits, sym {source['sym']}", "AWQ's kernels support only 4 bits with zero points"
        )
    names: list[str] = []
    patterns: list[str] = []
    for name, changed in (source.get("extra_config") or {}).items():
        if changed.get("bits", bits) < 16 and {**source, **changed} != {**source}:
            raise _refusal(f"extra_config of {name!r}", "all quantised layers must be stored in the same way")
        if changed.get("bits", bits) >= 16:
            (patterns if re.search(r"[*+?^$()\[\]{}|\\]", name) else names).append(name)
    return Quantization(
        part=part,
        form=Form.GPTQ if packing.endswith("gptq") else Form.AWQ,
        bits=bits,
        sharing=Sharing.CHANNEL if source["group_size"] == -1 else Sharing.GROUP,
        group=0 if source["group_size"] == -1 else _group(source["group_size"]),
        symmetric=bool(source["sym"]),
        lowered_zeros=True,
        left=Names(ends=frozenset(names), patterns=tuple(rf"(?:{pattern})\Z" for pattern in patterns)),
        only=_blocks(source.get("block_name_to_quantize") or source.get("to_quant_block_names")),
    )


def _compressed(source: Mapping[str, Any], part: str) -> Quantization:
    groups = list(source["config_groups"].values())
    if len(groups) != 1:
        raise _refusal(f"{len(groups)} config_groups", "all quantised layers must be stored in the same way")
    weights, form = groups[0]["weights"], groups[0].get("format") or source.get("format")
    kinds = {"pack-quantized": (Form.PACKED, "int"), "float-quantized": (Form.FLOAT, "float")}
    kinds["naive-quantized"] = kinds["float-quantized"]
    if source.get("sparsity_config"):
        raise _refusal("a sparsity_config", "this server does not read sparse weights")
    if form not in kinds or weights.get("type", "int") != kinds[form][1]:
        raise _refusal(
            f"compressed-tensors weights with the format {form!r} and the type {weights.get('type', 'int')!r}",
            "SGLang's experts accept the format 'pack-quantized' only with the type 'int', and the formats "
            "'float-quantized' and 'naive-quantized' only with the type 'float' and 8 bits",
        )
    inputs = groups[0].get("input_activations")
    if kinds[form][0] is Form.PACKED and inputs:
        raise _refusal(
            "input_activations with 'pack-quantized'", "SGLang does not quantise activations for experts in this format"
        )
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    sharing = Sharing[strategy.upper()]
    block = weights.get("block_structure")
    bits = int(weights["num_bits"])
    return Quantization(
        part=part,
        form=kinds[form][0],
        bits=_four_or_eight(bits, form) if kinds[form][0] is Form.PACKED else _eight(bits),
        sharing=sharing,
        group=_group(weights["group_size"]) if sharing is Sharing.GROUP else 0,
        block=(int(block[0]), int(block[1])) if sharing is Sharing.BLOCK else (0, 0),
        symmetric=bool(weights.get("symmetric", True)),
        reordered=weights.get("actorder") in ("group", "dynamic", True),
        static_inputs=bool(inputs) and inputs.get("dynamic") is False,
        left=_compressed_names(source.get("ignore") or ()),
        only=None if "Linear" in groups[0]["targets"] else _compressed_names(groups[0]["targets"]),
    )


def _compressed_names(names: Iterable[str]) -> Names:
    patterns = tuple(name.removeprefix("re:") for name in names if name.startswith("re:"))
    return Names(ends=frozenset(name for name in names if not name.startswith("re:")), patterns=patterns)


def _anywhere(names: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(rf".*{re.escape(name)}" for name in names or ())


def _blocks(names: str | Iterable[str] | None) -> Names | None:
    listed = names.split(",") if isinstance(names, str) else names
    return Names(patterns=tuple(rf"{re.escape(name.strip())}\." for name in listed)) if listed else None


def _group(size: Any) -> int:
    if not isinstance(size, int) or size <= 0:
        raise _refusal(f"group_size {size!r}", "it must be a positive whole number")
    return size


def _four_or_eight(bits: Any, form: str) -> int:
    if bits not in (4, 8):
        raise _refusal(f"{form} with {bits} bits", "SGLang has kernels for experts of 4 and 8 bits only")
    return int(bits)


def _eight(bits: int) -> int:
    if bits != 8:
        raise _refusal(f"floating-point weights with {bits} bits", "only 8 bits are supported")
    return bits


def _refusal(what: str, reason: str) -> StartupError:
    return StartupError(f"config.json: quantization_config specifies {what}, which cannot be served: {reason}.")


_READERS = {
    "fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "compressed-tensors": _compressed,
}
