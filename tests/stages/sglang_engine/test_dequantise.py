"""Quantised weights are dequantised correctly. The tests compare the results with a separate implementation of the
packing, with libraries, and with a complete model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file
from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_decomposition

from omni_pipeline.errors import StartupError
from stages.checkpoint import quantization
from stages.checkpoint.weights import read_config
from stages.sglang_engine.dequantise import expand, plain_weights
from tests.quantised import BLOCK, RECIPES, quantise


def described(form: str) -> quantization.Quantization:
    found = quantization.read({"quantization_config": RECIPES[form].said}, "thinker")
    assert found is not None
    return found


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, 3 * BLOCK, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", RECIPES)
def test_numbers_are_those_that_were_stored(form: str) -> None:
    tensors, truth = RECIPES[form].store(weight())
    assert torch.equal(expand(tensors, described(form)), truth)
    assert (truth - weight()).abs().max() < 0.35, "and not far from the weight"


def test_awq_is_read_as_sglang_reads_it() -> None:
    tensors, _ = RECIPES["awq"].store(weight())
    theirs = awq_dequantize_decomposition(tensors["qweight"], tensors["scales"].float(), tensors["qzeros"])
    assert torch.equal(expand(tensors, described("awq")), theirs.t())


@pytest.mark.parametrize("form", ["packed", "packed-zeros"])
def test_compressed_tensors_packs_as_its_library_does(form: str) -> None:
    """The test packs numbers with the library. The dequantised result must equal the numbers multiplied by their
    scales.
    """
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(-8, 8, (24, 4 * BLOCK), generator=generator, dtype=torch.int8)
    zeros = torch.randint(-8, 8, (24, 4), generator=generator, dtype=torch.int8)
    scales = torch.rand(24, 4, generator=generator).to(torch.bfloat16)
    tensors = {
        "weight_packed": pack_to_int32(numbers, 4),
        "weight_scale": scales,
        "weight_shape": torch.tensor(numbers.shape),
        "weight_zero_point": pack_to_int32(zeros, 4, packed_dim=0),
    }
    shift = zeros.float().repeat_interleave(BLOCK, 1) if form == "packed-zeros" else 0
    truth = (numbers.float() - shift) * scales.float().repeat_interleave(BLOCK, 1)
    assert torch.equal(expand(tensors, described(form)), truth)


def test_zero_points_of_gptq_version_2_are_stored_as_they_are() -> None:
    tensors, truth = RECIPES["gptq-reordered"].store(weight())
    said = RECIPES["gptq-reordered"].said | {"checkpoint_format": "gptq_v2"}
    second = quantization.read({"quantization_config": said}, "thinker")
    assert second is not None
    raised = tensors | {"qzeros": sum_of_nibbles(tensors["qzeros"], 1)}
    assert torch.equal(expand(raised, second), truth)


def sum_of_nibbles(words: torch.Tensor, more: int) -> torch.Tensor:
    """Integers of eight four-bit numbers, with `more` added to each four-bit number."""
    raised = [((words >> 4 * place) & 15) + more for place in range(8)]
    return torch.stack([one << 4 * place for place, one in enumerate(raised)]).sum(0).to(torch.int32)


@pytest.mark.parametrize("form", RECIPES)
def test_stream_gives_plain_weights_whatever_the_order(form: str) -> None:
    tensors, truth = RECIPES[form].store(weight())
    named = [(f"a.q_proj.{name}", tensor) for name, tensor in tensors.items()]
    other = ("a.norm.weight", torch.ones(3))
    for stream in ([*named, other], [other, *reversed(named)]):
        plain = dict(plain_weights(stream, described(form)))
        assert plain.keys() == {"a.q_proj.weight", "a.norm.weight"}
        assert torch.equal(plain["a.q_proj.weight"], truth)


def test_weight_that_lacks_its_scales_is_named() -> None:
    tensors, _ = RECIPES["awq"].store(weight())
    stream = [(f"a.q_proj.{name}", tensor) for name, tensor in tensors.items() if name != "scales"]
    with pytest.raises(StartupError, match=r"the checkpoint lacks a\.q_proj\.scales, which is needed"):
        list(plain_weights(stream, described("awq")))


@pytest.mark.parametrize("forms", [{"thinker": "packed"}, {"thinker": "gptq-reordered", "talker": "awq"}])
def test_whole_checkpoint_becomes_its_truth(tiny_checkpoint: Path, tmp_path: Path, forms: dict[str, str]) -> None:
    assert quantise(tiny_checkpoint, tmp_path / "quantised", tmp_path / "truth", forms) > 100
    config = read_config(str(tmp_path / "quantised"))
    tensors = load_file(tmp_path / "quantised" / "model.safetensors")
    for part in forms:
        found = quantization.read(config, part)
        assert found is not None
        own = ((name, tensor) for name, tensor in tensors.items() if name.startswith(f"{part}."))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")} | dict(
            plain_weights(own, found)
        )
    truth = load_file(tmp_path / "truth" / "model.safetensors")
    assert tensors.keys() == truth.keys()
    assert all(torch.equal(tensors[name], truth[name]) for name in truth)
