"""How fast event time passes in a replay, in ratios of the event time itself; the clock is the test's own."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stream.records import NO_WATERMARK
from stream.replay.pace import Pace, Strides

TIMES = st.lists(st.integers(0, 100_000), min_size=2, max_size=30).map(sorted)


def replayed(times_ms: list[int], pace: Pace, *, began_ms: int, work_ms: int = 0) -> list[int]:
    """When each event is let through by one that waits as long as it is told, and then works on it."""
    now_ms, let_through = began_ms, []
    for time_ms in times_ms:
        now_ms += pace.wait_ms(time_ms, now_ms=now_ms)
        assert pace.wait_ms(time_ms, now_ms=now_ms) <= 1, "it asks for the whole wait at once, but for rounding"
        let_through.append(now_ms)
        now_ms += work_ms
    return let_through


@given(times_ms=TIMES, speed=st.sampled_from([0.5, 1.0, 4.0, 60.0]), began_ms=st.integers(0, 10**9))
def test_intervals_are_those_of_the_events_divided_by_the_speed(
    times_ms: list[int], speed: float, began_ms: int
) -> None:
    out = replayed(times_ms, Pace(speed), began_ms=began_ms)
    for before, after, sent, received in zip(times_ms, times_ms[1:], out, out[1:], strict=False):
        assert abs((received - sent) - (after - before) / speed) <= 2
    assert out[0] == began_ms, "the first event is what the pace counts from"


@given(times_ms=TIMES, work_ms=st.integers(0, 5_000))
def test_twice_the_speed_is_half_the_time_and_work_is_caught_up(times_ms: list[int], work_ms: int) -> None:
    one, two = (replayed(times_ms, Pace(speed), began_ms=0) for speed in (1.0, 2.0))
    assert abs(one[-1] - 2 * two[-1]) <= 4
    busy = replayed(times_ms, Pace(1.0), began_ms=0, work_ms=work_ms)
    for due_ms, done_ms, number in zip(one, busy, range(len(one)), strict=True):
        assert due_ms <= done_ms + 1, "never before its time"
        assert done_ms <= max(due_ms, number * work_ms) + number * work_ms, "late by the work alone"
    assert busy[-1] >= (len(times_ms) - 1) * work_ms


@pytest.mark.parametrize("speed", [None, 1.0])
def test_nothing_is_waited_for_without_a_speed_or_before_the_first_event(speed: float | None) -> None:
    pace = Pace(speed)
    assert pace.is_bound is (speed is not None)
    assert pace.wait_ms(NO_WATERMARK, now_ms=5) == 0
    assert pace.wait_ms(1_000, now_ms=5) == 0
    assert bool(pace.wait_ms(2_000, now_ms=5)) is pace.is_bound


def test_strides_are_single_records_while_it_waits_and_grow_while_it_lags() -> None:
    strides = Strides(is_bound=True)
    lagging = [strides.next(waited=False) for _ in range(12)]
    assert lagging[:3] == [2, 4, 8]
    assert lagging[-1] == Strides.LONGEST
    assert strides.next(waited=True) == 1
    assert Strides(is_bound=False).next(waited=True) == Strides.WHOLE
