"""Runs hostile clients until the standard input ends. Then prints the results of each client as JSON.

The process prints ``ready`` when its files are made. It begins the attacks when it reads a line. It has a low priority,
because real clients would use the CPUs of other machines.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import traceback

import msgspec

from trials.hostile.client import HostileClient, Round
from trials.hostile.orders import Attack, AttackResult, Orders, kinds

_NICENESS = 5
_PAUSE = 0.05


def main() -> None:
    os.nice(_NICENESS)
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    rounds = [prepare(orders, attack) for attack in orders.attacks]
    print("ready", flush=True)
    sys.stdin.readline()
    results = asyncio.run(besiege(orders, rounds))
    print(msgspec.json.encode(results).decode(), flush=True)


def prepare(orders: Orders, attack: Attack) -> Round:
    """Make the files and bodies of one client."""
    draw = random.Random(f"{orders.seed} {attack.address}")
    return kinds()[attack.kind](draw, orders.target)


async def besiege(orders: Orders, rounds: list[Round]) -> list[AttackResult]:
    """Let all clients attack until standard input ends."""
    clients = [
        HostileClient(orders.port, attack.address, random.Random(f"{orders.seed} {attack.address} rounds"))
        for attack in orders.attacks
    ]
    tasks = [asyncio.create_task(repeat(*pair)) for pair in zip(rounds, clients, strict=True)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [
        AttackResult(attack.kind, client.connections, dict(client.outcomes), dict(client.breaches))
        for attack, client in zip(orders.attacks, clients, strict=True)
    ]


async def repeat(attack: Round, client: HostileClient) -> None:
    """Repeat the rounds of one client until it is cancelled."""
    while True:
        try:
            await attack(client)
        except* (ConnectionResetError, BrokenPipeError):
            client.outcomes["cut off"] += 1
        except* (OSError, TimeoutError) as group:
            client.outcomes[f"client failed: {type(group.exceptions[0]).__name__}"] += 1
        except* Exception:
            traceback.print_exc()
            client.outcomes["client failed: a bug in the attack"] += 1
        await asyncio.sleep(_PAUSE)


if __name__ == "__main__":
    main()
