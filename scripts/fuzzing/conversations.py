"""Sends realtime sessions with random sequences of valid and invalid events, and ends them in random ways."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from fuzzing.findings import FuzzFinding, FuzzReport

_SECONDS = 60.0  # maximum seconds for one case
# Codes of events and responses that a healthy server never sends.
_BUGS = {"internal_error", "stream_gap", "bad_frame", "frame_out_of_turn", "engine"}
_LAST = "the-last"
_CLOSED_WELL = {1000, 1001, 1006, 1009}

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**63, "", "x", "root", "a" * 40_000, [], {}, [None], {"type": "x"}, "\ud7ff",
)  # fmt: skip
_IDS = [f"item_{number}" for number in range(6)]
_LITTLE: dict[str, Any] = {"max_output_tokens": 3, "output_modalities": ["text"]}


async def run(url: str, report: FuzzReport, numbers: Iterator[int], *, concurrency: int) -> None:
    """Run the cases with these numbers, `concurrency` cases at a time. Then check that no data of the sessions remains
    in the server.
    """
    async with aiohttp.ClientSession() as session:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(_run_all(session, url, report, numbers))
        await _check_empty(session, url, report)


async def _run_all(session: aiohttp.ClientSession, url: str, report: FuzzReport, numbers: Iterator[int]) -> None:
    for number in numbers:
        rng = random.Random(f"{report.seed}:{number}")
        messages = [_message(rng) for _ in range(rng.randrange(1, 14))]
        what = " ".join(_name(message) for message in messages)
        began = time.monotonic()
        outcome = "none 0 none"
        try:
            async with asyncio.timeout(_SECONDS):
                outcome = await _converse(session, url, messages, rng)
        except TimeoutError:
            report.findings.append(FuzzFinding(number, what, f"no answer within {_SECONDS:g} s"))
        except (aiohttp.ClientError, ValueError, KeyError) as error:
            report.findings.append(FuzzFinding(number, what, f"{type(error).__name__}: {error}"))
        report.count(number, what, outcome, time.monotonic() - began)


async def _converse(session: aiohttp.ClientSession, url: str, messages: list[bytes], rng: random.Random) -> str:
    """Send the messages in one session. Returns the outcome.

    Raises:
        ValueError: if the server sends an event that it must not send, or does not answer the last event.
    """
    headers = {"OpenAI-Beta": "realtime=v1"} if rng.random() < 0.2 else {}
    ending = rng.choices(("polite", "abrupt", "unread"), (6, 3, 1))[0]
    async with session.ws_connect(f"{url}/v1/realtime", headers=headers, max_msg_size=0) as socket:
        for message in messages:
            if socket.closed:
                break
            try:
                await socket.send_frame(message, WSMsgType.BINARY if message[:1] == b"\0" else WSMsgType.TEXT)
            except ConnectionError:
                break
            if rng.random() < 0.2:
                await asyncio.sleep(rng.choice((0, 0.01, 0.1)))
        if ending != "polite":
            if ending == "abrupt" and socket._response.connection is not None:
                transport = socket._response.connection.transport
                if transport is not None:
                    transport.abort()
            return f"{ending} 200 ok"
        last = {"type": "session.update", "event_id": _LAST, "session": {"instructions": _LAST}}
        with contextlib.suppress(ConnectionError):
            await socket.send_str(json.dumps(last))
        return await _judge(socket)


async def _judge(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Read until the answer to the last event. Returns the outcome."""
    code = "ok"
    while True:
        message = await socket.receive()
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
            if socket.close_code not in _CLOSED_WELL:
                raise ValueError(f"closed with {socket.close_code}")
            return f"closed {400} {socket.close_code}"
        if message.type is not WSMsgType.TEXT:
            raise ValueError(f"a message of the type {message.type}")
        event = json.loads(message.data)
        if not event["event_id"].startswith("event_"):
            raise ValueError("an event without an id")
        if event["type"] == "error":
            code = event["error"]["code"]
        elif event["type"] == "response.done":
            error = event["response"].get("status_details", {}).get("error") or {}
            code = error.get("code", code)
        if code in _BUGS:
            raise ValueError(f"the code {code}: {message.data[:300]}")
        if event["type"] == "session.updated" and event["session"]["instructions"] == _LAST:
            return f"answered {200 if code == 'ok' else 400} {code}"


async def _check_empty(session: aiohttp.ClientSession, url: str, report: FuzzReport) -> None:
    """Record a finding if data of the sessions is still in the server after a while."""
    gauges = ("omni_realtime_sessions", "omni_requests_in_flight", "omni_held_bytes", "omni_decoded_bytes")
    held: dict[str, float] = {}
    for _ in range(100):
        async with session.get(f"{url}/metrics") as response:
            lines = [line.split() for line in (await response.text()).splitlines()]
        held = {name: float(value) for name, value in (line for line in lines if len(line) == 2) if name in gauges}
        if not any(held.values()):
            return
        await asyncio.sleep(0.1)
    report.findings.append(FuzzFinding(-1, "after all sessions", f"the server still has data: {held}"))


# --- messages ---


def _name(message: bytes) -> str:
    """A short description of a message."""
    try:
        return str(json.loads(message)["type"])[:40]
    except (ValueError, KeyError, TypeError):
        return f"{len(message)}-bytes"


def _message(rng: random.Random) -> bytes:
    """One message: usually a valid event, sometimes a damaged event or random text."""
    chance = rng.random()
    if chance < 0.03:
        return rng.randbytes(rng.randrange(1, 300))
    event = _event(rng)
    if chance < 0.25:
        _damage(event, rng)
    data = json.dumps(event, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance < 0.06:
        return data[: rng.randrange(1, len(data))]
    if chance < 0.08:
        return b"\0" + data
    return data


def _damage(value: Any, rng: random.Random) -> None:
    """Change one place in an event: replace, remove or add a value."""
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = rng.choice(places) if places else None
        inner = value[place] if place is not None else None
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            value = inner
            continue
        if place is None or (isinstance(value, dict) and rng.random() < 0.2):
            if isinstance(value, dict):
                value[rng.choice(("type", "extra", "id", "audio"))] = _value(rng)
            else:
                value.append(_value(rng))
        elif rng.random() < 0.25:
            del value[place]
        else:
            value[place] = _value(rng)
        return


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(_VALUES))


def _event(rng: random.Random) -> dict[str, Any]:
    makers = (
        _append, _append, _append, _commit, _clear, _create, _create, _create, _respond, _respond, _cancel, _update,
        _about_item, _about_item,
    )  # fmt: skip
    event: dict[str, Any] = rng.choice(makers)(rng)
    if rng.random() < 0.3:
        event["event_id"] = rng.choice(("mine", "x" * 512, "é"))
    return event


def _append(rng: random.Random) -> dict[str, Any]:
    size = rng.choice((0, 1, 2, 960, 4_801, 48_000, 300_000))
    sound = rng.randbytes(size) if rng.random() < 0.5 else bytes(size)
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}


def _commit(rng: random.Random) -> dict[str, Any]:
    return {"type": "input_audio_buffer.commit"}


def _clear(rng: random.Random) -> dict[str, Any]:
    return {"type": "input_audio_buffer.clear"}


def _create(rng: random.Random) -> dict[str, Any]:
    event: dict[str, Any] = {"type": "conversation.item.create", "item": _item(rng)}
    if rng.random() < 0.3:
        event["previous_item_id"] = rng.choice([*_IDS, "root", None])
    return event


def _item(rng: random.Random) -> dict[str, Any]:
    own = {"id": rng.choice(_IDS)} if rng.random() < 0.5 else {}
    kind = rng.choice(("message", "message", "message", "function_call", "function_call_output"))
    if kind == "function_call":
        arguments = rng.choice(("{}", '{"a": 1}', "", "[]", "{"))
        return own | {"type": kind, "call_id": "call_1", "name": "look", "arguments": arguments}
    if kind == "function_call_output":
        return own | {"type": kind, "call_id": "call_1", "output": rng.choice(("yes", "", "<|im_end|>"))}
    role = rng.choice(("user", "user", "assistant", "system"))
    return own | {"type": kind, "role": role, "content": [_part(rng) for _ in range(rng.randrange(3))]}


def _part(rng: random.Random) -> dict[str, Any]:
    sound = base64.b64encode(rng.randbytes(rng.choice((0, 3, 4_800)))).decode()
    picture = f"data:image/png;base64,{base64.b64encode(rng.randbytes(60)).decode()}"
    parts: list[dict[str, Any]] = [
        {"type": "input_text", "text": rng.choice(("Hello.", "", "二", "word " * 5_000))},
        {"type": "input_text", "text": "How many?"},
        {"type": "output_text", "text": "Three."},
        {"type": "input_audio", "audio": sound},
        {"type": "output_audio", "transcript": "Three."},
        {"type": "input_image", "image_url": picture},
    ]
    return rng.choice(parts)


def _respond(rng: random.Random) -> dict[str, Any]:
    response: dict[str, Any] = dict(_LITTLE)
    if rng.random() < 0.3:
        response |= {"output_modalities": ["audio"], "stage_sampling": {"talker_ar": {"max_tokens": 4}}}
    if rng.random() < 0.3:
        response["conversation"] = rng.choice(("none", "auto"))
    if rng.random() < 0.3:
        reference = {"type": "item_reference", "id": rng.choice(_IDS)}
        response["input"] = [rng.choice((_item(rng), reference)) for _ in range(rng.randrange(3))]
    if rng.random() < 0.2:
        response["metadata"] = {"client_event_id": "x"}
    return {"type": "response.create", "response": response}


def _cancel(rng: random.Random) -> dict[str, Any]:
    return {"type": "response.cancel"} | ({"response_id": "resp_x"} if rng.random() < 0.3 else {})


def _update(rng: random.Random) -> dict[str, Any]:
    turns = rng.choice((None, {"type": "server_vad", "silence_duration_ms": 200}, {"type": "semantic_vad"}, False))
    form = rng.choice(({"type": "audio/pcm", "rate": 24_000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}))
    heard = {"turn_detection": turns, "format": form}
    if rng.random() < 0.2:
        heard["transcription"] = {"model": "any"}
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    session: dict[str, Any] = dict(_LITTLE) | {"type": "realtime", "audio": {"input": heard}}
    if rng.random() < 0.3:
        session |= {"tools": [tool], "tool_choice": rng.choice(("auto", "none", "required"))}
    return {"type": "session.update", "session": session}


def _about_item(rng: random.Random) -> dict[str, Any]:
    action = rng.choice(("retrieve", "delete", "truncate"))
    event: dict[str, Any] = {"type": f"conversation.item.{action}", "item_id": rng.choice(_IDS)}
    if action == "truncate":
        event |= {"content_index": 0, "audio_end_ms": rng.choice((0, 1, 500, 10**9))}
    return event
