"""Measures the reference's errors in bfloat16, stage by stage, and prints a table of the errors and of the resulting
limits.

    make install
    .venv/bin/python -m tests.rounding.measure            # the table, as docs/gpu-check.md has it
    .venv/bin/python -m tests.rounding.measure --write    # and write tests/rounding/measured.json again

Hugging Face's modules in bfloat16 on the CPU are compared with the same modules in float32 on the same inputs. The
program measures three checkpoints: the two random checkpoints that the tests use, and the demo model. It takes some
minutes on one core, and needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from stages.preprocessing.features import Features
from tests.conftest import ROOT
from tests.equality.conversations import Kit
from tests.rounding import cases, limits, stages
from tests.rounding.deviations import Figures
from tests.rounding.reference import RoundedReference


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what bfloat16 does to the reference.")
    parser.add_argument("--write", action="store_true", help=f"write {limits.FILE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    measured: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="omni-bfloat16-") as directory:
        kit = media_kit(Path(directory))
        for name in limits.CHECKPOINTS:
            figures = measure(name, kit)
            measured[name] = {figure: float(f"{value:.3g}") for figure, value in figures.items()}
            print(f"measured {name}", file=sys.stderr, flush=True)
    print(table(measured))
    if options.write:
        limits.FILE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return 0


def media_kit(directory: Path) -> Kit:
    """A `Kit` that makes media in a directory, which also has the committed media."""
    for file in (ROOT / "tests" / "data").glob("*.*"):
        shutil.copy(file, directory)
    return Kit(directory, directory)


def measure(name: str, kit: Kit) -> Figures:
    """All measured errors of the reference on one checkpoint."""
    path = cases.checkpoint(name)
    truth = RoundedReference(path, torch.float32)
    rounded = stages.ReferenceStages(RoundedReference(path, torch.bfloat16))
    speeches = cases.record(truth, kit)
    given = stages.media(kit, Features(truth.processor))
    end = truth.model.config.talker_config.codec_eos_token_id
    return {
        **stages.compare_encoders(rounded, stages.ReferenceStages(truth), given),
        **cases.compare_texts(rounded.reference, truth, cases.conversations(kit)),
        **stages.compare_talker(rounded, speeches, end),
        **stages.compare_predictor(rounded, speeches),
        **stages.compare_vocoder(rounded, speeches),
    }


def table(measured: Mapping[str, Figures]) -> str:
    """A Markdown table of the measured value and the limit of each figure on each checkpoint."""
    lines = [f"| figure | {' | '.join(measured)} |", f"|---|{'---|' * len(measured)}"]
    figures = dict.fromkeys(figure for own in measured.values() for figure in own)
    for figure in figures:
        cells = [
            f"{own[figure]:.3g} / {limits.limit(figure, own[figure]):.3g}" if figure in own else ""
            for own in measured.values()
        ]
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
