"""A checkpoint with quantised weights gives the same answers and speech as an unquantised checkpoint with the
dequantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_pipeline.errors import StartupError
from stages.checkpoint.weights import read_tensors
from tests.device import DEVICE
from tests.equality import test_served as text
from tests.equality import test_spoken as speech
from tests.equality.conversations import Kit, all_conversations
from tests.quantised import RECIPES, quantise
from tests.reference import Reference, SpokenReference
from tests.server import Server, colocated

# The quantised forms of thinker and talker. The first two cases are as in published checkpoints: both models have the
# same form, or only the thinker is quantised. In the last case, the two models have different forms.
FORMS = {
    "fp8-block": {"thinker": "fp8-block", "talker": "fp8-block"},
    "int4-packed": {"thinker": "packed"},
    "awq-and-gptq": {"thinker": "awq", "talker": "gptq-reordered"},
}

# Only these cases run on a GPU. The GPU kernels of the other forms need models that are wider than the test checkpoint:
# see docs/configuration.md.
ON_GPU = ("fp8-block",)


class Case(NamedTuple):
    """A server of a quantised checkpoint, and the unquantised checkpoint with the dequantised weights."""

    server: Server
    truth: Path


@pytest.fixture(scope="module", params=[name for name in FORMS if DEVICE == "cpu" or name in ON_GPU])
def case(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    media_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Case]:
    root = tmp_path_factory.mktemp(request.param)
    assert quantise(tiny_checkpoint, root / "stored", root / "truth", FORMS[request.param]) > 100
    server = Server(root / "stored", media_directory, colocated(), speech=True).start()
    yield Case(server, root / "truth")
    assert server.stop() == 0


def test_text_and_voices(case: Case, kit: Kit) -> None:
    conversations = all_conversations(kit)[::9]
    reference = Reference(case.truth)
    answers = {one.name: reference.greedy(one, text.TOKENS) for one in conversations}
    answering = text.Running(case.server, text.Truths(conversations, answers))
    answering.check([answering.ask(one) for one in conversations])

    spoken = SpokenReference(case.truth)
    heard = {one.name: spoken.speak(one, speech.TOKENS, speech.FRAMES, "ethan") for one in conversations}
    voices = {name: answer for name, answer in heard.items() if answer is not None}
    told = [one for one in conversations if one.name in voices]
    speaking = speech.Running(case.server, speech.Truths(told, dict.fromkeys(voices, "ethan"), voices))
    speaking.check([speaking.ask(one) for one in told])


@pytest.mark.parametrize("form", ["fp8-block", "awq", "gptq", "packed"])
def test_quantised_predictor_is_refused(tiny_checkpoint: Path, tmp_path: Path, form: str) -> None:
    """If a quantised predictor were not refused, it would speak, but badly."""
    (file,) = tiny_checkpoint.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("talker.code_predictor.") and "q_proj" in name)
    stored, _ = RECIPES[form].store(tensors[name].float())
    module = name.removesuffix(".weight")
    packed: dict[str, torch.Tensor] = {f"{module}.{part}": tensor for part, tensor in stored.items()}
    save_file(packed, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(StartupError, match="is quantised: only the language models of thinker and talker may be"):
        read_tensors(tmp_path, "talker.code_predictor.")
