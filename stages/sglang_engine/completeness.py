"""Finds the tensors of a model that are missing in a checkpoint. Without this check, SGLang would leave the parameters
for missing tensors uninitialised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from stages.checkpoint.quantization import is_quantised

# SGLang's parameters that join several tensors of the checkpoint.
_STACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_STACKED_EXPERTS = {
    "w13_": ("gate_proj", "up_proj"),
    "w2_": ("down_proj",),
}

# A parameter whose name has one of these endings must be in the checkpoint. SGLang itself makes all other parameters,
# for example when it quantises plain weights. `quantised_parts.misplaced` checks whether each quantised layer has all
# the tensors that it needs.
_NEEDED = ("weight", "qweight", "qzeros", "scales", "weight_packed", "weight_zero_point")

# Endings of the names of tensors that describe quantised weights: group indices and shapes. SGLang does not always need
# these tensors. So a checkpoint may contain them even if the model has no parameter for them.
_SPARE = ("g_idx", "weight_shape")


def missing_tensors(parameters: Iterable[str], loaded: Collection[str], experts: int) -> list[str]:
    """The tensors that the checkpoint lacks, in the order of the model.

    Args:
        parameters: Names of the SGLang model's parameters.
        loaded: Names of the tensors that came from the checkpoint.
        experts: Number of routed experts in a layer.
    """
    wanted = (tensor for name in parameters for tensor in _tensors(name, experts))
    return [tensor for tensor in wanted if tensor.rpartition(".")[2] in _NEEDED and tensor not in loaded]


def stray_tensors(parameters: Iterable[str], loaded: Iterable[str], experts: int) -> list[str]:
    """The tensors of quantised weights for which the model has no parameter. SGLang would ignore these tensors, or load
    them as plain weights.

    Tensors for group indices and shapes (`_SPARE`) are not reported.

    Args: as for `missing_tensors`.
    """
    known = {tensor for name in parameters for tensor in _tensors(name, experts)}
    return [name for name in loaded if is_quantised(name) and not name.endswith(_SPARE) and name not in known]


def _tensors(parameter: str, experts: int) -> Iterator[str]:
    """The tensors that `parameter` contains, by their names in the checkpoint."""
    module, _, kind = parameter.rpartition(".")
    for prefix, parts in _STACKED_EXPERTS.items():
        if kind.startswith(prefix) and module.endswith(".experts"):
            suffix = kind.removeprefix(prefix)
            for expert in range(experts):
                yield from (f"{module}.{expert}.{part}.{suffix}" for part in parts)
            return
    parent, _, name = module.rpartition(".")
    yield from (f"{parent}.{part}.{kind}" for part in _STACKED[name]) if name in _STACKED else (parameter,)
