"""Session windows, rule by rule, on numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from stream.config import SessionConfig
from stream.records import NO_WATERMARK, CommitPoint
from stream.sessions import DUPLICATE, FULL, LATE, PartitionSessions, Placement

KEY = 1_000_000
"""A key whose grid lines lie at multiples of max_duration_ms."""


@dataclass(frozen=True)
class Outcome:
    """A placement as plain values, closes and drops in the order in which they happened."""

    turns: list[tuple[str, object]]

    @staticmethod
    def of(placement: Placement) -> Outcome:
        sessions = np.split(placement.closed_offsets, np.cumsum(placement.closed_lengths)[:-1])
        closes = [
            (turn, "closed", sorted(s.tolist()))
            for turn, s in zip(placement.closed_turns.tolist(), sessions, strict=False)
        ]
        names = {LATE: "late", FULL: "full", DUPLICATE: "duplicate"}
        drops = zip(
            placement.dropped_turns.tolist(),
            placement.dropped_reasons.tolist(),
            placement.dropped_offsets.tolist(),
            strict=True,
        )
        ordered = sorted([*closes, *((turn, names[reason], offset) for turn, reason, offset in drops)])
        return Outcome([(what, which) for _, what, which in ordered])


def sessions(**changes: int) -> PartitionSessions:
    defaults = {"gap_ms": 100, "out_of_orderness_ms": 50, "max_duration_ms": 10_000, "max_events": 10}
    return PartitionSessions(SessionConfig(**(defaults | changes)), watermark_ms=NO_WATERMARK)


def place(to: PartitionSessions, *events: tuple[int, int], key: int = KEY, ids: list[int] | None = None) -> Outcome:
    """Events as (offset, time)."""
    offsets, times = (np.array([event[i] for event in events], np.int64) for i in (0, 1))
    event_ids = offsets if ids is None else np.array(ids, np.int64)
    keys = np.full(len(events), key, np.int64)
    return Outcome.of(to.place(offsets, times_ms=times, keys=keys, event_ids=event_ids))


def test_a_session_closes_when_the_watermark_is_a_gap_past_its_last_event() -> None:
    one = sessions()
    assert place(one, (0, 1_000), (1, 1_099), (2, 1_248)).turns == []
    assert place(one, (3, 1_249)).turns == [("closed", [0, 1])]
    assert (one.watermark_ms, one.open_sessions, one.open_events) == (1_199, 1, 2)


def test_events_exactly_a_gap_apart_are_two_sessions_and_one_between_joins_them() -> None:
    one = sessions(out_of_orderness_ms=500)
    place(one, (0, 1_000), (1, 1_100))
    assert one.open_sessions == 2
    place(one, (2, 1_050))
    assert (one.open_sessions, one.open_events) == (1, 3)
    assert Outcome.of(one.advance(1_199)).turns == []
    assert Outcome.of(one.advance(1_200)).turns == [("closed", [0, 1, 2])]


def test_an_event_below_the_watermark_by_a_gap_is_late_even_if_an_open_session_could_take_it() -> None:
    one = sessions()
    place(one, (0, 1_000), (1, 1_099), (2, 1_150))
    assert one.watermark_ms == 1_100
    assert place(one, (3, 1_000), (4, 1_001)).turns == [("late", 3)]
    assert (one.open_sessions, one.open_events) == (1, 4)


def test_a_late_event_does_not_move_the_watermark_or_the_latest_time() -> None:
    one = sessions()
    place(one, (0, 1_000))
    one.advance(5_000)
    assert place(one, (1, 4_900)).turns == [("late", 1)]
    assert (one.watermark_ms, one.max_event_time_ms) == (5_000, 1_000)


def test_no_session_crosses_a_line_of_the_grid() -> None:
    one = sessions(max_duration_ms=200)
    place(one, (0, 950), (1, 999), (2, 1_000), (3, 1_001))
    assert Outcome.of(one.advance(one.close_all_watermark_ms())).turns == [("closed", [0, 1]), ("closed", [2, 3])]


def test_the_grid_of_a_key_is_shifted_by_its_unsigned_hash() -> None:
    one = sessions(max_duration_ms=200)
    key = -3
    shift = (2**64 - 3) % 200
    line = 1_200 - shift
    place(one, (0, line - 1), (1, line), key=key)
    assert one.open_sessions == 2


def test_keys_do_not_share_sessions() -> None:
    one = sessions()
    place(one, (0, 1_000))
    place(one, (1, 1_000), key=KEY + 10_000)
    assert one.open_sessions == 2


def test_sessions_close_by_their_end_then_by_their_first_offset() -> None:
    one = sessions(out_of_orderness_ms=500)
    for offset, time_ms in [(0, 1_200), (1, 1_100), (2, 1_100), (3, 1_150)]:
        place(one, (offset, time_ms), key=KEY + 10_000 * offset)
    assert Outcome.of(one.advance(9_999)).turns == [("closed", [1]), ("closed", [2]), ("closed", [3]), ("closed", [0])]


def test_a_repeated_id_extends_the_session_but_counts_once() -> None:
    one = sessions()
    assert place(one, (0, 1_000), (1, 1_090), ids=[7, 7]).turns == [("duplicate", 1)]
    assert (one.open_events, one.close_all_watermark_ms()) == (1, 1_190)
    assert Outcome.of(one.advance(1_189)).turns == []
    assert Outcome.of(one.advance(1_190)).turns == [("closed", [0])]


def test_a_merge_that_brings_two_copies_together_keeps_the_lower_offset() -> None:
    one = sessions(out_of_orderness_ms=500)
    place(one, (0, 1_000), (1, 1_100), ids=[7, 7])
    assert place(one, (2, 1_050)).turns == [("duplicate", 1)]
    assert Outcome.of(one.advance(2_000)).turns == [("closed", [0, 2])]


def test_events_beyond_max_events_leave_and_still_extend() -> None:
    one = sessions(max_events=2)
    assert place(one, (0, 1_000), (1, 1_010), (2, 1_090), (3, 1_020), ids=[0, 1, 2, 1]).turns == [
        ("full", 2),
        ("duplicate", 3),
    ]
    assert (one.open_events, one.close_all_watermark_ms()) == (2, 1_190)


def test_a_merge_beyond_max_events_keeps_the_lowest_offsets() -> None:
    one = sessions(out_of_orderness_ms=500, max_events=3)
    place(one, (0, 1_100), (1, 1_000), (2, 1_000), (3, 1_101))
    assert one.open_sessions == 2
    assert place(one, (4, 1_050)).turns == [("full", 3), ("full", 4)]
    assert one.oldest() == CommitPoint(0, NO_WATERMARK)
    assert Outcome.of(one.advance(2_000)).turns == [("closed", [0, 1, 2])]


def test_the_commit_point_is_the_first_offset_of_the_oldest_session_and_the_watermark_before_it() -> None:
    one = sessions()
    assert one.oldest() is None
    place(one, (10, 1_000), (11, 5_000), (12, 5_001))
    assert one.oldest() == CommitPoint(11, 950)
    place(one, (13, 20_000))
    assert one.oldest() == CommitPoint(13, 4_951)


@pytest.mark.parametrize("num_keys", [1, 3_000])
def test_what_is_closed_is_forgotten(num_keys: int) -> None:
    one = sessions()
    place(one, (0, 1_000_000), key=-1)
    count = 3_000
    offsets = np.arange(1, count + 1)
    times, keys = 1_000_000 + np.arange(count) * 0, 10_000 * (np.arange(count) % num_keys)
    for start in range(3):
        one.place(offsets + start * count, times_ms=times + 300 * start, keys=keys, event_ids=offsets + start * count)
        one.place(
            np.array([start * count + count]),
            times_ms=np.array([1_000_000 + 300 * start + 90]),
            keys=np.array([-1]),
            event_ids=np.array([-start]),
        )
    one.advance(one.close_all_watermark_ms())
    assert (one.open_sessions, one.open_events, one.oldest()) == (0, 0, None)
    assert not one._by_key
    assert not one._by_close
    assert not one._by_age
