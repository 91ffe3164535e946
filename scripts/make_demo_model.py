#!/usr/bin/env python3
"""Train the demo model: a Qwen3-Omni of 15 million parameters that understands pictures and speech and can speak, for a
few kinds of content.

    .venv/bin/python scripts/make_demo_model.py --work out/demo --out checkpoints/qwen3-omni-demo

Two processes with one thread each run at the same time. The first process trains the towers and the thinker. The second
process trains the codec, the vocoder and the talker. Then a last process trains the talker on prompts with pictures,
clips and spoken questions. The script makes all pictures, clips, speech and weights from seeds. The training can be
stopped at any time; the same command resumes it. Losses are in WORK/*/losses.png.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(__file__).parent
# The modules that run at the same time, each in its own process, with their stages.
LINES = {
    "thinker.recipe": ("vision", "audio", "thinker", "observe", "answers"),
    "voice.recipe": ("codec", "vocoder", "talker"),
}
# The module and the stages that run after both processes have ended.
LAST = ("voice.recipe", ("converse",))
PARTS = ("thinker.safetensors", "talker.safetensors", "code2wav.safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the demo model. Nothing is downloaded.")
    parser.add_argument("--work", type=Path, default=Path("out/demo"), help="directory of the training state")
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints/qwen3-omni-demo"), help="directory of the checkpoint"
    )
    options = parser.parse_args(arguments)

    started = time.perf_counter()
    running = {line: start(line, stages, options.work) for line, stages in LINES.items()}
    try:
        failed = [line for line, process in running.items() if process.wait() != 0]
        if not failed:
            line, stages = LAST
            running[line] = start(line, stages, options.work)
            failed = [line] if running[line].wait() != 0 else []
    except KeyboardInterrupt:
        print("make_demo_model: stopped; run the same command to resume", file=sys.stderr)
        return 130
    finally:
        for process in running.values():
            process.terminate()
    if failed:
        print(f"make_demo_model: {' and '.join(failed)} failed; see above", file=sys.stderr)
        return 1

    sys.path.insert(0, str(SCRIPTS))
    from demo_model.checkpoint.export import assemble  # imported here, because the import takes seconds

    assemble([options.work / part for part in PARTS], options.out)
    print(f"{options.out}: made in {(time.perf_counter() - started) / 60:.0f} minutes")
    return 0


def start(line: str, stages: Sequence[str], work: Path) -> "subprocess.Popen[bytes]":
    """Start a process that runs `stages` of the module `line`."""
    command = [sys.executable, "-m", f"demo_model.{line}", "--out", str(work), *stages]
    paths = [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
