"""Session features: strictly earlier events of the same session, lists as slices of one union."""

from __future__ import annotations

import numpy as np

from stream.config import FeatureConfig
from stream.events import EVENT
from stream.labels import ClosedEvents, match
from stream.session_features import SessionFeatures

FEATURES = (
    FeatureConfig(name="seen", group="s", source="session.items", max_length=3),
    FeatureConfig(name="liked", group="s", source="session.engaged_items", max_length=2),
    FeatureConfig(name="shown", group="s", source="session.impressions"),
    FeatureConfig(name="engaged", group="s", source="session.engagements"),
    FeatureConfig(name="pause", group="s", source="session.ms_since_last_event"),
    FeatureConfig(name="since", group="s", source="session.ms_since_start"),
    FeatureConfig(name="read", group="s", type="float"),
)


def closed(*sessions: list[tuple[int, str, int | None]]) -> ClosedEvents:
    """Events as (time, "show" or "click", item); a click without an item names the session's first event."""
    rows = np.zeros(sum(map(len, sessions)), EVENT)
    rows["offset"] = rows["event_id"] = np.arange(rows.shape[0])
    firsts = np.repeat(np.cumsum([0, *map(len, sessions)])[:-1], list(map(len, sessions)))
    for i, (time_ms, what, item) in enumerate(event for session in sessions for event in session):
        rows[i]["time_ms"], rows[i]["kind"], rows[i]["has_item"] = time_ms, what == "click", item is not None
        rows[i]["item"] = rows[i]["item_id"] = item or 0
        rows[i]["target"], rows[i]["has_target"] = firsts[i], item is None
    session = np.repeat(np.arange(len(sessions)), list(map(len, sessions)))
    return ClosedEvents.order(rows, handles=rows["offset"], session=session)


def features(events: ClosedEvents) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    made = SessionFeatures(events, matched=match(events))
    dense = {name: column.tolist() for name, column in made.dense(FEATURES).items()}
    return dense, {name: [row.tolist() for row in column.rows()] for name, column in made.lists(FEATURES).items()}


def test_only_what_is_strictly_earlier_counts() -> None:
    session = [(10, "show", 1), (10, "show", 2), (15, "click", 2), (30, "show", 3), (30, "click", 3), (70, "show", 4)]
    dense, lists = features(closed(session))
    assert lists == {"seen": [[], [], [1, 2], [1, 2, 3]], "liked": [[], [], [2], [2, 3]]}
    assert dense == {
        "shown": [0, 0, 2, 3],
        "engaged": [0, 0, 1, 2],
        "pause": [0, 0, 15, 40],
        "since": [0, 0, 20, 60],
    }


def test_an_earlier_session_is_another_world() -> None:
    first = [(10, "show", 1), (20, "click", 1)]
    dense, lists = features(closed(first, [(30, "show", 5), (40, "show", 6)]))
    assert lists == {"seen": [[], [], [5]], "liked": [[], [], []]}
    assert dense["since"] == [0, 0, 10]
    assert dense["engaged"] == [0, 0, 0]


def test_lists_keep_the_latest_and_share_one_union() -> None:
    events = closed([(10 * i, "show", 100 + i) for i in range(6)])
    column = SessionFeatures(events, matched=match(events)).lists(FEATURES)["seen"]
    assert [row.tolist() for row in column.rows()] == [
        [],
        [100],
        [100, 101],
        [100, 101, 102],
        [101, 102, 103],
        [102, 103, 104],
    ]
    assert column.values.shape == (6,)


def test_a_click_without_an_item_has_its_impressions() -> None:
    _, lists = features(closed([(10, "show", 7), (20, "click", None), (30, "click", 8), (40, "show", 9)]))
    assert lists["liked"] == [[], [7, 8]]


def test_a_click_whose_item_nobody_knows_adds_no_id_but_counts() -> None:
    dense, lists = features(closed([(10, "click", None), (20, "show", 9)]))
    assert lists["liked"] == [[]]
    assert dense["engaged"] == [1]
    assert dense["pause"] == [10]
