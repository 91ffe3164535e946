"""The command line of a module that trains in stages."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def run(description: str, stages: Mapping[str, Callable[[Path], object]]) -> None:
    """Do the stages that the command line names, in its order, on one thread."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="directory of what is trained, and its state")
    parser.add_argument("stages", nargs="+", choices=stages, help="what to do")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for stage in options.stages:
        stages[stage](options.out)
