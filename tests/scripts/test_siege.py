"""The checks of `siege.py` notice broken promises, and each attack sends the requests that its name describes.
`test_trials` runs the short form of `siege.py`.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import siege
from msgspec.structs import replace
from PIL import Image
from trials.conduct import Findings
from trials.holdings import Holdings, differences
from trials.hostile import media
from trials.hostile.client import HostileClient, Target
from trials.hostile.orders import AttackResult, attacks, kinds
from trials.memory_bound import ConfiguredLimits, memory_bound

GIB = 2**30
QUIET = siege.HonestPhase("text", {"answered": 100}, 0, 0.1, 0.2)
GOOD = siege.Siege(
    quiet=[QUIET],
    besieged=[replace(QUIET, p99=0.39)],
    bound={"at rest": 2 * GIB, "held_bytes": GIB},
    at_rest={"main": 2 * GIB},
    peak={"main": 3 * GIB},
    free_after=1.0,
    late=[],
    left=[],
    restarts=[],
    tracebacks=0,
    hostile=[AttackResult("giant-texts", 3, {"400 invalid_value": 3}, {})],
    different=[],
)


def broken(found: siege.Siege, *, timed: bool = True) -> list[str]:
    """The promises that are broken in the measured siege `found`."""
    findings = Findings()
    siege.judge(findings, siege.parser().parse_args(["--model-path", "x"]), found, timed=timed)
    return [check.promise for check in findings.checks if not check.kept]


def test_a_good_siege_breaks_nothing_and_has_a_report() -> None:
    assert broken(GOOD) == []
    assert [row[:2] for row in siege.tables(GOOD)["Honest clients"][1:]] == [["text", "quiet"], ["text", "siege"]]


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"besieged": [replace(QUIET, counts={"answered": 9, "engine": 1})]}, "honest clients get no errors"),
        ({"besieged": [replace(QUIET, wrong=1)]}, "every honest answer equals the answer on the quiet server"),
        (
            {"besieged": [replace(QUIET, p99=0.41)]},
            "p99 latency of each honest client is at most 2 × that of the quiet phase",
        ),
        ({"peak": {"main": 3 * GIB, "thinker": 1}}, "memory is at most 3072 MiB"),
        ({"late": ["omni_held_bytes 1, was 0"]}, "everything is free within 5 s after the siege"),
        ({"left": ["processes: x 2, were 1"]}, "everything is free within 5 s after the siege"),
        (
            {"hostile": [AttackResult("giant-texts", 1, {"500 internal_error": 1}, {"answer 500": 1})]},
            "hostile clients cause no forbidden effect",
        ),
        (
            {"hostile": [AttackResult("giant-texts", 0, {"client failed: OSError": 1}, {})]},
            "every hostile client attacks",
        ),
        ({"restarts": ["thinker 1×"]}, "no worker is restarted"),
        ({"tracebacks": 1}, "the log has no traceback"),
        ({"different": ["text 0"]}, "answers after the siege equal those before it"),
    ],
)
def test_what_breaks_a_promise_is_noticed(change: dict[str, Any], promise: str) -> None:
    assert broken(replace(GOOD, **change)) == [promise]


def test_latency_is_not_judged_where_time_depends_on_the_machine() -> None:
    assert broken(replace(GOOD, besieged=[replace(QUIET, p99=100.0)]), timed=False) == []


HELD = Holdings({"omni_requests_in_flight": 0.0}, 1, {"main pipe": 20}, {"main": 1}, [], ["run"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gauges": {"omni_requests_in_flight": 2.0}}, "omni_requests_in_flight 2, was 0"),
        ({"gauges": {"omni_requests_in_flight": 0.0, "omni_new": 1.0}}, "omni_new 1, was 0"),
        ({"files": {"main pipe": 20, "main socket": 2}}, "open files: main socket 2, were 0"),
        ({"connections": 2}, "connections 2, were 1"),
        ({"files": {"main pipe": 21}}, "open files: main pipe 21, were 20"),
        ({"processes": {"main": 1, "reader": 1}}, "processes: reader 1, were 0"),
        ({"shared_memory": ["/dev/shm/x"]}, "shared memory /dev/shm/x"),
        ({"temporary": ["run", "run/x"]}, "temporary file run/x"),
    ],
)
def test_everything_that_is_not_given_back_is_named(change: dict[str, Any], words: str) -> None:
    assert differences(HELD, HELD) == []
    assert differences(HELD, replace(HELD, **change)) == [words]


def test_connections_between_processes_may_open_at_their_first_use() -> None:
    assert differences(HELD, replace(HELD, files={"main pipe": 20, "main socket": 1})) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["server"]["limits"].update(held_bytes=GIB),
        lambda config: config["server"]["limits"].update(decoded_bytes=4 * GIB),
        lambda config: config["server"]["limits"].update(connections=9000),
        lambda config: config["stages"]["preprocessing"]["options"].update(readers=9),
        lambda config: config["stages"]["preprocessing"]["options"].update(max_image_pixels=10**9),
        lambda config: config["stages"]["image_encoder"]["options"].update(cache_bytes=GIB),
    ],
)
def test_memory_bound_follows_the_configuration(change: Callable[[dict[str, Any]], None]) -> None:
    config: dict[str, Any] = {
        "server": {"limits": dict(siege.CONFIG["server"]["limits"])},
        "stages": {name: {"options": dict(stage["options"])} for name, stage in siege.CONFIG["stages"].items()},
    }
    before = sum(memory_bound(ConfiguredLimits.of(config), GIB).values())
    change(config)
    assert sum(memory_bound(ConfiguredLimits.of(config), GIB).values()) > before
    assert sum(memory_bound(ConfiguredLimits.of({}), 2 * GIB).values()) - GIB == sum(
        memory_bound(ConfiguredLimits.of({}), GIB).values()
    )


# --- the attacks ---


def test_twenty_clients_of_all_nineteen_kinds_have_addresses_of_their_own() -> None:
    wanted = siege.parser().parse_args(["--model-path", "x"])
    sent = attacks(wanted.hostile, wanted.clients)
    assert len({attack.address for attack in sent}) == 20
    assert {attack.kind for attack in sent} == set(kinds())
    assert len(kinds()) == 19
    assert all(kind.__doc__ and "\n" not in kind.__doc__.strip() for kind in kinds().values())


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_scan_bomb_is_a_valid_jpeg_of_many_scans(kind: str) -> None:
    data = media._with_scans(media._progressive(64, kind), 200)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert (picture.format, picture.size) == (kind, (64, 64))
    assert data.count(b"\xff\xda") > 200


def test_flat_pictures_are_small_files_of_as_many_pixels_as_are_allowed() -> None:
    data = media._flat_png(8192, 8192)
    assert len(data) < 10_000
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (8192, 8192)
    with Image.open(io.BytesIO(media._icon(media._flat_png(1000, 1000)))) as icon:
        assert icon.format == "ICO"


async def test_a_client_notes_what_it_gets_and_comes_from_its_own_address() -> None:
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await reader.readuntil(b"\r\n\r\n")
        status, body = (b"500", b'{"error":{"code":"internal_error"}}') if len(seen) > 1 else (b"200", b"{}")
        writer.write(b"HTTP/1.1 " + status + b" x\r\n\r\n" + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = HostileClient(server.sockets[0].getsockname()[1], "127.0.2.7", random.Random(0))
        assert (await client.post({"messages": []})).json() == {}
        assert client.breaches == Counter()
        await client.post({"messages": []})
    assert seen == ["127.0.2.7"] * 2
    assert client.connections == 2
    assert client.outcomes == {"200 ok": 1, "500 internal_error": 1}
    assert client.breaches == {"answer 500 internal_error": 1}


TINY = Target(body_bytes=4 * 2**20, connections=2, speech_tokens=1, media_bytes=2 * 2**20, image_pixels=10_000)


@pytest.mark.parametrize("name", [name for name in kinds() if name not in ("long-clips", "crash-files")])
def test_every_kind_can_be_made_for_small_limits(name: str) -> None:
    assert callable(kinds()[name](random.Random(0), TINY))
