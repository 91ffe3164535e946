"""Shows how much CPU time each process of a server uses for each kind of work.

    python scripts/profile_stages.py --model-path demo/qwen3-omni-demo --streams 1 --streams 8 --streams 32

The script starts a server with one process for each stage, and `sgl-omni bench` sends it requests without a pause.
First, the script reads the CPU time of each process over --seconds. Then py-spy (a package that SGLang requires) takes
samples of the stacks of the busy processes. While py-spy reads a stack, the process is stopped. So py-spy takes the
samples of one process after the other. For each sample, the script looks for the innermost function that matches a
pattern in `KINDS`. The sample gets the kind of this pattern. The printed tables are Markdown. Their unit is
milliseconds of CPU time per second.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import psutil
from server_process import PROGRAM, ServerProcess

HERE = Path(__file__).parents[1]

KINDS: dict[str, str] = {
    "compiled layers": r"/compiled_layers|/compiled_frames|/cpu_units|cpp_fused|torchinductor",
    "matrix products": r"gemm|gemv|dnnl|mkldnn|mkl_|openblas|addmm|matmul|\bbmm\b|\bmm_|linear|conv(olution|\d?d)",
    "attention": r"attention|sdpa|flash|decode_attn",
    "sampling": r"sampl|draws|softmax|argmax|multinomial|grammar",
    "copies": r"memcpy|memmove|copy_|index_put|index_select|index_kernel|CatKernel|gather|scatter",
    "other torch operations": r"libtorch|/torch/|at::native|c10",
    "SGLang's scheduling": r"/sglang/",
    "messages": r"zmq|msgspec|/wire/|/collector|pickle",
    "HTTP, JSON, base64": r"aiohttp|/gateway/|json|base64|asyncio|uvloop|_ssl|socket",
    "our Python": r"/stages/|/omni_pipeline/",
}
"""For each kind of work, a pattern for the function or the file that does it. The first pattern that matches counts."""

OTHER = "other"

_KINDS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}
# If one of these functions is the innermost function, the thread waits.
_WAITS = re.compile(r"^(poll|epoll_wait|select|clock_nanosleep|pthread_cond_\w+|PyThread_acquire_lock_timed|syscall) ")
_THREAD = re.compile(r"thread \((\d+)\)")


def kind_of(stack: str) -> str:
    """The kind of work of one sample. `stack` is a line of py-spy's raw format without its count: functions with their
    files, outermost first, separated by semicolons.
    """
    for frame in reversed(stack.split(";")):
        for kind, pattern in _KINDS.items():
            if pattern.search(frame):
                return kind
    return OTHER


def divide(used: Mapping[int, float], profile: Iterable[str]) -> dict[str, float]:
    """Divides the CPU time of a process among the kinds of work.

    Args:
        used: CPU time of each thread, by thread id.
        profile: Samples, as lines of py-spy's raw format. Samples of waiting threads are ignored. py-spy does not
            recognise all of them.
    """
    counts: dict[int, Counter[str]] = {thread: Counter() for thread in used}
    for line in profile:
        stack, _, count = line.rstrip().rpartition(" ")
        named = _THREAD.match(stack)
        if named and int(named[1]) in counts and not _WAITS.match(stack.rpartition(";")[2]):
            counts[int(named[1])][kind_of(stack)] += int(count)
    kinds: dict[str, float] = {}
    for thread, found in counts.items():
        samples = found or Counter([OTHER])
        for kind, number in samples.items():
            kinds[kind] = kinds.get(kind, 0.0) + used[thread] * number / samples.total()
    return kinds


def processes(server: ServerProcess) -> dict[str, psutil.Process]:
    """The server's processes by name. The gateway is the main process."""
    main, *others = server.processes()
    found = {"gateway": main}
    for process in others:
        title = " ".join(process.cmdline()).strip()
        if title.startswith("sgl-omni: ") and "fork server" not in title:
            found[title.removeprefix("sgl-omni: ")] = process
    return found


def cpu_seconds(process: psutil.Process) -> dict[int, float]:
    """The CPU time that each thread has used, by thread id."""
    return {thread.id: thread.user_time + thread.system_time for thread in process.threads()}


def py_spy() -> str:
    """Path of the installed program."""
    [program] = [file for file in metadata.files("py-spy") or [] if file.name == "py-spy"]
    return str(program.locate())


def profile(process: psutil.Process, seconds: float) -> list[str]:
    """Samples of the process, as lines of py-spy's raw format."""
    with tempfile.NamedTemporaryFile(suffix=".raw") as output:
        command = [py_spy(), "record", "--native", "--threads", "--full-filenames", "--format", "raw", "--rate", "50"]
        command += ["--duration", f"{seconds:g}", "--output", output.name, "--pid", str(process.pid)]
        subprocess.run(command, check=True, capture_output=True)
        return Path(output.name).read_text().splitlines()


@contextmanager
def load(server: ServerProcess, output: str, streams: int) -> Iterator[None]:
    """Within the block, `streams` clients of `sgl-omni bench` ask the server without a pause."""
    command = [*PROGRAM, "bench", "--url", server.url, "--output", output, "--concurrency", str(streams)]
    bench = subprocess.Popen([*command, "--requests", "100000"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(5.0)  # until all streams have begun
        yield
        if bench.poll() is not None:
            raise SystemExit("the bench ended too early")
    finally:
        bench.terminate()
        bench.wait()


def measure(server: ServerProcess, output: str, streams: int, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time per second, for each process and each kind of work."""
    with load(server, output, streams):
        found = processes(server)
        before, began = {name: cpu_seconds(process) for name, process in found.items()}, time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        used = {
            name: {
                thread: 1000 * (after - before[name].get(thread, 0.0)) / passed
                for thread, after in cpu_seconds(process).items()
            }
            for name, process in found.items()
        }
        busy = sorted(
            (name for name in used if sum(used[name].values()) >= 5), key=lambda name: -sum(used[name].values())
        )
        return {name: divide(used[name], profile(found[name], seconds / 2)) for name in busy}


def table(output: str, streams: int, measured: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row for each process and a column for each kind of work."""
    kinds = [kind for kind in [*KINDS, OTHER] if any(row.get(kind, 0) >= 5 for row in measured.values())]
    lines = [
        f"| {output}, {streams} stream{'s' * (streams > 1)} | all | {' | '.join(kinds)} |",
        "|---" * (2 + len(kinds)) + "|",
    ]
    everything = [kind for row in measured.values() for kind in row]
    sums = {kind: sum(row.get(kind, 0.0) for row in measured.values()) for kind in everything}
    for name, row in [*measured.items(), ("all processes", sums)]:
        cells = [f"{row.get(kind, 0):.0f}" if row.get(kind, 0) >= 1 else "" for kind in kinds]
        lines.append(f"| {name} | {sum(row.values()):.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--output", action="append", choices=["text", "speech"], help="kind of the answers; repeatable")
    parser.add_argument("--streams", action="append", type=int, help="number of simultaneous answers; repeatable")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement of the CPU time")
    parser.add_argument("serve_arguments", nargs="*", help="further arguments of `sgl-omni serve`, after --")
    options = parser.parse_args()
    layout = ["--config", str(HERE / "configs/qwen3_omni_speech.yaml"), "--model-path", str(options.model_path)]
    arguments = [*layout, *options.serve_arguments]
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(arguments, Path(folder) / "server.log", with_parent=True) as server,
    ):
        server.wait_until_ready()
        for output in options.output or ["text", "speech"]:
            for streams in options.streams or [1, 8, 32]:
                measured = measure(server, output, streams, options.seconds)
                print(table(output, streams, measured), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
