"""A complete checkpoint is found. For an incomplete checkpoint, the error names the missing files or tensors."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from omni_pipeline.contract.graph import CheckpointSpec
from omni_pipeline.deployment.checkpoint import Checkpoint, Stored, describe_checkpoint, find_checkpoint
from omni_pipeline.errors import StartupError

SPEC = CheckpointSpec(
    title="Echo",
    model_types=("echo", "echo_large"),
    files=((("tokenizer.json",), ("vocab.json", "merges.txt")), (("preprocessor_config.json",),)),
)


def safetensors(tensors: dict[str, list[int]], dtype: str = "F32") -> bytes:
    """A weight file of zeros: tensors of these shapes, with four bytes for each number."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A complete checkpoint in two weight files."""
    path = tmp_path / "whole"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "echo", "architectures": ["Echo"]}))
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (path / name).write_text("{}")
    (path / "one.safetensors").write_bytes(safetensors({"ear.a": [2, 3], "ear.b": [1, 1]}))
    (path / "two.safetensors").write_bytes(safetensors({"mouth.c": [4, 5]}))
    index = {"weight_map": {"ear.a": "one.safetensors", "ear.b": "one.safetensors", "mouth.c": "two.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def refusal(path: str) -> str:
    with pytest.raises(StartupError) as caught:
        find_checkpoint(path, SPEC, lambda _: None)
    return str(caught.value)


def test_complete_checkpoint_is_found_with_its_sizes(whole: Path) -> None:
    found = find_checkpoint(str(whole), SPEC, lambda _: None)
    assert found.path == str(whole)
    assert found.config["architectures"] == ["Echo"]
    assert found.tensors == {"ear.a": Stored(6, 24), "ear.b": Stored(1, 4), "mouth.c": Stored(20, 80)}


def test_weights_are_counted_as_stored_or_in_another_type() -> None:
    checkpoint = Checkpoint(
        "x", {}, {"ear.a": Stored(6, 24), "ear.b": Stored(1, 4), "mouth.c": Stored(20, 20, fixed=True)}
    )
    assert checkpoint.held_bytes(["ear."], None) == 28
    assert checkpoint.held_bytes(["ear."], 2) == 14
    assert checkpoint.held_bytes(["mouth."], 2) == 20, "quantised weights stay so"
    assert checkpoint.held_bytes([], 2) == 0


def test_integers_that_numbers_are_packed_into_stay_so(whole: Path) -> None:
    (whole / "two.safetensors").write_bytes(safetensors({"mouth.c": [4, 5]}, "I32"))
    assert find_checkpoint(str(whole), SPEC, lambda _: None).held_bytes(["mouth."], 2) == 80


def numbered(config: dict[str, Any]) -> dict[str, tuple[int, int, bool]]:
    return {"ear.a": (config["size"], 2 * config["size"], False)}


def test_plan_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "echo", "size": 5}))
    spec = structs.replace(SPEC, tensors=numbered)
    for path in (tmp_path, tmp_path / "config.json"):
        assert describe_checkpoint(str(path), spec).tensors == {"ear.a": Stored(5, 10)}


def test_plan_prefers_the_headers_of_weights_that_are_there(whole: Path) -> None:
    spec = structs.replace(SPEC, tensors=numbered)
    assert describe_checkpoint(str(whole), spec).tensors.keys() == {"ear.a", "ear.b", "mouth.c"}


def test_plan_finds_a_hub_name_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    snapshot = tmp_path / "models--owner--model" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "echo", "size": 5}))
    (tmp_path / "models--owner--model/refs").mkdir()
    (tmp_path / "models--owner--model/refs/main").write_text(revision)
    assert describe_checkpoint("owner/model", structs.replace(SPEC, tensors=numbered)).tensors == {
        "ear.a": Stored(5, 10)
    }
    with pytest.raises(
        StartupError, match=r"no directory owner/other\. The hub's cache has no such model either, and this"
    ):
        describe_checkpoint("owner/other", SPEC)


def test_one_weight_file_needs_no_index(whole: Path) -> None:
    (whole / "model.safetensors.index.json").unlink()
    (whole / "two.safetensors").unlink()
    assert find_checkpoint(str(whole), SPEC, lambda _: None).tensors == {"ear.a": Stored(6, 24), "ear.b": Stored(1, 4)}


def test_alternative_file_will_do(whole: Path) -> None:
    (whole / "tokenizer.json").unlink()
    (whole / "vocab.json").write_text("{}")
    (whole / "merges.txt").write_text("")
    assert find_checkpoint(str(whole), SPEC, lambda _: None).tensors


def cut(path: Path, to: int) -> None:
    path.write_bytes(path.read_bytes()[:to])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "config.json is missing. Download or copy it again."),
        (lambda p: (p / "config.json").write_text("{"), "config.json is not valid: Input data was truncat"),
        (lambda p: (p / "config.json").write_text("[]"), "config.json is not valid: Expected `object`"),
        (
            lambda p: (p / "config.json").write_text('{"model_type": "llama"}'),
            "is not a Echo model: its config.json has the model_type 'llama', not 'echo' or 'echo_large'.",
        ),
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json or vocab.json with merges.txt is missing."),
        (lambda p: (p / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing."),
        (lambda p: (p / "two.safetensors").unlink(), "1 of 2 weight files are missing, for example two.safetensors."),
        (lambda p: cut(p / "two.safetensors", -1), "two.safetensors is cut off: it has "),
        (lambda p: cut(p / "two.safetensors", 30), "two.safetensors is not a safetensors file (30 bytes)."),
        (lambda p: cut(p / "two.safetensors", 0), "two.safetensors is not a safetensors file (0 bytes)."),
        (
            lambda p: (p / "two.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "two.safetensors is not a safetensors file",
        ),
        (
            lambda p: (p / "two.safetensors").write_bytes(safetensors({"mouth.d": [1, 1]})),
            "two.safetensors lacks the tensor mouth.c that model.safetensors.index.json lists.",
        ),
        (
            lambda p: [file.unlink() for file in p.glob("*.safetensors*")],
            "there is no *.safetensors file in it.",
        ),
    ],
)
def test_what_is_wrong_is_said(whole: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(whole)
    assert message in refusal(str(whole))


def test_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "There is no directory" in refusal(str(tmp_path / "nothing"))


def test_file_is_refused(whole: Path) -> None:
    assert "needs the checkpoint's directory" in refusal(str(whole / "config.json"))


def test_hub_name_without_a_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said: list[str] = []
    with pytest.raises(StartupError, match=r"the hub cannot be reached\. Set --model-path"):
        find_checkpoint("owner/model", SPEC, said.append)
    assert len(said) == 1
    assert said[0].startswith("There is no directory owner/model")


def test_hub_name_in_the_cache_needs_no_hub(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    cached = tmp_path / "models--owner--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    shutil.copytree(whole, cached / "snapshots" / revision)
    assert find_checkpoint("owner/model", SPEC, lambda _: None).path == str(cached / "snapshots" / revision)
