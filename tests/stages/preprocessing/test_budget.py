"""The work of a decoder is charged to a budget. Too much work is refused, and each charge allows some CPU time."""

import signal

import pytest

from omni_pipeline.errors import OmniError, bad_request
from stages.preprocessing.budget import WORK_PER_SECOND, DecodingBudget
from stages.preprocessing.cpu_time import limited_cpu_time


def seconds_left() -> float:
    return signal.getitimer(signal.ITIMER_PROF)[0]


def budget(limit: int) -> DecodingBudget:
    return DecodingBudget(limit, lambda: bad_request("No.", param="images[0]", code="image_too_large"))


def test_work_is_refused_beyond_the_limit_and_not_before() -> None:
    own = budget(100)
    own.charge(60)
    own.charge(40)
    with pytest.raises(OmniError, match="No"):
        own.charge(1)
    assert own.spent == 101


def test_work_that_is_charged_allows_cpu_time() -> None:
    own = budget(100 * WORK_PER_SECOND)
    with limited_cpu_time(30):
        own.charge(20 * WORK_PER_SECOND)
        assert seconds_left() == pytest.approx(50, abs=5)
    assert not seconds_left()


def test_outside_a_limit_no_time_is_counted() -> None:
    budget(100).charge(1)
    assert not seconds_left()


def test_the_limit_ends_with_its_block_even_if_the_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), limited_cpu_time(30):
        raise ZeroDivisionError
    assert not seconds_left()
