"""Session windows, rule by rule, on numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup_cache.arrays import AnyArray
from stream.column_events import ColumnEvents
from stream.columns import ImpressionColumns
from stream.config import SessionConfig
from stream.event_block import EVENT, EventBlock
from stream.open_events import ListedEvents, OpenEvents
from stream.records import NO_WATERMARK, CommitPoint
from stream.sessions import DUPLICATE, FULL, LATE, OpenSessions, Placement

KEY = 1_000_000
"""A key whose grid lines lie at multiples of max_duration_ms."""


@dataclass(frozen=True)
class Outcome:
    """A placement as plain values, closes and drops in the order in which they happened."""

    turns: list[tuple[str, object]]

    @staticmethod
    def of(placement: Placement, of: OpenEvents) -> Outcome:
        closed, dropped = (of.rows(handles)["offset"] for handles in (placement.closed, placement.dropped))
        sessions = np.split(closed, np.cumsum(placement.closed_lengths)[:-1])
        closes = [
            (turn, "closed", sorted(s.tolist()))
            for turn, s in zip(placement.closed_turns.tolist(), sessions, strict=False)
        ]
        names = {LATE: "late", FULL: "full", DUPLICATE: "duplicate"}
        drops = zip(
            placement.dropped_turns.tolist(),
            placement.dropped_reasons.tolist(),
            dropped.tolist(),
            strict=True,
        )
        ordered = sorted([*closes, *((turn, names[reason], offset) for turn, reason, offset in drops)])
        of.release(np.concatenate([placement.closed, placement.dropped]))
        return Outcome([(what, which) for _, what, which in ordered])


Sessions = Callable[..., OpenEvents]


@pytest.fixture(params=["objects", "tables"])
def sessions(request: pytest.FixtureRequest) -> Sessions:
    """Makes empty sessions, in either form."""

    def make(**changes: int) -> OpenEvents:
        defaults = {"gap_ms": 100, "out_of_orderness_ms": 50, "max_duration_ms": 10_000, "max_events": 10}
        form = ListedEvents if request.param == "objects" else ColumnEvents
        return form(SessionConfig(**(defaults | changes)), watermark_ms=NO_WATERMARK, like=no_impressions(0))

    return make


def no_impressions(count: int) -> ImpressionColumns:
    return ImpressionColumns(
        dense=np.zeros((count, 0), np.float32),
        ids=np.zeros((count, 0), np.int64),
        has_id=np.zeros((count, 0), np.bool_),
        lists=(),
        scores=np.zeros((count, 0), np.float32),
    )


def events(offsets: AnyArray, *, times: AnyArray, keys: AnyArray, event_ids: AnyArray) -> EventBlock:
    rows = np.zeros(len(offsets), EVENT)
    rows["offset"], rows["time_ms"], rows["event_id"] = offsets, times, event_ids
    nothing = np.full(len(offsets), None, object)
    return EventBlock(rows, np.asarray(keys, np.int64), nothing, nothing, no_impressions(len(offsets)))


def place(to: OpenEvents, *placed: tuple[int, int], key: int = KEY, ids: list[int] | None = None) -> Outcome:
    """Events as (offset, time)."""
    offsets, times = (np.array([event[i] for event in placed], np.int64) for i in (0, 1))
    event_ids = offsets if ids is None else np.array(ids, np.int64)
    keys = np.full(len(placed), key, np.int64)
    return Outcome.of(to.place(events(offsets, times=times, keys=keys, event_ids=event_ids)), to)


def advance(one: OpenEvents, watermark_ms: int) -> Outcome:
    return Outcome.of(one.advance(watermark_ms), one)


def test_a_session_closes_when_the_watermark_is_a_gap_past_its_last_event(sessions: Sessions) -> None:
    one = sessions()
    assert place(one, (0, 1_000), (1, 1_099), (2, 1_248)).turns == []
    assert place(one, (3, 1_249)).turns == [("closed", [0, 1])]
    assert (one.watermark_ms, one.open_sessions, one.open_events) == (1_199, 1, 2)


def test_events_exactly_a_gap_apart_are_two_sessions_and_one_between_joins_them(sessions: Sessions) -> None:
    one = sessions(out_of_orderness_ms=500)
    place(one, (0, 1_000), (1, 1_100))
    assert one.open_sessions == 2
    place(one, (2, 1_050))
    assert (one.open_sessions, one.open_events) == (1, 3)
    assert advance(one, 1_199).turns == []
    assert advance(one, 1_200).turns == [("closed", [0, 1, 2])]


def test_an_event_below_the_watermark_by_a_gap_is_late_even_if_an_open_session_could_take_it(
    sessions: Sessions,
) -> None:
    one = sessions()
    place(one, (0, 1_000), (1, 1_099), (2, 1_150))
    assert one.watermark_ms == 1_100
    assert place(one, (3, 1_000), (4, 1_001)).turns == [("late", 3)]
    assert (one.open_sessions, one.open_events) == (1, 4)


def test_a_late_event_does_not_move_the_watermark_or_the_latest_time(sessions: Sessions) -> None:
    one = sessions()
    place(one, (0, 1_000))
    one.advance(5_000)
    assert place(one, (1, 4_900)).turns == [("late", 1)]
    assert (one.watermark_ms, one.max_event_time_ms) == (5_000, 1_000)


def test_no_session_crosses_a_line_of_the_grid(sessions: Sessions) -> None:
    one = sessions(max_duration_ms=200)
    place(one, (0, 950), (1, 999), (2, 1_000), (3, 1_001))
    assert advance(one, one.close_all_watermark_ms()).turns == [("closed", [0, 1]), ("closed", [2, 3])]


def test_the_grid_of_a_key_is_shifted_by_its_unsigned_hash(sessions: Sessions) -> None:
    one = sessions(max_duration_ms=200)
    key = -3
    shift = (2**64 - 3) % 200
    line = 1_200 - shift
    place(one, (0, line - 1), (1, line), key=key)
    assert one.open_sessions == 2


def test_keys_do_not_share_sessions(sessions: Sessions) -> None:
    one = sessions()
    place(one, (0, 1_000))
    place(one, (1, 1_000), key=KEY + 10_000)
    assert one.open_sessions == 2


def test_sessions_close_by_their_end_then_by_their_first_offset(sessions: Sessions) -> None:
    one = sessions(out_of_orderness_ms=500)
    for offset, time_ms in [(0, 1_200), (1, 1_100), (2, 1_100), (3, 1_150)]:
        place(one, (offset, time_ms), key=KEY + 10_000 * offset)
    assert advance(one, 9_999).turns == [("closed", [1]), ("closed", [2]), ("closed", [3]), ("closed", [0])]


def test_a_repeated_id_extends_the_session_but_counts_once(sessions: Sessions) -> None:
    one = sessions()
    assert place(one, (0, 1_000), (1, 1_090), ids=[7, 7]).turns == [("duplicate", 1)]
    assert (one.open_events, one.close_all_watermark_ms()) == (1, 1_190)
    assert advance(one, 1_189).turns == []
    assert advance(one, 1_190).turns == [("closed", [0])]


def test_a_merge_that_brings_two_copies_together_keeps_the_lower_offset(sessions: Sessions) -> None:
    one = sessions(out_of_orderness_ms=500)
    place(one, (0, 1_000), (1, 1_100), ids=[7, 7])
    assert place(one, (2, 1_050)).turns == [("duplicate", 1)]
    assert advance(one, 2_000).turns == [("closed", [0, 2])]


def test_events_beyond_max_events_leave_and_still_extend(sessions: Sessions) -> None:
    one = sessions(max_events=2)
    assert place(one, (0, 1_000), (1, 1_010), (2, 1_090), (3, 1_020), ids=[0, 1, 2, 1]).turns == [
        ("full", 2),
        ("duplicate", 3),
    ]
    assert (one.open_events, one.close_all_watermark_ms()) == (2, 1_190)


def test_a_merge_beyond_max_events_keeps_the_lowest_offsets(sessions: Sessions) -> None:
    one = sessions(out_of_orderness_ms=500, max_events=3)
    place(one, (0, 1_100), (1, 1_000), (2, 1_000), (3, 1_101))
    assert one.open_sessions == 2
    assert place(one, (4, 1_050)).turns == [("full", 3), ("full", 4)]
    assert one.oldest() == CommitPoint(0, NO_WATERMARK)
    assert advance(one, 2_000).turns == [("closed", [0, 1, 2])]


def test_the_commit_point_is_the_first_offset_of_the_oldest_session_and_the_watermark_before_it(
    sessions: Sessions,
) -> None:
    one = sessions()
    assert one.oldest() is None
    place(one, (10, 1_000), (11, 5_000), (12, 5_001))
    assert one.oldest() == CommitPoint(11, 950)
    place(one, (13, 20_000))
    assert one.oldest() == CommitPoint(13, 4_951)


@pytest.mark.parametrize("num_keys", [1, 3_000])
def test_what_is_closed_is_forgotten(num_keys: int, sessions: Sessions) -> None:
    one = sessions()
    place(one, (0, 1_000_000), key=-1)
    empty = footprint(one)
    count = 20_000
    offsets = np.arange(1, count + 1)
    times, keys = np.full(count, 1_000_000), 10_000 * (np.arange(count) % num_keys)
    for start in range(3):
        first = start * count
        many = events(offsets + first, times=times + 300 * start, keys=keys, event_ids=offsets + first)
        Outcome.of(one.place(many), one)
        assert num_keys == 1 or footprint(one) > 10 * empty
        place(one, (first + count, 1_000_000 + 300 * start + 90), key=-1, ids=[-start])
    advance(one, one.close_all_watermark_ms())
    place(one, (4 * count, 2_000_000), key=-1)
    advance(one, one.close_all_watermark_ms())
    assert (one.open_sessions, one.open_events, one.oldest(), one.next_close_ms()) == (0, 0, None, None)
    assert footprint(one) <= 10 * empty


def footprint(one: OpenEvents) -> int:
    """What it keeps, in bytes or entries."""
    if isinstance(one, ColumnEvents):
        return one.num_bytes
    inner = one._sessions
    return 100 + len(inner._by_key) + len(inner._by_close) + len(inner._by_age) + one._store._held.used.shape[0]


def test_what_closes_next_is_known_however_far_it_lies(sessions: Sessions) -> None:
    one = sessions(gap_ms=100_000, out_of_orderness_ms=70_000, max_duration_ms=10_000_000)
    for offset, time_ms in enumerate([1_000_000, 1_069_999, 1_000_001, 1_900_000, 5_000_000, 4_990_000]):
        place(one, (offset, time_ms), key=KEY + offset)
    while one.open_sessions:
        next_ms = one.next_close_ms()
        assert next_ms is not None
        assert advance(one, next_ms - 1).turns == []
        assert len(advance(one, next_ms).turns) == 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 5), st.integers(-1, 40)), max_size=60),
    st.integers(1, 4),
    st.booleans(),
)
def test_both_forms_do_the_same(placed: list[tuple[int, int, int, int]], most: int, large: bool) -> None:
    """Objects and tables, with other tables made in between; times on and beside the limits, a long way apart too."""
    config = SessionConfig(gap_ms=10, out_of_orderness_ms=6, max_duration_ms=37, max_events=most)
    forms = [form(config, watermark_ms=NO_WATERMARK, like=no_impressions(0)) for form in (ListedEvents, ColumnEvents)]
    now_ms = 1_000
    for offset, (key, back_ms, event_id, step_ms) in enumerate(placed):
        now_ms += step_ms if step_ms < 40 or not large else 10_000
        block = events(
            np.array([offset]), times=np.array([now_ms - back_ms]), keys=np.array([key]), event_ids=np.array([event_id])
        )
        one, other = (Outcome.of(form.place(block), form) for form in forms)
        assert one == other
        if step_ms < 0:
            assert isinstance(forms[1], ColumnEvents)
            forms[1]._make_smaller()
            one, other = (Outcome.of(form.advance(now_ms + back_ms), form) for form in forms)
            assert one == other
        for name in ("watermark_ms", "max_event_time_ms", "open_sessions", "open_events"):
            assert getattr(forms[0], name) == getattr(forms[1], name), name
        assert forms[0].oldest() == forms[1].oldest()
        assert forms[0].close_all_watermark_ms() == forms[1].close_all_watermark_ms()
        assert forms[0].held().tolist() == forms[1].held().tolist()
        states = [[getattr(form.state(), field).tolist() for field in OpenSessions.__slots__] for form in forms]
        assert states[0] == states[1]
