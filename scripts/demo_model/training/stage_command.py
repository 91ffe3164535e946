"""Runs the command line of a module that trains in stages."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def run(description: str, stages: Mapping[str, Callable[[Path], object]]) -> None:
    """Run the stages that the command line names, in the order of the command line, on one thread."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="directory for trained parts and training state")
    parser.add_argument("stages", nargs="+", choices=stages, help="the stages to run, in order")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for stage in options.stages:
        stages[stage](options.out)
