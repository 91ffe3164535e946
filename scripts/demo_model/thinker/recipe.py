"""Runs the training stages of the towers and the thinker, in order. An interrupted stage is resumed.

PYTHONPATH=scripts python -m demo_model.thinker.recipe --out out/demo vision audio thinker observe answers
"""

from __future__ import annotations

from pathlib import Path

from demo_model.checkpoint.export import save_weights
from demo_model.checkpoint.tokenizer import tokenizer
from demo_model.thinker import training
from demo_model.thinker.training import ThinkerDecoder, imagined, trained_thinker
from demo_model.towers import audio_training, vision_training
from demo_model.towers.tower_outputs import Observed
from demo_model.training import stage_command
from demo_model.training.training_run import trained

VISION_STEPS = 6500
AUDIO_STEPS = 3600
THINKER_STEPS = 2400
ANSWER_STEPS = 11_000
_PICTURES, _CLIPS, _QUESTIONS = 8000, 800, 8000
_SEED = 9


def teach_seeing(out: Path) -> None:
    vision_training.train(out / "vision", VISION_STEPS)


def teach_hearing(out: Path) -> None:
    audio_training.train(out / "audio", _names(out), AUDIO_STEPS)


def teach_thinking(out: Path) -> None:
    """Train the thinker on the outputs of ideal towers."""
    training.train(out / "thinker", ThinkerDecoder(), [(imagined(_names(out)), 1.0)], _names(out), THINKER_STEPS)


def observe(out: Path) -> None:
    """Run the trained towers, and write their outputs to `out`/observed.pt."""
    path = out / "observed.pt"
    if path.exists():
        return
    seen = Observed(_names(out))
    seen.look(trained(vision_training.new_tower(), out / "vision"), _SEED, _PICTURES, _CLIPS)
    seen.hear(trained(audio_training.new_tower(), out / "audio"), _SEED, _QUESTIONS)
    seen.save(path)


def teach_answering(out: Path) -> None:
    """Train the thinker on the trained towers' outputs, and write `out`/thinker.safetensors.

    The file has the weights of the thinker and its towers, with the names that they have in the checkpoint.
    """
    seen, names = Observed(_names(out)), _names(out)
    seen.load(out / "observed.pt")
    thinker = trained_thinker(out / "thinker")
    sources = [(seen.source(), 0.75), (imagined(names), 0.25)]
    training.train(out / "answers", thinker, sources, names, ANSWER_STEPS, rate=1.2e-3, seed=1)
    save(out, "answers")


def save(out: Path, last: str) -> None:
    """Write `out`/thinker.safetensors from the parts that have been trained so far. `last` is the training stage from
    which the thinker is taken.
    """
    parts = {
        "thinker": trained_thinker(out / last),
        "thinker.visual": trained(vision_training.new_tower(), out / "vision"),
        "thinker.audio_tower": trained(audio_training.new_tower(), out / "audio"),
    }
    weights = {f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    save_weights(weights, out / "thinker.safetensors")


def _names(out: Path) -> Path:
    """The directory of the tokenizer's files, which are written if they are missing."""
    directory = out / "tokenizer"
    tokenizer(directory)
    return directory


STAGES = {
    "vision": teach_seeing,
    "audio": teach_hearing,
    "thinker": teach_thinking,
    "observe": observe,
    "answers": teach_answering,
}


def main() -> None:
    stage_command.run("Train the demo model's towers and thinker: seeing, hearing and answering.", STAGES)


if __name__ == "__main__":
    main()
