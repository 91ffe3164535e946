#!/usr/bin/env python3
"""Makes the tables of docs/placement.md from the memory plan, and from SGLang's own code on simulated GPUs.

    python scripts/placement_tables.py           # print the tables
    python scripts/placement_tables.py --write   # write the tables into the document

Tests compare the document with the output of this script.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fake_gpu import Accelerator
from faked_starts import checkpoints
from faked_starts.data import STAGES
from faked_starts.layouts import starts
from faked_starts.resolution import build, sample
from faked_starts.resolution import resolve as resolve_engines
from faked_starts.tables import arguments, fitting
from msgspec import Struct, structs

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.deployment.checkpoint import Checkpoint, Stored, describe_checkpoint
from omni_pipeline.deployment.memory_plan import Holding, Placement, place
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.gpus import Gpu, parse
from stages.checkpoint.tensor_shapes import fp8_tensors
from stages.topology import QWEN3_OMNI

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "placement.md"
SIZES = checkpoints.SIZES

GIB = 1024**3


class TableRow(Struct, frozen=True):
    """One row of a table: a configuration for some GPUs.

    Attributes:
        flags: The flags that the document shows. They must mean the same configuration as `config`.
        shown: Whether the row's stages get a separate table.
    """

    flags: str
    config: Config
    fp8: bool = False
    shown: bool = False


def config(*, colocate: bool = False, text_only: bool = False, **gpus: list[int]) -> Config:
    stages = {name: StageConfig(gpus=indices) for name, indices in gpus.items()}
    return Config(model_path=str(SIZES), colocate=colocate, text_only=text_only, stages=stages)


ONE_GPU = (
    TableRow("--colocate", config(colocate=True), shown=True),
    TableRow("(nine processes)", config()),
    TableRow("--colocate", config(colocate=True), fp8=True),
    TableRow("(nine processes)", config(), fp8=True),
    TableRow("--text-only", config(text_only=True)),
)

SECTIONS: dict[str, tuple[TableRow, ...]] = {
    "1xH100-80GB": ONE_GPU,
    "1xH20-96GB": ONE_GPU,
    "1xH200-141GB": ONE_GPU,
    "2xH100-80GB": (
        TableRow("(thinker and encoders on 0, speech on 1)", config(), shown=True),
        TableRow("--gpu-thinker 0,1", config(thinker=[0, 1])),
        TableRow("(thinker and encoders on 0, speech on 1)", config(), fp8=True),
        TableRow("--text-only --gpu-thinker 0,1", config(text_only=True, thinker=[0, 1])),
    ),
    "4x24GB": (
        TableRow("--gpu-thinker 0,1,2,3", config(thinker=[0, 1, 2, 3])),
        TableRow(
            "--gpu-thinker 0,1,2,3 --gpu-image-encoder 0 --gpu-audio-encoder 1 --gpu-talker 2 --gpu-code-predictor 3 "
            "--gpu-code2wav 3",
            config(
                thinker=[0, 1, 2, 3],
                image_encoder=[0],
                audio_encoder=[1],
                talker_ar=[2],
                code_predictor=[3],
                code2wav=[3],
            ),
        ),
        TableRow(
            "--text-only --gpu-thinker 0,1,2,3 --gpu-image-encoder 0 --gpu-audio-encoder 1",
            config(text_only=True, thinker=[0, 1, 2, 3], image_encoder=[0], audio_encoder=[1]),
        ),
        TableRow(
            "--gpu-thinker 0,1 --gpu-talker 2 --gpu-code-predictor 2 --gpu-code2wav 2 --gpu-image-encoder 3 "
            "--gpu-audio-encoder 3",
            config(
                thinker=[0, 1],
                image_encoder=[3],
                audio_encoder=[3],
                talker_ar=[2],
                code_predictor=[2],
                code2wav=[2],
            ),
            fp8=True,
            shown=True,
        ),
    ),
}


def sections() -> dict[str, str]:
    """The Markdown of each section. The keys are the GPUs that the sections describe."""
    assert QWEN3_OMNI.checkpoint is not None
    plain = describe_checkpoint(str(SIZES), QWEN3_OMNI.checkpoint)
    light = {name: Stored(*stored) for name, stored in fp8_tensors(plain.config).items()}
    checkpoints = {False: plain, True: structs.replace(plain, tensors=light)}
    return {gpus: "\n".join(_section(parse(gpus), rows, checkpoints)) for gpus, rows in SECTIONS.items()}


def _section(gpus: tuple[Gpu, ...], layouts: Sequence[TableRow], checkpoints: dict[bool, Checkpoint]) -> Iterator[str]:
    placements = [place(resolve(layout.config, gpus), checkpoints[layout.fp8]) for layout in layouts]
    yield "| weights | flags | fits | requests at a time | KV tokens: thinker | talker | GiB taken of each GPU |"
    yield "|---|---|---|---|---|---|---|"
    for layout, placement in zip(layouts, placements, strict=True):
        yield _row(layout, placement)
    for layout, placement in zip(layouts, placements, strict=True):
        if layout.shown:
            yield ""
            yield f"In GiB, {_weights(layout)}{f' `{layout.flags}`' if '--' in layout.flags else ''}:"
            yield ""
            yield from _stages(placement)


def _weights(layout: TableRow) -> str:
    return "FP8" if layout.fp8 else "BF16"


def _row(layout: TableRow, placement: Placement) -> str:
    flags = f"`{layout.flags}`" if layout.flags.startswith("--") else layout.flags
    tokens = [placement.cache(stage) for stage in ("thinker", "talker_ar")]
    cells = [
        _weights(layout),
        flags,
        "yes" if placement.fits else "**no**",
        str(placement.requests) if placement.fits else "–",
        *(f"{cache.tokens:,}" if cache is not None and placement.fits else "–" for cache in tokens),
        ", ".join(f"{device.taken / GIB:.1f} of {device.usable / GIB:.1f}" for device in placement.devices),
    ]
    return f"| {' | '.join(cells)} |"


def _stages(placement: Placement) -> Iterator[str]:
    yield "| GPU | stage | weights | KV cache | state | peak | graphs | process | all | of the GPU |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for device in placement.devices:
        for holding in device.holdings:
            share = f"{holding.total / device.memory:.3f}"
            yield f"| {device.index} | {holding.stage} | {' | '.join(_parts(holding))} | {share} |"
        yield f"| {device.index} | kept free | | | | | | | {(device.memory - device.taken) / GIB:.2f} | |"


def _parts(holding: Holding) -> Iterator[str]:
    for part in ("weights", "cache", "state", "activations", "graphs", "process", "total"):
        size = getattr(holding, part)
        yield f"{size / GIB:.2f}" if size else "–"


def faked() -> dict[str, str]:
    """The Markdown of the tables about starts on simulated GPUs. The keys are the names of the tables. The call takes
    half a minute.
    """
    with tempfile.TemporaryDirectory() as directory, Accelerator() as accelerator:
        whole, small = Path(directory, "whole"), Path(directory, "small")
        whole.mkdir()
        small.mkdir()
        found = list(starts({kind: checkpoints.write(kind, whole) for kind in checkpoints.QUANTIZATION}))
        started = list(resolve_engines(accelerator, found))
        paths = {kind: checkpoints.write(kind, small, layers=2) for kind in checkpoints.QUANTIZATION}
        models = {
            (stage, kind): build(accelerator, sample(stage, path)) for kind, path in paths.items() for stage in STAGES
        }
        return {
            "layouts": fitting(found),
            "arguments": arguments(started, lambda stage, kind: models[stage, kind]),
        }


def filled(document: str, made: Mapping[str, str], kind: str = "plan") -> str:
    """The document with new text in every section of this kind. A section is the text between two marks."""
    marks = re.compile(rf"(<!-- {kind}: (\S+) -->\n).*?(<!-- end of {kind} -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", document)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tables of docs/placement.md.")
    parser.add_argument("--write", action="store_true", help="write them into the document instead of printing them")
    if parser.parse_args().write:
        document = filled(DOCUMENT.read_text(encoding="utf-8"), sections())
        DOCUMENT.write_text(filled(document, faked(), "faked start"), encoding="utf-8")
        return
    for name, text in (sections() | faked()).items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
