"""A checkpoint with FP8 weights answers and speaks as the numbers say that its weights stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_pipeline.errors import StartupError
from stages.checkpoint.weights import read_tensors
from tests.equality import test_served as text
from tests.equality import test_spoken as speech
from tests.equality.conversations import Kit, all_conversations
from tests.fp8 import quantise
from tests.reference import Reference, SpokenReference
from tests.server import Server, colocated


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One with FP8 weights, and one with the numbers that they stand for."""
    root = tmp_path_factory.mktemp("fp8")
    assert quantise(tiny_checkpoint, root / "fp8", root / "truth") > 100
    return root / "fp8", root / "truth"


@pytest.fixture(scope="module")
def server(checkpoint: tuple[Path, Path], media_directory: Path) -> Iterator[Server]:
    server = Server(checkpoint[0], media_directory, colocated(), speech=True).start()
    yield server
    assert server.stop() == 0


def test_text_and_voices(server: Server, checkpoint: tuple[Path, Path], kit: Kit) -> None:
    conversations = all_conversations(kit)[::9]
    reference = Reference(checkpoint[1])
    answers = {one.name: reference.greedy(one, text.TOKENS) for one in conversations}
    answering = text.Running(server, text.Truths(conversations, answers))
    answering.check([answering.ask(one) for one in conversations])

    spoken = SpokenReference(checkpoint[1])
    heard = {one.name: spoken.speak(one, speech.TOKENS, speech.FRAMES, "ethan") for one in conversations}
    voices = {name: answer for name, answer in heard.items() if answer is not None}
    told = [one for one in conversations if one.name in voices]
    speaking = speech.Running(server, speech.Truths(told, dict.fromkeys(voices, "ethan"), voices))
    speaking.check([speaking.ask(one) for one in told])


def test_quantised_predictor_is_refused(checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    """It would speak, and badly."""
    (file,) = checkpoint[0].glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("talker.code_predictor.") and tensors[name].dim() == 2)
    save_file({name: tensors[name].to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(StartupError, match="is quantised: only the language models of thinker and talker may be"):
        read_tensors(tmp_path, "talker.code_predictor.")
