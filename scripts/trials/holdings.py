"""Observes the resources that a server holds, so that two moments at which the server is idle can be compared."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from trials.service import Service
from trials.shared_memory import shared_memory

# Gauges that may have different values at two times at which the server is idle. Caches keep their entries, a separate
# check covers memory, and the capacity for speech is an estimate that changes with every spoken answer.
_MAY_DIFFER = ("cached", "cache_bytes", "resident_memory", "voice_capacity")
# A process connects to another process at its first message, abort or error, and then stays connected. So a process may
# have one more socket and one more event descriptor for each process of the server.
_OPENED_AT_FIRST_USE = (" socket", " anon_inode")
_PAUSE = 0.1


class Holdings(Struct, frozen=True):
    """The resources that a server holds at one moment.

    Attributes:
        gauges: The gauges of `/metrics` that count things in use, such as requests and KV tokens. A key consists of the
            name and the labels of the gauge.
        connections: The number of TCP connections that the main process has.
        files: The numbers of open files. A key consists of the name of the process and the kind of file.
        processes: The number of processes with each name.
        shared_memory: The files in /dev/shm.
        temporary: The temporary files.
    """

    gauges: dict[str, float]
    connections: int
    files: dict[str, int]
    processes: dict[str, int]
    shared_memory: list[str]
    temporary: list[str]


async def observe(service: Service, session: aiohttp.ClientSession) -> Holdings:
    """The holdings of `service` now. `session` should have one connection to the server, which counts too."""
    gauges = await read_gauges(service, session)
    files: Counter[str] = Counter()
    names: Counter[str] = Counter()
    family = service.processes()
    connections = 0
    for process in family:
        try:
            name = process.cmdline()[0].removeprefix("sgl-omni: ")
            name = "main" if process is family[0] else name
            names[name] += 1
            files.update(f"{name} {kind}" for kind in _open_files(process.pid))
            if process is family[0]:
                connections = sum(1 for each in process.net_connections("tcp") if each.raddr)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
    temporary = sorted(str(path.relative_to(service.temporary)) for path in service.temporary.rglob("*"))
    segments = sorted(map(str, shared_memory(family)))
    return Holdings(gauges, connections, dict(files), dict(names), segments, temporary)


async def read_gauges(service: Service, session: aiohttp.ClientSession) -> dict[str, float]:
    """The gauges on `/metrics` that count things in use."""
    page = await read_metrics(service, session)
    return {
        f"{sample.name}{_labels(sample.labels)}": sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if family.type == "gauge" and not any(word in family.name for word in _MAY_DIFFER)
    }


async def read_restarts(service: Service, session: aiohttp.ClientSession) -> dict[str, float]:
    """The number of restarts of each worker."""
    page = await read_metrics(service, session)
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "omni_worker_restarts_total"
    }


async def read_metrics(service: Service, session: aiohttp.ClientSession) -> str:
    """The page `/metrics`. Raises aiohttp.ClientError or TimeoutError if the server does not send it."""
    async with session.get(f"{service.url}/metrics", timeout=aiohttp.ClientTimeout(10)) as response:
        response.raise_for_status()
        return await response.text()


def differences(before: Holdings, now: Holdings) -> list[str]:
    """The differences in words: gauges with another value, and resources that `now` holds and `before` does not."""
    found = [
        f"{name} {now.gauges.get(name, 0):g}, was {before.gauges.get(name, 0):g}"
        for name in sorted(before.gauges.keys() | now.gauges.keys())
        if now.gauges.get(name, 0) != before.gauges.get(name, 0)
    ]
    if now.connections > before.connections:
        found.append(f"connections {now.connections}, were {before.connections}")
    lazy = sum(before.processes.values())
    for name, count in sorted(now.files.items()):
        then = before.files.get(name, 0)
        if count > then + (lazy if name.endswith(_OPENED_AT_FIRST_USE) else 0):
            found.append(f"open files: {name} {count}, were {then}")
    for name, count in sorted(now.processes.items()):
        if count > before.processes.get(name, 0):
            found.append(f"processes: {name} {count}, were {before.processes.get(name, 0)}")
    found += [f"shared memory {path}" for path in now.shared_memory if path not in before.shared_memory]
    found += [f"temporary file {path}" for path in now.temporary if path not in before.temporary]
    return found


async def wait_until_free(
    service: Service, session: aiohttp.ClientSession, before: Holdings, soon: float, longest: float
) -> tuple[float, list[str], list[str]]:
    """Wait until the server holds no more than `before`.

    Returns:
        Three values: the seconds that this took, the resources that were still held after `soon` seconds, and the
        resources that were still held after `longest` seconds.
    """
    begin = time.monotonic()
    late: list[str] = []
    while True:
        try:
            left = differences(before, await observe(service, session))
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            left = [f"/metrics does not answer: {type(error).__name__}"]
        passed = time.monotonic() - begin
        if not left:
            return passed, late, []
        if passed > soon and not late:
            late = left
        if passed > longest:
            return passed, late, left
        await asyncio.sleep(_PAUSE)


def _open_files(pid: int) -> Iterator[str]:
    """The kind of each open file of a process. The kind is the file's path, or ``socket``, ``pipe`` and so on."""
    directory = Path(f"/proc/{pid}/fd")
    with suppress(OSError):  # the process has ended
        for handle in directory.iterdir():
            with suppress(OSError):  # the file was closed
                yield os.readlink(handle).partition(":[")[0]


def _labels(labels: dict[str, str]) -> str:
    return "{" + ", ".join(labels.values()) + "}" if labels else ""
