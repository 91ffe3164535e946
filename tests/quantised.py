"""Makes two checkpoints from one checkpoint: a quantised checkpoint in a published format, and an unquantised
checkpoint with the dequantised weights.

This module has its own implementation of the packing in numpy. Tests compare the server's unpacking with this
implementation.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from safetensors.torch import load_file, save_file

# The linear layers of both language models. Routers, embeddings and the layers that make speech keep their type.
_LINEAR = re.compile(
    r"(thinker|talker)\.model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.(gate|up|down)_proj|mlp\.shared_expert\.(gate|up|down)_proj)\.weight"
)
_KEPT = ["thinker.lm_head", "thinker.visual", "thinker.audio_tower", "talker.code_predictor", "code2wav", "mlp.gate"]
_PATTERNS = ["re:.*visual.*", "re:.*audio_tower.*", "re:^code2wav.*", "re:.*code_predictor.*", r"re:.*mlp\.gate$"]
BLOCK = 16
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)

Tensors = dict[str, torch.Tensor]


class Recipe(NamedTuple):
    """A format of quantised weights.

    Attributes:
        said: The ``quantization_config`` of a checkpoint in this format.
        left: The key of ``quantization_config`` that lists the modules that keep their precision.
        store: Converts a weight. Returns the stored tensors, by the last part of the tensor's name, and the dequantised
            weight.
    """

    said: dict[str, Any]
    left: str
    store: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


def quantise(source: Path, target: Path, truth: Path, forms: Mapping[str, str]) -> int:
    """Write both checkpoints. Returns the number of quantised weights. `target` and `truth` must not exist yet.

    Args:
        forms: Names from `RECIPES` for ``thinker`` and ``talker``. A model that is not listed keeps its precision. If
            the two models have different formats, each model has its own section in ``config.json``.
    """
    for directory in (target, truth):
        shutil.copytree(source, directory)
    count = 0
    for file in source.glob("*.safetensors"):
        tensors, stored = load_file(file), {}
        for name, tensor in tensors.items():
            match = _LINEAR.fullmatch(name)
            if match is None or match[1] not in forms:
                stored[name] = tensor
                continue
            made, tensors[name] = RECIPES[forms[match[1]]].store(tensor.float())
            stored |= {f"{name.removesuffix('.weight')}.{part}": own for part, own in made.items()}
            count += 1
        save_file(tensors, truth / file.name, {"format": "pt"})
        save_file(stored, target / file.name, {"format": "pt"})
    path = target / "config.json"
    path.write_text(json.dumps(_said(json.loads(path.read_text()), forms)))
    return count


def _said(config: dict[str, Any], forms: Mapping[str, str]) -> dict[str, Any]:
    if len(set(forms.values())) > 1:
        for part, form in forms.items():
            config[f"{part}_config"]["quantization_config"] = RECIPES[form].said
        return config
    [form] = set(forms.values())
    recipe, plain = RECIPES[form], [part for part in ("thinker", "talker") if part not in forms]
    if recipe.left == "dynamic":
        left: Any = {rf"-:.*{re.escape(name)}.*": {} for name in plain}
    elif recipe.left == "ignore":
        left = [*_PATTERNS, *(rf"re:^{part}\..*" for part in plain)]
    else:
        left = [*_KEPT, *plain]
    return {**config, "quantization_config": {**recipe.said, recipe.left: left}}


def _block(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    rows, columns = (-(-size // BLOCK) * BLOCK for size in weight.shape)
    padded = torch.zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    largest = padded.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).abs().amax(dim=(1, 3))
    scale = largest.clamp(min=1e-12) / _LARGEST
    spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: weight.shape[0], : weight.shape[1]]
    small = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": small, "weight_scale_inv": scale}, small.float() * spread


def _tensor(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().max() / _LARGEST
    small = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": small, "weight_scale": scale}, small.float() * scale


def _channel(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = (weight.abs().amax(dim=1, keepdim=True) / _LARGEST).to(torch.bfloat16)
    small = (weight / scale.float()).to(torch.float8_e4m3fn)
    return {"weight": small, "weight_scale": scale}, small.float() * scale.float()


def _awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    numbers, zeros, scales, truth = _grouped(weight, _neighbours(weight), symmetric=False)
    packed = {"qweight": _words(numbers, _AWQ_PLACES), "qzeros": _words(zeros, _AWQ_PLACES), "scales": scales}
    return packed, truth.t().contiguous()


def _gptq(weight: torch.Tensor, *, symmetric: bool = True, reordered: bool = False) -> tuple[Tensors, torch.Tensor]:
    groups = _scattered(weight) if reordered else _neighbours(weight)
    numbers, zeros, scales, truth = _grouped(weight, groups, symmetric=symmetric)
    packed = {
        "qweight": _words(numbers.T).t().contiguous(),
        "qzeros": _words(zeros - 1),
        "scales": scales,
        "g_idx": torch.from_numpy(groups.astype(numpy.int32)),
    }
    return packed, truth.t().contiguous()


def _packed(weight: torch.Tensor, *, symmetric: bool = True, reordered: bool = False) -> tuple[Tensors, torch.Tensor]:
    groups = _scattered(weight) if reordered else _neighbours(weight)
    numbers, zeros, scales, truth = _grouped(weight, groups, symmetric=symmetric)
    made = {
        "weight_packed": _words(numbers.T),
        "weight_scale": scales.t().contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        made["weight_zero_point"] = _words(zeros).t().contiguous()
    if reordered:
        made["weight_g_idx"] = torch.from_numpy(groups.astype(numpy.int32))
    return made, truth.t().contiguous()


def _neighbours(weight: torch.Tensor) -> numpy.ndarray:
    return numpy.arange(weight.shape[1]) // BLOCK


def _scattered(weight: torch.Tensor) -> numpy.ndarray:
    return numpy.random.default_rng(weight.shape[1]).permutation(weight.shape[1]) // BLOCK


def _grouped(
    weight: torch.Tensor, groups: numpy.ndarray, *, symmetric: bool
) -> tuple[numpy.ndarray, numpy.ndarray, torch.Tensor, torch.Tensor]:
    """Quantises a weight. Returns four-bit numbers [inputs, outputs], zero points and float16 scales [groups, outputs],
    and dequantised weights.
    """
    inputs, count = weight.t().numpy(), int(groups.max()) + 1
    numbers = numpy.zeros(inputs.shape, numpy.int64)
    zeros, scales = numpy.full((count, inputs.shape[1]), 8), numpy.zeros((count, inputs.shape[1]), numpy.float16)
    for group in range(count):
        own = inputs[groups == group]
        low, high = numpy.minimum(own.min(0), 0), numpy.maximum(own.max(0), 0)
        spread = numpy.maximum(-low, high) / 7 if symmetric else (high - low) / 15
        scales[group] = numpy.maximum(spread, 1e-6)
        if not symmetric:
            zeros[group] = numpy.clip(numpy.rint(-low / scales[group]), 1, 15)
        numbers[groups == group] = numpy.clip(numpy.rint(own / scales[group]) + zeros[group], 0, 15)
    truth = (numbers - zeros[groups]) * scales[groups].astype(numpy.float32)
    return numbers, zeros, torch.from_numpy(scales), torch.from_numpy(truth.astype(numpy.float32))


def _words(numbers: numpy.ndarray, places: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Packs four-bit numbers [rows, columns] into 32-bit integers, each with eight columns. `places` lists the column
    for each position in the integer, from the lowest bits.
    """
    eights = numbers.astype(numpy.uint32).reshape(len(numbers), -1, 8)
    words = sum(eights[:, :, place] << numpy.uint32(4 * order) for order, place in enumerate(places))
    return torch.from_numpy(numpy.ascontiguousarray(words).view(numpy.int32))


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"dynamic": False, "symmetric": True, **weights}}
    if form == "float-quantized":
        group["input_activations"] = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": BLOCK, "zero_point": True, "version": "gemm"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": BLOCK, "checkpoint_format": "gptq"}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": BLOCK}

RECIPES = {
    "fp8-block": Recipe({**_FP8, "weight_block_size": [BLOCK, BLOCK]}, "modules_to_not_convert", _block),
    "fp8-tensor": Recipe(_FP8, "ignored_layers", _tensor),
    "fp8-channel": Recipe(
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"), "ignore", _channel
    ),
    "awq": Recipe(_AWQ, "modules_to_not_convert", _awq),
    "gptq": Recipe({**_GPTQ, "sym": True, "desc_act": False}, "dynamic", _gptq),
    "gptq-reordered": Recipe(
        {**_GPTQ, "sym": False, "desc_act": True},
        "dynamic",
        lambda weight: _gptq(weight, symmetric=False, reordered=True),
    ),
    "packed": Recipe(_compressed("pack-quantized", **_INT4), "ignore", _packed),
    "packed-reordered": Recipe(
        _compressed("pack-quantized", **_INT4, actorder="group"),
        "ignore",
        lambda weight: _packed(weight, reordered=True),
    ),
    "packed-zeros": Recipe(
        _compressed("pack-quantized", **{**_INT4, "symmetric": False}),
        "ignore",
        lambda weight: _packed(weight, symmetric=False),
    ),
}
