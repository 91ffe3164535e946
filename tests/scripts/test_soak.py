"""`soak.py` computes the share of refusals that random arrivals cause, and records the events before each refusal."""

from __future__ import annotations

import heapq
import random

import pytest
import soak
from trials.client import Outcome


@pytest.mark.parametrize("work", ["exponential", "fixed"])
@pytest.mark.parametrize(("load", "places"), [(0.8, 4), (0.8, 8), (1.0, 4), (1.6, 8)])
def test_refused_share_is_that_of_a_simulated_server(load: float, places: int, work: str) -> None:
    simulated = simulate(load, places, work, arrivals=60_000)
    assert simulated == pytest.approx(soak.refused_share(load, places), rel=0.1)


def simulate(load: float, places: int, work: str, arrivals: int) -> float:
    """The share of requests that a simulated server refuses. The server divides its time equally among the requests in
    progress.
    """
    draw = random.Random(0)
    refused = 0
    served = 0.0  # the work that a request would have received if it had been in progress from the start
    ends: list[float] = []
    for _ in range(arrivals):
        # Time until the next request; the unit is the mean time that a request's work takes.
        left = draw.expovariate(load)
        while ends and (ends[0] - served) * len(ends) <= left:
            left -= (ends[0] - served) * len(ends)
            served = heapq.heappop(ends)
        if ends:
            served += left / len(ends)
        if len(ends) == places:
            refused += 1
        else:
            heapq.heappush(ends, served + (draw.expovariate(1) if work == "exponential" else 1.0))
    return refused / arrivals


def test_half_an_hour_at_the_sustainable_rate_has_no_refusals_even_if_the_rate_was_measured_too_high() -> None:
    assert 36_000 * soak.refused_share(0.9, soak.PLACES) < 0.01
    assert 36_000 * soak.refused_share(0.8, 32) > 5  # with a quarter of the places, refusals would be expected


def test_twice_the_sustainable_rate_lasts_until_the_queue_is_full() -> None:
    assert soak.fill_seconds(40.0, 25.0) == pytest.approx(soak.PLACES / 15)
    assert soak.fill_seconds(20.0, 25.0) == 0.0


def test_a_refusal_is_recorded_with_what_happened_before_it() -> None:
    arrivals = [
        soak.Arrival(0.0, 0.0, 0, 1.0, Outcome("text 0", 100.0, 100.5, "answered", 200)),
        soak.Arrival(6.0, 0.0, 0, 1.0, Outcome("text 0", 106.0, 109.0, "answered", 200)),
        soak.Arrival(7.0, 0.0, 1, 1.0, Outcome("text 1", 107.0, 107.5, "answered", 200)),
        soak.Arrival(8.0, 0.25, 1, 2.5, Outcome("text 2", 108.0, 108.0, "error", 429, soak.REFUSED, message="full")),
        soak.Arrival(9.0, 0.0, 0, 1.0, Outcome("text 2", 109.0, 109.5, "error", 503, "engine")),
    ]
    assert soak.refusals(arrivals) == [soak.Refusal(8.0, 0.25, 1, 2, 1, 2.5, "full")]
