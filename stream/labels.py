"""Impressions and the engagements they found, over the events of closed sessions.

Letters in shapes: N events, K sessions, S impressions (samples), L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dedup_cache.arrays import AnyArray, Bool, Float32, Int64
from stream.config import LabelConfig
from stream.events import IMPRESSION


@dataclass(frozen=True, slots=True, eq=False)
class ClosedEvents:
    """The events of closed sessions: sessions in the order of closing, inside one by (time, offset)."""

    rows: AnyArray
    """EVENT[N]"""
    handles: Int64
    """int64[N]"""
    session: Int64
    """int64[N], 0 <= session < K."""
    session_first: Int64
    """int64[N], the number of the first event of the event's session."""
    session_end: Int64
    """int64[N], one past its last."""
    tie_first: Int64
    """int64[N], the number of the first event of the session at the same time."""
    tie_end: Int64
    """int64[N], one past the last event of the session at the same time."""

    @staticmethod
    def order(rows: AnyArray, *, handles: Int64, session: Int64) -> ClosedEvents:
        """Sort EVENT[N], whose sessions ascend, by (session, time, offset)."""
        if not _in_order(rows, session):
            order = np.lexsort((rows["offset"], rows["time_ms"], session))
            rows, handles = rows[order], handles[order]
        new_session = _changes(session)
        first, end = _runs(new_session)
        tie_first, tie_end = _runs(new_session | _changes(rows["time_ms"]))
        return ClosedEvents(rows, handles, session, first, end, tie_first, tie_end)


def match(events: ClosedEvents) -> Int64:
    """int64[N]: for an engagement the number of the impression it joins, -1 without; -1 for impressions.

    An engagement that names an impression joins that one or none. Any other joins the latest impression of its item
    with a time not after its own, ties by the greatest offset.
    """
    rows = events.rows
    matched = np.full(rows.shape[0], -1, np.int64)
    is_impression = rows["kind"] == IMPRESSION
    impressions = np.flatnonzero(is_impression)
    engagements = np.flatnonzero(~is_impression)
    if not engagements.size or not impressions.size:
        return matched
    by_id = rows["has_target"][engagements]
    for asked, wanted, offered, end in (
        (engagements[by_id], "target", "event_id", events.session_end),
        (engagements[~by_id], "item", "item", events.tie_end),
    ):
        if asked.size:
            found = _last_before(
                end[asked], wanted=rows[wanted][asked], offered=rows[offered][impressions], offers=impressions
            )
            in_session = found >= events.session_first[asked]
            matched[asked[in_session]] = found[in_session]
    return matched


def label_matrix(events: ClosedEvents, *, matched: Int64, carries: Bool) -> Float32:
    """float32[N, L]: 1.0 where an impression was joined by an engagement of the label.

    `carries` bool[kinds, L] says which kinds of event make which label true.
    """
    labels = np.zeros((events.rows.shape[0], carries.shape[1]), np.float32)
    joined = np.flatnonzero(matched >= 0)
    makes = carries[events.rows["kind"][joined]]
    for i in range(carries.shape[1]):
        labels[matched[joined[makes[:, i]]], i] = 1.0
    return labels


def label_kinds(labels: Sequence[LabelConfig], *, engagements: Sequence[str]) -> Bool:
    """bool[kinds, L], kind 0 being the impression."""
    carries = np.zeros((1 + len(engagements), len(labels)), np.bool_)
    for i, label in enumerate(labels):
        for name in label.engagements:
            carries[1 + engagements.index(name), i] = True
    return carries


def _last_before(ends: Int64, *, wanted: Int64, offered: Int64, offers: Int64) -> Int64:
    """For each (end, wanted): the greatest of `offers` below end whose key is the wanted one, else -1.

    `offers` are event numbers in ascending order with the keys `offered`.
    """
    keys = np.concatenate([offered, wanted])
    places = np.concatenate([2 * offers, 2 * ends - 1])
    order = np.lexsort((places, keys))
    sources = np.concatenate([offers, np.full(ends.shape[0], -1, np.int64)])[order]
    at = np.maximum.accumulate(np.where(sources >= 0, np.arange(order.size), -1))
    same_key = (at >= 0) & (keys[order[np.maximum(at, 0)]] == keys[order])
    found = np.empty(order.size, np.int64)
    found[order] = np.where(same_key, sources[np.maximum(at, 0)], -1)
    return found[offers.shape[0] :]


def _in_order(rows: AnyArray, session: Int64) -> bool:
    times_ms, offsets = rows["time_ms"], rows["offset"]
    later = (times_ms[1:] > times_ms[:-1]) | ((times_ms[1:] == times_ms[:-1]) & (offsets[1:] > offsets[:-1]))
    return bool((later | (session[1:] > session[:-1])).all())


def _changes(column: AnyArray) -> Bool:
    changed = np.ones(column.shape[0], np.bool_)
    changed[1:] = column[1:] != column[:-1]
    return changed


def _runs(starts: Bool) -> tuple[Int64, Int64]:
    """(first, end) of the run that each place lies in."""
    firsts = np.flatnonzero(starts)
    lengths = np.diff(np.append(firsts, starts.shape[0]))
    return np.repeat(firsts, lengths), np.repeat(firsts + lengths, lengths)
