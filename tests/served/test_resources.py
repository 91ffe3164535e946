"""A server uses little memory, and hardly any CPU time when it is idle. After its end, no processes and no files are
left, and its port is free.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from trials.shared_memory import shared_memory

from omni_pipeline.config.schema import Server as ServerConfig
from omni_pipeline.service import listen
from stages.preprocessing.readers.pool import reader_count
from tests.served.streams import DONE, stream, text_of
from tests.server import Server, split

MEDIA: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is this?"}],
    "images": ["tests/data/cars.jpg"],
    "audios": ["tests/data/query_to_cars.wav"],
    "videos": ["tests/data/draw.mp4"],
}
LONG: dict[str, Any] = MEDIA | {"max_tokens": 20_000, "ignore_eos": True}

MOST_MEMORY = 3 * 1024**3
MOST_IDLE_CPU = 0.01
IDLE_SECONDS = 5
IDLE_TRIES = 4


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_six_workers_together_fit_in_three_gigabytes(server: Server) -> None:
    """The test adds up the PSS of all processes: workers, main process, fork server, readers and the readers' parent.
    The PSS counts shared pages only once.

    The memory is measured after a request with every kind of media.
    """
    assert server.post(MEDIA | {"max_tokens": 16})[0] == 200
    family = server.processes()
    readers = reader_count(None) + 1
    assert len(family) == 9 + readers
    sizes = [(process.name(), pss(process.pid)) for process in family]
    together = sum(size for _, size in sizes)
    print(f"PSS in MB: {[(name, size >> 20) for name, size in sizes]}, together {together >> 20}")
    assert together < MOST_MEMORY


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no PSS")


def test_the_engine_leaves_the_processor_to_other_stages(server: Server) -> None:
    pids = {name: worker["pid"] for name, worker in server.health()[1]["workers"].items()}
    niceness = {name: psutil.Process(pid).nice() for name, pid in pids.items()}
    assert niceness == {name: 5 if name == "thinker" else 0 for name in pids}


def test_idle_processes_use_no_cpu(server: Server) -> None:
    """Processes that busy-wait use CPU time in every interval, so one idle interval is enough.

    Other programs on the machine make the same work take more CPU time, and the kernel counts CPU time in units of
    10 ms.
    """
    server.until(lambda: not any(server.live_requests().values()), 5)
    intervals = []
    for _ in range(IDLE_TRIES):
        intervals.append(cpu_used(server.processes(), IDLE_SECONDS))
        if max(intervals[-1].values()) <= MOST_IDLE_CPU * IDLE_SECONDS:
            return
    raise AssertionError(f"CPU seconds by process id: {intervals}")


def cpu_used(processes: list[psutil.Process], seconds: float) -> dict[int, float]:
    """The CPU seconds that each process uses during the next `seconds`."""
    before = {process: cpu_seconds(process) for process in processes}
    time.sleep(seconds)
    return {process.pid: round(cpu_seconds(process) - before[process], 2) for process in processes}


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# --- when it ends -----------------------------------------------------------------------------------------------------


@pytest.fixture
def another_server(
    tiny_checkpoint: Path, repository: Path, run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server for one test. Its temporary files are in `run_root`, except for compiled kernels, which are kept
    elsewhere.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    server = Server(tiny_checkpoint, repository, split()).start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()


def check_nothing_is_left(server: Server, family: list[psutil.Process], segments: set[Path], run_root: Path) -> None:
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert [path for path in segments if path.exists()] == []
    assert list(run_root.iterdir()) == []
    with listen(ServerConfig(port=int(server.url.rpartition(":")[2]))):
        pass  # the port is free again


def test_sigterm_lets_answers_end_and_leaves_nothing(another_server: Server, run_root: Path) -> None:
    server = another_server
    assert server.process is not None
    body = MEDIA | {"max_tokens": 60, "ignore_eos": True}
    expected = server.post(body)[1]["choices"][0]["message"]["content"]
    family, segments = server.processes(), shared_memory(server.processes())
    assert list(run_root.iterdir()) != []
    with stream(server, body) as events:
        next(events)
        server.process.send_signal(signal.SIGTERM)
        assert text_of(events) == expected
    assert server.process.wait(20) == 0
    check_nothing_is_left(server, family, segments, run_root)


def test_kill_of_a_worker_ends_its_requests_and_it_is_replaced(another_server: Server, run_root: Path) -> None:
    """The thinker's process is killed during an answer. The stream of this answer ends at once with an error, and
    everything else still works.
    """
    server = another_server
    assert server.process is not None
    family, segments = server.processes(), shared_memory(server.processes())
    thinker = next(process for process in family if process.name().endswith("thinker"))
    with stream(server, LONG) as events:
        next(events)
        next(events)
        thinker.kill()
        begin = time.monotonic()
        *_, last = events
        assert time.monotonic() - begin < 2
    assert last != DONE
    assert (last["error"]["code"], last["error"]["type"]) == ("worker_lost", "service_unavailable_error")
    assert "thinker" in last["error"]["message"]

    status, health = server.health()
    assert (status, health["status"]) == (503, "unavailable")
    assert "thinker was killed by SIGKILL" in health["problem"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert len(client.models.list().data) == 1
    server.until(server.healthy, 60)
    assert server.post(MEDIA)[0] == 200
    assert server.health()[1]["workers"]["thinker"]["restarts"] == 1
    family = list({*family, *server.processes()})
    assert server.stop() == 0
    check_nothing_is_left(server, family, segments, run_root)


def test_kill_of_the_main_process_leaves_nothing(another_server: Server, run_root: Path) -> None:
    server = another_server
    assert server.process is not None
    family, segments = server.processes(), shared_memory(server.processes())
    with stream(server, LONG) as events:
        next(events)
        server.process.kill()
        server.process.wait()
    check_nothing_is_left(server, family, segments, run_root)
