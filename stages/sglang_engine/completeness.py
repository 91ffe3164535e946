"""Tells what does not fit between a checkpoint and a model: SGLang leaves what is missing as it came from memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

# SGLang's parameters that hold several of the checkpoint's tensors side by side.
_STACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_SCALES = ("weight_scale", "weight_scale_inv")
_STACKED_EXPERTS = {
    "w13_weight": ("gate_proj", "up_proj"),
    "w2_weight": ("down_proj",),
}


def missing_tensors(parameters: Iterable[str], loaded: Collection[str], experts: int) -> list[str]:
    """The tensors that were not there, in the order of the model.

    Args:
        parameters: Names of the SGLang model's parameters. Only weights count: quantised ones come with scales or not.
        loaded: Names of the tensors that the checkpoint gave.
        experts: Number of routed experts of a layer.
    """
    wanted = (tensor for name in parameters for tensor in _tensors(name, experts))
    return [tensor for tensor in wanted if tensor not in loaded]


def stray_scales(parameters: Iterable[str], loaded: Iterable[str], experts: int) -> list[str]:
    """The scales of quantised weights that no parameter is there for: their weights would be taken for plain numbers.

    Args: as for `missing_tensors`.
    """
    held = [name for name in parameters if name.rpartition(".")[2].endswith(_SCALES)]
    known = {tensor + _suffix(name) for name in held for tensor in _tensors(name.removesuffix(_suffix(name)), experts)}
    return [name for name in loaded if name.endswith(_SCALES) and name not in known]


def _suffix(scale: str) -> str:
    """What a scale's name has beyond its weight's."""
    return scale[scale.rindex("weight") + len("weight") :]


def _tensors(parameter: str, experts: int) -> Iterator[str]:
    """The checkpoint's names of what `parameter` holds."""
    module, _, kind = parameter.rpartition(".")
    if kind in _STACKED_EXPERTS:
        for expert in range(experts):
            yield from (f"{module}.{expert}.{part}.weight" for part in _STACKED_EXPERTS[kind])
    elif kind == "weight":
        parent, _, name = module.rpartition(".")
        yield from (f"{parent}.{part}.weight" for part in _STACKED[name]) if name in _STACKED else (parameter,)
