"""Defines which requests the clients of a simulation send, and when they send them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]


class RequestShape(Struct, frozen=True):
    """The size of a request. All requests of a load have the same size. `contract.simulation.SimulatedRequest` explains
    the attributes.
    """

    prompt_tokens: int = 200
    answer_tokens: int = 64
    audio_frames: int = 60
    media_tokens: int = 0


class Load(Struct, frozen=True):
    """Describes when clients send requests, and which part of the simulated time is measured.

    There are two kinds of loads. In a closed loop of `streams` clients, each client sends its next request when its
    answer is complete. In an open loop, requests are sent at random times at the given `rate`.

    Attributes:
        streams: Number of clients of a closed loop; 0 for an open loop.
        rate: Mean number of requests per second in an open loop; 0 for a closed loop. The requests are a Poisson
            process.
        seconds: Length of the measured time. If it is 0, `requests` determines the length.
        requests: Number of measured requests. The simulation ends when they are all answered.
        spread: The clients of a closed loop begin at random times, spread over this number of seconds. If it is 0, they
            all begin at once.
        warm_up: Time before the measured time, in addition to `spread`.
        continues: Whether clients send further requests until all measured requests are answered.
        before: Number of requests that a single client sends before the clients of the load begin, so that the stages
            have already measured their steps. Do not use it together with `seconds`; use `warm_up`.
        seed: Seed of the random times.
    """

    streams: int = 0
    rate: float = 0.0
    seconds: float = 0.0
    requests: int = 0
    spread: float = 0.0
    warm_up: float = 0.0
    continues: bool = True
    before: int = 0
    seed: int = 0

    @property
    def measured_from(self) -> float:
        return self.spread + self.warm_up
