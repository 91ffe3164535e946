"""Describes the quantised weights of one model of a checkpoint to SGLang, with the layer names of our model
definitions.

A checkpoint has one list of unquantised modules for all its parts. An entry of the list is a whole name, a part of a
name, or a regular expression. SGLang would compare this list with the module names of the model that it builds. But the
modules of this model have other names than the modules of the checkpoint. So the engine does not pass the checkpoint's
list to SGLang. Instead, it finds the unquantised layers from the checkpoint's tensors, and lists them by their names in
our model definition.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from omni_pipeline.errors import StartupError
from stages.checkpoint import quantization
from stages.checkpoint.quantised_parts import layers, misplaced, quantised_modules
from stages.checkpoint.quantization import FLOATS, Form, Quantization
from stages.checkpoint.weights import read_config, tensor_names

_PARTS = {"Qwen3OmniThinker": "thinker", "Qwen3OmniTalker": "talker"}

STORED = "stored_quantization"
"""If a model gets dequantised weights, its config has an attribute of this name. The attribute is the checkpoint's
``quantization_config``.
"""


def overrides(model_path: str, architecture: str, device: str) -> dict[str, Any]:
    """The changes that the config needs before SGLang reads it.

    Raises:
        StartupError: The weights are quantised in a way that cannot be served.
    """
    config, part = read_config(model_path), _PARTS[architecture]
    found = quantization.read(config, part)
    tensors = tensor_names(model_path, f"{part}.")
    reason = misplaced(found, part, tensors)
    if reason is not None:
        raise StartupError(f"{model_path}: {reason}")
    if found is None:
        return {}
    nothing = dict.fromkeys(quantization.PLACES)
    if device == "cpu":
        return {**nothing, STORED: quantization.said(config, part)}
    return {**nothing, "quantization_config": translated(found, quantization.said(config, part) or {}, tensors)}


def translated(found: Quantization, said: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any] | None:
    """The ``quantization_config`` for the model of one part; None if nothing in this part is quantised."""
    fused = layers(found.part, tensors)
    plain = {name: modules for name, modules in fused.items() if not quantised_modules(modules)}
    if len(plain) == len(fused):
        return None
    names = sorted(name.removeprefix(f"{found.part}.") for name in plain)
    single = sorted(module.removeprefix(f"{found.part}.") for modules in plain.values() for module in modules)
    if found.form in FLOATS or found.form is Form.PACKED:
        return _by_module(found, said, single)
    kept = {"bits": found.bits, "group_size": found.group or -1}
    if found.form is Form.AWQ:
        return {"quant_method": "awq", "version": "gemm", "zero_point": True, **kept, "modules_to_not_convert": names}
    experts = [name for name in names if name.endswith(".experts")]
    if experts:
        raise StartupError(
            f"{experts[0]} is not quantised: SGLang reads a GPTQ checkpoint only if all of its experts are quantised"
        )
    rules: dict[str, Any] = {rf"-:{re.escape(name)}$": {} for name in names}
    order = {"sym": found.symmetric, "desc_act": found.reordered}
    return {"quant_method": "gptq", **kept, **order, "checkpoint_format": "gptq", "dynamic": rules}


def _by_module(found: Quantization, said: Mapping[str, Any], plain: list[str]) -> dict[str, Any]:
    if found.form is Form.FP8:
        kept = {name: said[name] for name in ("weight_block_size", "scale_fmt") if said.get(name)}
        scheme = said.get("activation_scheme", "dynamic")
        return {"quant_method": "fp8", "activation_scheme": scheme, **kept, "modules_to_not_convert": plain}
    [group] = said["config_groups"].values()
    own = {**group, "targets": ["Linear"], "format": None}
    return {
        "quant_method": "compressed-tensors",
        "format": group.get("format") or said["format"],
        "config_groups": {"group_0": own},
        "ignore": plain,
    }
