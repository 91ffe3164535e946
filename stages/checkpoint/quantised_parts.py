"""Finds from the names of a checkpoint's tensors which layers are quantised, and whether SGLang can serve these
layers.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator

from stages.checkpoint.quantised_tensors import needed
from stages.checkpoint.quantization import Quantization, is_quantised

_LAYER = re.compile(r"(?P<layer>\w+\.model\.layers\.\d+)\.(?P<name>.*_proj)")

# SGLang computes each of these groups as one layer.
_FUSED = (
    (re.compile(r"self_attn\.[qkv]_proj"), "self_attn.qkv_proj"),
    (re.compile(r"mlp\.experts\.\d+\.(gate|up|down)_proj"), "mlp.experts"),
    (re.compile(r"(.*)\.(gate|up)_proj"), r"\1.gate_up_proj"),
)


def layers(part: str, tensors: Collection[str]) -> dict[str, dict[str, set[str]]]:
    """The linear layers of a part's decoder, grouped as SGLang fuses them. Each layer comes with the endings of its
    tensor names, such as ``weight``.

    Args:
        tensors: Names of the checkpoint's tensors.

    Returns:
        ``{"thinker.model.layers.0.self_attn.qkv_proj": {"thinker.model.layers.0.self_attn.q_proj": {"weight"}, …}, …}``
    """
    found: defaultdict[str, dict[str, set[str]]] = defaultdict(dict)
    for name in tensors:
        module, _, suffix = name.rpartition(".")
        match = _LAYER.fullmatch(module) if name.startswith(f"{part}.model.") else None
        if match:
            found[f"{match['layer']}.{_fused(match['name'])}"].setdefault(module, set()).add(suffix)
    return dict(found)


@functools.lru_cache(maxsize=1024)  # the same few names occur in every layer of the decoder
def _fused(name: str) -> str:
    for pattern, fused in _FUSED:
        if match := pattern.fullmatch(name):
            return match.expand(fused)
    return name


def quantised_modules(modules: dict[str, set[str]]) -> list[str]:
    """Names of the quantised modules. `modules` maps each module's name to the endings of its tensor names."""
    return [module for module, suffixes in modules.items() if any(is_quantised(f".{suffix}") for suffix in suffixes)]


def misplaced(quantization: Quantization | None, part: str, tensors: Collection[str]) -> str | None:
    """Check the quantised layers of a part. Returns the first problem, worded as the end of a sentence in an error
    message; None if there is no problem.

    Args:
        quantization: The part's quantisation according to the configuration.
    """
    return next(_misplaced(quantization, part, tensors), None)


def _misplaced(quantization: Quantization | None, part: str, tensors: Collection[str]) -> Iterator[str]:
    for name in tensors:
        module = name.rpartition(".")[0]
        if not is_quantised(name) or not name.startswith((f"{part}.model.", f"{part}.lm_head.", f"{part}.codec_head.")):
            continue
        if quantization is None:
            yield f"{name} is quantised, but config.json has no quantization_config for the {part}"
        elif not _LAYER.fullmatch(module):
            yield f"{name} is quantised, but only projections in decoder layers may be quantised"
    if quantization is None:
        return
    wanted = needed(quantization)
    for fused, modules in layers(part, tensors).items():
        quantised = quantised_modules(modules)
        if quantised and len(quantised) < len(modules):
            plain = next(module for module in modules if module not in quantised)
            yield f"{quantised[0]} is quantised and {plain} is not, but SGLang joins them in one layer ({fused})"
        for module in quantised:
            lacking = wanted - modules[module]
            if lacking:
                yield f"the checkpoint has no {module}.{min(lacking)}, which {quantization.title} needs"
