"""The stages that train seeing, hearing and answering run one after the other, resume, and make a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from demo_model.checkpoint import export  # noqa: E402
from demo_model.checkpoint.shapes import model_configuration  # noqa: E402
from demo_model.thinker import recipe  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor  # noqa: E402

FEW = {
    "VISION_STEPS": 2,
    "AUDIO_STEPS": 2,
    "THINKER_STEPS": 2,
    "ANSWER_STEPS": 2,
    "_PICTURES": 4,
    "_CLIPS": 2,
    "_QUESTIONS": 16,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory after all stages of the training, each with only a few steps."""
    directory = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW.items():
            patch.setattr(recipe, name, value)
        for stage in recipe.STAGES.values():
            stage(directory)
        yield directory


def test_every_weight_of_the_thinker_comes_out(work: Path) -> None:
    model = Qwen3OmniMoeForConditionalGeneration(model_configuration())
    wanted = {f"thinker.{name}" for name in model.thinker.state_dict()}
    with safe_open(work / "thinker.safetensors", "pt") as file:
        assert set(file.keys()) == wanted


def test_a_stage_that_is_done_does_nothing_more(work: Path) -> None:
    before = (work / "vision" / "losses.jsonl").read_text()
    recipe.teach_seeing(work)

    assert (work / "vision" / "losses.jsonl").read_text() == before
    assert (work / "vision" / "losses.png").exists()


def test_what_is_trained_is_a_checkpoint_that_the_reference_reads(work: Path) -> None:
    target = work / "checkpoint"
    export.assemble([work / "thinker.safetensors"], target, incomplete=True)

    model, found = Qwen3OmniMoeForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert sum(file.stat().st_size for file in target.iterdir()) < 32e6
    processor = Qwen3OmniMoeProcessor.from_pretrained(target)
    inputs = processor(text="How many cars are there?", return_tensors="pt")
    assert torch.isfinite(model.thinker(**inputs).logits).all()


def test_a_checkpoint_with_a_part_missing_is_refused(work: Path) -> None:
    with pytest.raises(ValueError, match="missing weights"):
        export.assemble([work / "thinker.safetensors"], work / "half")
    assert not (work / "half").exists()
