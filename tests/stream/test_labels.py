"""The join of impressions and engagements, against a loop and case by case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup_cache.arrays import AnyArray
from stream.config import LabelConfig
from stream.events import EVENT, IMPRESSION
from stream.labels import ClosedEvents, label_kinds, label_matrix, match

CLICK, BUY = 1, 2


def event(time_ms: int, kind: int, *, item: int | None = None, event_id: int = 0, target: int | None = None) -> tuple:
    return (0, 0, time_ms, event_id, item or 0, item or 0, target or 0, kind, item is not None, target is not None)


def closed(*sessions: list[tuple]) -> ClosedEvents:
    """Sessions of events; the offset is the place in the argument list."""
    rows = np.array([row for session in sessions for row in session], EVENT)
    rows["offset"] = np.arange(rows.shape[0])
    session = np.repeat(np.arange(len(sessions)), [len(session) for session in sessions])
    return ClosedEvents.order(rows, handles=rows["offset"], session=session)


def joined(events: ClosedEvents) -> dict[int, int | None]:
    """Offset of each engagement: offset of its impression."""
    offsets, matched = events.rows["offset"], match(events)
    kinds = events.rows["kind"]
    return {
        int(offsets[i]): int(offsets[matched[i]]) if matched[i] >= 0 else None
        for i in np.flatnonzero(kinds != IMPRESSION)
    }


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        pytest.param([event(1, 0, item=5), event(2, CLICK, item=5)], {1: 0}, id="the impression before"),
        pytest.param([event(3, 0, item=5), event(2, CLICK, item=5)], {1: None}, id="an impression after is none"),
        pytest.param([event(2, 0, item=5), event(2, CLICK, item=5)], {1: 0}, id="the same time is not after"),
        pytest.param([event(2, CLICK, item=5), event(2, 0, item=5)], {0: 1}, id="whatever the offsets say"),
        pytest.param([event(1, 0, item=5), event(2, 0, item=5), event(3, CLICK, item=5)], {2: 1}, id="the latest"),
        pytest.param([event(2, 0, item=5), event(2, 0, item=5), event(2, CLICK, item=5)], {2: 1}, id="ties by offset"),
        pytest.param([event(1, 0, item=6), event(2, CLICK, item=5)], {1: None}, id="another item"),
        pytest.param(
            [event(1, 0, item=5, event_id=8), event(2, 0, item=5, event_id=9), event(3, CLICK, item=5, target=8)],
            {2: 0},
            id="the impression that it names",
        ),
        pytest.param([event(9, 0, item=5, event_id=8), event(3, CLICK, target=8)], {1: 0}, id="by name at any time"),
        pytest.param(
            [event(1, 0, item=5, event_id=8), event(3, CLICK, item=5, target=7)], {1: None}, id="named, but not there"
        ),
        pytest.param(
            [event(1, 0, item=5), event(2, CLICK, item=5, event_id=8), event(3, CLICK, item=6, target=8)],
            {1: 0, 2: None},
            id="an engagement is no impression",
        ),
    ],
)
def test_match(session: list[tuple], expected: dict[int, int | None]) -> None:
    assert joined(closed(session)) == expected


def test_sessions_do_not_see_each_other() -> None:
    shown, clicked = [event(1, 0, item=5, event_id=8)], [event(2, CLICK, item=5), event(2, CLICK, target=8)]
    assert joined(closed(shown, clicked)) == {1: None, 2: None}
    assert joined(closed(clicked, shown)) == {0: None, 1: None}


def test_a_label_is_true_where_any_of_its_engagements_was_found() -> None:
    labels = (LabelConfig(name="any", engagements=("click", "buy")), LabelConfig(name="buy", engagements=("buy",)))
    events = closed(
        [
            *(event(1, 0, item=item) for item in (1, 2, 3)),
            *(event(2, CLICK, item=item) for item in (1, 2)),
            *(event(3, BUY, item=item) for item in (2, 9)),
        ]
    )
    carries = label_kinds(labels, engagements=("click", "buy"))
    matrix = label_matrix(events, matched=match(events), carries=carries)
    assert matrix[:3].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert not matrix[3:].any()


NUMBERS = st.integers(0, 4)
EVENTS = st.builds(
    lambda time_ms, kind, item, event_id, target: event(time_ms, kind, item=item, event_id=event_id, target=target),
    NUMBERS,
    st.integers(0, 2),
    st.none() | NUMBERS,
    NUMBERS,
    st.none() | NUMBERS,
)


@given(st.lists(st.lists(EVENTS, max_size=12), min_size=1, max_size=4))
def test_match_is_the_loop(sessions: list[list[tuple]]) -> None:
    events = closed(*[_unique_impressions(session) for session in sessions])
    rows, matched = events.rows, match(events)
    for i in range(rows.shape[0]):
        assert matched[i] == (-1 if rows["kind"][i] == IMPRESSION else slow_match(rows, events.session, i))


def _unique_impressions(session: list[tuple]) -> list[tuple]:
    seen: set[int] = set()
    return [row for row in session if not (row[3] in seen or seen.add(row[3]))]


def slow_match(rows: AnyArray, session: AnyArray, i: int) -> int:
    best = -1
    for j in range(rows.shape[0]):
        if session[j] != session[i] or rows["kind"][j] != IMPRESSION:
            continue
        if rows["has_target"][i]:
            if rows["event_id"][j] == rows["target"][i]:
                best = j
        elif rows["item"][j] == rows["item"][i] and rows["time_ms"][j] <= rows["time_ms"][i]:
            best = j
    return best
