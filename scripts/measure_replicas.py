#!/usr/bin/env python3
"""Measures the throughput of a server with one, two and four replicas of the stages that speak.

    python scripts/make_tiny_checkpoint.py --out checkpoints/nano --preset nano
    python scripts/measure_replicas.py --model-path checkpoints/nano

The gateway, the workers and the messages are those of the server. Only the steps of the model are simulated: each step
*sleeps* for as long as a step takes on a GPU, as if each replica had its own GPU. The *laws* of `step_law` give these
times. So a few cores can show how much replicas help when GPUs are the bottleneck. All times are multiplied by --slow,
so that the cores are not the bottleneck. The option --batch limits the number of utterances on which each replica of
the talker works at a time, as if its KV cache had no room for more. With more than one utterance, the throughput of a
single replica varies by up to 40 % from run to run. Its utterances may form one group or two groups, and two groups
need more steps.

The script prints a table. The exit status is 1 in these cases: two replicas have less than 1.9 times the throughput of
one replica; four replicas have less than 3.6 times this throughput; a single stream is more than 5 % slower with
several replicas than with one replica.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from measure_step_law import bench
from msgspec import Struct
from step_law.server import server_by_law

LEAST = {2: 1.9, 4: 3.6}
"""The throughput must grow by at least these factors. The keys are the numbers of replicas."""

MOST_LOSS = 0.05
"""The maximum share of its throughput that a single stream may lose with replicas."""


class Measured(Struct, frozen=True):
    """The throughput with one number of replicas, in requests per second. It is measured with a single stream, and with
    many streams together.
    """

    alone: float
    together: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    found: dict[int, Measured] = {}
    print("| replicas | requests/s, 1 stream | requests/s, many streams | gain |", "|---|---|---|---|", sep="\n")
    for number in options.replicas:
        found[number] = measure(number, options)
        print(row(number, found), flush=True)
    broken = judge(found)
    for line in broken:
        print(line)
    return 1 if broken else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="a tiny checkpoint")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="numbers of replicas, 1 first")
    parser.add_argument("--slow", type=float, default=6.0, help="factor by which each step is slower than its law")
    parser.add_argument("--batch", type=int, default=1, help="utterances that a replica works on at a time")
    parser.add_argument("--queue", type=float, default=2.0, help="streams, divided by (--batch × largest --replicas)")
    parser.add_argument("--tokens", type=int, default=3, help="text tokens of each answer")
    parser.add_argument("--audio-frames", type=int, default=12, help="codec frames of each answer")
    parser.add_argument("--rounds", type=int, default=8, help="number of requests of each stream")
    return parser


def measure(replicas: int, options: argparse.Namespace) -> Measured:
    """Start a server with this number of replicas, and measure one stream and enough streams for all replicas."""
    # There are more streams than utterances on which all talkers together can work at a time, even with the most
    # replicas. While the talkers work on some utterances, the thinker can generate the text of the next answers.
    streams = round(options.queue * options.batch * max(options.replicas))
    settings = [f"stages.{stage}.options.slow={options.slow}" for stage in ("talker_ar", "code_predictor", "code2wav")]
    settings.append(f"stages.talker_ar.options.max_running_requests={options.batch}")
    shape = ["--output", "speech", "--tokens", str(options.tokens), "--audio-frames", str(options.audio_frames)]
    rates = []
    with server_by_law("split", options.model_path, settings, replicas) as server:
        for at_once in (1, streams):
            load = ["--concurrency", str(at_once), "--requests", str(options.rounds * at_once)]
            [level] = bench(server, [*load, *shape])["levels"]
            rates.append(level["completed"] / level["seconds"])
    return Measured(*rates)


def row(number: int, found: Mapping[int, Measured]) -> str:
    gain = found[number].together / found[min(found)].together
    return f"| {number} | {found[number].alone:.3f} | {found[number].together:.3f} | {gain:.2f} |"


def judge(found: Mapping[int, Measured]) -> list[str]:
    """A sentence for each limit that the measurements break. All entries are compared with the entry that has the
    fewest replicas.
    """
    one = found[min(found)]
    broken = []
    for number, measured in found.items():
        gain = measured.together / one.together
        if number in LEAST and gain < LEAST[number]:
            broken.append(f"{number} replicas bring {gain:.2f} times the throughput, not {LEAST[number]}.")
        if measured.alone < (1 - MOST_LOSS) * one.alone:
            loss = 1 - measured.alone / one.alone
            broken.append(f"With {number} replicas, a single stream loses {loss:.0%} of its throughput.")
    return broken


if __name__ == "__main__":
    sys.exit(main())
