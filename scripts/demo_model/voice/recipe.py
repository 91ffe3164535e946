"""Runs the training stages of the codec, the vocoder and the talker, in order. An interrupted stage is resumed.

PYTHONPATH=scripts python -m demo_model.voice.recipe --out out/demo codec vocoder talker converse

The last stage needs the results of `thinker.recipe`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import Qwen2Tokenizer

from demo_model.checkpoint.export import save_weights
from demo_model.checkpoint.shapes import SHAPES, config_json, model_configuration, token_embeddings
from demo_model.checkpoint.tokenizer import tokenizer
from demo_model.thinker.training import trained_thinker
from demo_model.towers.tower_outputs import Observed
from demo_model.training import stage_command
from demo_model.training.training_run import trained
from demo_model.voice import mel, talker_training, vocoder
from demo_model.voice.codec import SpeechCodec
from demo_model.voice.talker_batches import Reply, TalkerInputs, UserTurns
from demo_model.voice.talker_prompts import PromptMaker
from demo_model.voice.talker_training import TalkerLesson
from demo_model.voice.thinker_states import Recalled
from demo_model.voice.vocoder import EncodedRecording
from demo_model.world.spoken_lines import SILENT_FRAMES, lines, repetitions
from demo_model.world.synthetic_voices import Words
from demo_model.world.word_times import token_at_each, token_moments

TEXTS = 2000
"""The number of different texts that the talker learns."""
_CODEC_LINES = 750
"""The number of spoken lines to which the codebooks are fitted."""
_VOCODER_STEPS = 26_000
_TALKER_STEPS = 4500
_ALONE = 0.6
"""The share of the talker's training steps that have no prompt. These are the first steps."""
_CONVERSE_STEPS, _CONVERSE_RATE = 1200, 6e-4
_RECALLED_EVERY = 4
"""In the training stage `converse`, some of the steps have prompts with random media rows. This number is the distance
between two of these steps. The prompts of all other steps have the thinker's states.
"""
_SEED = 4


def make_codec(out: Path) -> SpeechCodec:
    """Load the codec from `out`/codec.safetensors. If there is no such file, fit a codec to the corpus and write it."""
    path = out / "codec.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        spoken = tqdm(lines(TEXTS, _SEED)[:_CODEC_LINES], desc="features of speech", mininterval=5)
        features = torch.cat([mel.features(line.sound) for line in spoken])
        SpeechCodec.fit(features, SHAPES.code_groups, SHAPES.codebook, _SEED, progress=print).save(path)
    return SpeechCodec.load(path)


def make_vocoder(out: Path) -> None:
    """Train Code2Wav, and write `out`/code2wav.safetensors with the names that the weights have in the checkpoint.

    Code2Wav learns from the lines whose texts occur among the random answers of `repetitions`. Each line is repeated as
    often as in the training of the talker. Most random lines are lists of things. So without repetitions, words that
    occur only in one answer, such as "house" and "shapes", would be rare.
    """
    codec = make_codec(out)
    often = repetitions(_SEED)
    utterances = []
    for line in tqdm([line for line in lines(TEXTS, _SEED) if line.text in often], desc="recordings", mininterval=5):
        sound = line.sound
        utterances += [EncodedRecording(sound, codec.encode(mel.features(sound)))] * often[line.text]
    config = config_json()["code2wav_config"]
    rows = codec.rows(torch.cat([utterance.codes for utterance in utterances], dim=1), config["hidden_size"])
    model = vocoder.new_vocoder(config, _SEED, rows)
    vocoder.train(out / "vocoder", model, utterances, steps=_VOCODER_STEPS, seed=_SEED)
    save_part(model, "code2wav", out / "code2wav.safetensors")


def make_talker(out: Path) -> None:
    """Train the talker with its code predictor, and write `out`/talker.safetensors.

    The weights have the names that they have in the checkpoint.
    """
    lessons, inputs, prompts, neighbours = _school(out)

    def prompt(step: int, generator: torch.Generator) -> UserTurns:
        """Return an empty prompt in the first steps, and a random prompt in later steps. With prompts, a new talker
        would speak the words of the prompt instead of the words of the answer.
        """
        make = prompts.none if step < _ALONE * _TALKER_STEPS else prompts.kind(generator)
        return make(generator)

    pupil = talker_training.TalkerInTraining(inputs.talker)
    talker_training.train(out / "talker", pupil, inputs, lessons, prompt, neighbours, steps=_TALKER_STEPS, seed=_SEED)
    save_part(inputs.talker, "talker", out / "talker.safetensors")


def converse(out: Path) -> None:
    """Train the talker further with prompts that contain the trained thinker's states, and rewrite the talker's file.

    From such prompts, the talker learns to speak in the same way after any picture, clip or spoken question.
    """
    lessons, inputs, prompts, neighbours = _school(out)
    pupil = trained(talker_training.TalkerInTraining(inputs.talker), out / "talker")
    observed = Observed(out / "tokenizer")
    observed.load(out / "observed.pt")
    thinker = trained_thinker(out / "answers")
    recalled = Recalled(prompts, thinker, observed, _SEED, inputs.config.talker_config.accept_hidden_layer)

    def prompt(step: int, generator: torch.Generator) -> UserTurns:
        return recalled(generator) if step % _RECALLED_EVERY else prompts.kind(generator)(generator)

    talker_training.train(
        out / "converse",
        pupil,
        inputs,
        lessons,
        prompt,
        neighbours,
        steps=_CONVERSE_STEPS,
        rate=_CONVERSE_RATE,
        seed=_SEED,
    )
    save_part(inputs.talker, "talker", out / "talker.safetensors")


def _school(out: Path) -> tuple[list[TalkerLesson], TalkerInputs, PromptMaker, torch.Tensor]:
    """The data that the talker's training needs: the lessons, the inputs (with an untrained talker), the maker of
    prompts, and for each code the codes that are most similar to it.
    """
    codec = make_codec(out)
    spoken = make_codes(out, codec)
    codes = torch.cat([line.codes for line in spoken]).T
    inputs, tokens = untrained_inputs(out, codec.rows(codes, SHAPES.talker.hidden))
    often = repetitions(_SEED)
    lessons = [lesson for line in spoken for lesson in [_lesson(line, tokens)] * often.get(line.text, 1)]
    prompts = PromptMaker(inputs.talker, inputs.config, tokens)
    return lessons, inputs, prompts, talker_training.nearest_codes(codec.codebooks)


class SpokenLine(NamedTuple):
    """A line of the corpus with its codes [frames, groups] and the times of its words."""

    text: str
    speaker: str
    codes: torch.Tensor
    words: Words


def make_codes(out: Path, codec: SpeechCodec) -> list[SpokenLine]:
    """Every line of the corpus with its codes. The codes are computed once, and kept in `out`/codes.pt."""
    path = out / "codes.pt"
    if not path.exists():
        spoken = []
        for line in tqdm(lines(TEXTS, _SEED), desc="codes of speech", mininterval=5):
            sound, words = line.spoken()
            spoken.append((line.text, line.speaker, codec.encode(mel.features(sound)).T, words))
        torch.save(spoken, path)
    return [SpokenLine(*line) for line in torch.load(path)]


def _lesson(line: SpokenLine, tokens: Qwen2Tokenizer) -> TalkerLesson:
    encoded = tokens(line.text, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    seconds = mel.FRAME / mel.RATE
    frames = len(line.codes)
    moments = token_moments(len(line.text), line.words, starts, frames * seconds)
    said = torch.tensor(token_at_each(frames, seconds, moments))
    said[-SILENT_FRAMES:] = len(starts)
    return TalkerLesson(Reply(torch.tensor(encoded["input_ids"]), line.speaker), line.codes, said)


def untrained_inputs(out: Path, code_rows: torch.Tensor | None = None) -> tuple[TalkerInputs, Qwen2Tokenizer]:
    """The inputs for a new talker, and the tokenizer of the texts."""
    config = model_configuration()
    tokens = tokenizer(out / "tokenizer")
    talker = talker_training.new_talker(config.talker_config, _SEED, code_rows)
    newline = tokens("\n").input_ids[0]
    return TalkerInputs(talker, config, torch.from_numpy(token_embeddings()), newline), tokens


def save_part(module: torch.nn.Module, prefix: str, path: Path) -> None:
    """Write the module's weights, with the names that they have in the whole checkpoint."""
    save_weights({f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}, path)


def load_part(module: torch.nn.Module, prefix: str, path: Path) -> None:
    """Load weights that `save_part` wrote."""
    module.load_state_dict({name.removeprefix(prefix + "."): tensor for name, tensor in load_file(path).items()})


def main() -> None:
    stage_command.run("Train the demo model's voice.", STAGES)


STAGES = {"codec": make_codec, "vocoder": make_vocoder, "talker": make_talker, "converse": converse}

if __name__ == "__main__":
    main()
