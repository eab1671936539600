"""Event-time sessions of one partition: numbers in, numbers out.

An event is known by its offset. The watermark is the greatest accepted event time less the allowed disorder; it is
evaluated per event in offset order, and a session whose last event is a gap or more behind it closes. Sessions
never cross a line of the grid `(time + hash(key) mod max_duration) div max_duration`, which needs no history: a
rebuild that starts at the oldest offset an open session needs decides every cut as the first run did.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from dedup_cache.arrays import Int64
from stream.config import SessionConfig
from stream.records import NO_WATERMARK, CommitPoint

LATE, FULL, DUPLICATE = 0, 1, 2
"""Why an event leaves without being part of a closed session."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What became of events, earlier ones included: K sessions closed with N events, X events dropped.

    A handle names an event to whoever placed it; here it is the offset. Every close and every drop has a `turn`, its
    place in the order in which they happened.
    """

    closed: Int64
    """int64[N] handles, session by session in the order of closing, in no order inside a session."""
    closed_lengths: Int64
    """int64[K]"""
    closed_turns: Int64
    """int64[K]"""
    dropped: Int64
    """int64[X] handles"""
    dropped_reasons: Int64
    """int64[X]: LATE, FULL or DUPLICATE."""
    dropped_turns: Int64
    """int64[X]"""


@dataclass(frozen=True, slots=True, eq=False)
class OpenSessions:
    """All that is known of K open sessions but their events; oldest first offset first. Everything int64[K].

    An event belongs to the session of its key with the greatest start not after it: those of a key never overlap.
    """

    keys: Int64
    starts_ms: Int64
    lasts_ms: Int64
    """Of events that counted as duplicates or as too many, too."""
    first_offsets: Int64
    watermarks_before_ms: Int64
    """The watermark before the first offset."""


class RestoreError(ValueError):
    """Sessions and events that do not belong together."""


class _Session:
    """A session; `kept` are the offsets of its events by event id. Closed or merged into another, it is not open."""

    __slots__ = ("cell", "first_offset", "is_open", "kept", "key", "last_ms", "start_ms", "watermark_before_ms")

    def __init__(self, key: int, *, cell: int, time_ms: int, first_offset: int, watermark_before_ms: int) -> None:
        self.key = key
        self.cell = cell
        self.start_ms = time_ms
        self.last_ms = time_ms
        self.first_offset = first_offset
        self.watermark_before_ms = watermark_before_ms
        self.is_open = True
        self.kept: dict[int, int] = {}

    def extend(self, time_ms: int, *, cell: int, gap_ms: int) -> bool:
        """Take in an event at `time_ms` if it is of this cell and closer than the gap."""
        if self.cell != cell or not self.start_ms - gap_ms < time_ms < self.last_ms + gap_ms:
            return False
        if time_ms > self.last_ms:
            self.last_ms = time_ms
        elif time_ms < self.start_ms:
            self.start_ms = time_ms
        return True


@dataclass(slots=True)
class _Turns:
    """What one call does, in order."""

    count: int = 0
    closed: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    dropped: list[tuple[int, int, int]] = field(default_factory=list)

    def close(self, kept: dict[int, int]) -> None:
        self.closed.append((self.count, kept))
        self.count += 1

    def drop(self, offset: int, reason: int) -> None:
        self.dropped.append((offset, reason, self.count))
        self.count += 1

    def placement(self) -> Placement:
        dropped = np.array(self.dropped, np.int64).reshape(-1, 3)
        lengths = np.fromiter((len(kept) for _, kept in self.closed), np.int64, len(self.closed))
        offsets = chain.from_iterable(kept.values() for _, kept in self.closed)
        return Placement(
            closed=np.fromiter(offsets, np.int64, int(lengths.sum())),
            closed_lengths=lengths,
            closed_turns=np.fromiter((turn for turn, _ in self.closed), np.int64, len(self.closed)),
            dropped=dropped[:, 0],
            dropped_reasons=dropped[:, 1],
            dropped_turns=dropped[:, 2],
        )


class PartitionSessions:
    """The open sessions of one partition. After every call, each session that the watermark allows is closed."""

    def __init__(self, config: SessionConfig, *, watermark_ms: int) -> None:
        self._config = config
        self.watermark_ms = watermark_ms
        self.max_event_time_ms = NO_WATERMARK
        self.open_sessions = 0
        self.open_events = 0
        self._by_key: dict[int, list[_Session]] = {}
        self._by_age: deque[_Session] = deque()
        self._by_close: list[tuple[int, int, _Session]] = []

    def place(self, offsets: Int64, *, times_ms: Int64, keys: Int64, event_ids: Int64) -> Placement:
        """Take events in offset order, each int64[M], and close what the watermark reaches in between."""
        turns, by_key = _Turns(), self._by_key
        gap_ms, disorder_ms, most = self._config.gap_ms, self._config.out_of_orderness_ms, self._config.max_events
        columns = (offsets.tolist(), times_ms.tolist(), keys.tolist(), event_ids.tolist())
        for offset, time_ms, key, event_id, cell in zip(*columns, self._cells(times_ms, keys), strict=True):
            if time_ms + gap_ms <= self.watermark_ms:
                turns.drop(offset, LATE)
                continue
            of_key = by_key.get(key)
            if of_key is not None and len(of_key) == 1 and of_key[0].extend(time_ms, cell=cell, gap_ms=gap_ms):
                session = of_key[0]
            else:
                session = self._session_for(key, cell=cell, time_ms=time_ms, offset=offset, turns=turns)
            kept = session.kept
            if len(kept) < most and event_id not in kept:
                kept[event_id] = offset
                self.open_events += 1
            else:
                turns.drop(offset, DUPLICATE if event_id in kept else FULL)
            if time_ms - disorder_ms > self.watermark_ms:
                self.watermark_ms = time_ms - disorder_ms
                if self._by_close[0][0] <= self.watermark_ms:
                    self._close(turns)
        placement = turns.placement()
        self._note_latest(times_ms, offsets=offsets, placement=placement)
        return placement

    def advance(self, watermark_ms: int) -> Placement:
        """Raise the watermark where it is lower, and close what it reaches."""
        turns = _Turns()
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self._close(turns)
        return turns.placement()

    def oldest(self) -> CommitPoint | None:
        """The first offset that an open session needs and the watermark just before it; None without sessions."""
        while self._by_age and not self._by_age[0].is_open:
            self._by_age.popleft()
        if not self._by_age:
            return None
        return CommitPoint(self._by_age[0].first_offset, self._by_age[0].watermark_before_ms)

    def state(self) -> OpenSessions:
        """What `restore` needs besides the events that are held."""
        fields = [
            (s.key, s.start_ms, s.last_ms, s.first_offset, s.watermark_before_ms) for s in self._by_age if s.is_open
        ]
        return OpenSessions(*np.array(fields, np.int64).reshape(-1, 5).T)

    def restore(
        self, sessions: OpenSessions, *, offsets: Int64, times_ms: Int64, keys: Int64, event_ids: Int64
    ) -> None:
        """Take over `sessions` and the events they hold, each int64[M], as if all had been placed. Only when empty.

        Raises RestoreError.
        """
        opened = self._reopen(sessions)
        of_event = session_of(sessions, keys=keys, times_ms=times_ms)
        order = np.argsort(of_event, kind="stable")
        ids, places = event_ids[order].tolist(), offsets[order].tolist()
        ends = np.cumsum(np.bincount(of_event, minlength=len(opened))).tolist()
        for session, start, end in zip(opened, [0, *ends], ends, strict=False):
            session.kept = dict(zip(ids[start:end], places[start:end], strict=True))
        self.open_events = sum(len(session.kept) for session in opened)
        if self.open_events != offsets.shape[0] or not all(session.kept for session in opened):
            raise RestoreError("a session without events, or an event id twice in a session")

    def _reopen(self, sessions: OpenSessions) -> list[_Session]:
        gap_ms, columns = self._config.gap_ms, (getattr(sessions, name).tolist() for name in sessions.__slots__)
        opened = []
        for cell, (key, start_ms, last_ms, first_offset, before_ms) in zip(
            self._cells(sessions.starts_ms, sessions.keys), zip(*columns, strict=True), strict=True
        ):
            session = _Session(
                key, cell=cell, time_ms=start_ms, first_offset=first_offset, watermark_before_ms=before_ms
            )
            session.last_ms = last_ms
            self._by_key.setdefault(key, []).append(session)
            self._by_close.append((last_ms + gap_ms, first_offset, session))
            opened.append(session)
        heapq.heapify(self._by_close)
        self._by_age.extend(opened)
        self.open_sessions = len(opened)
        return opened

    def close_all_watermark_ms(self) -> int:
        """The smallest watermark at which every open session is closed; the present one without sessions."""
        lasts = [session.last_ms for session in self._by_age if session.is_open]
        return max(self.watermark_ms, max(lasts) + self._config.gap_ms) if lasts else self.watermark_ms

    def next_close_ms(self) -> int | None:
        """A watermark below which no open session closes; None without sessions."""
        return self._by_close[0][0] if self.open_sessions else None

    def _cells(self, times_ms: Int64, keys: Int64) -> list[int]:
        """The grid cell of each event, counted from 1970 by the key's own shift."""
        span = self._config.max_duration_ms
        shifts = (keys.view(np.uint64) % np.uint64(span)).astype(np.int64)
        cells: list[int] = ((times_ms + shifts) // span).tolist()
        return cells

    def _note_latest(self, times_ms: Int64, *, offsets: Int64, placement: Placement) -> None:
        late = placement.dropped[placement.dropped_reasons == LATE]
        accepted = np.delete(times_ms, np.searchsorted(offsets, late)) if late.size else times_ms
        if accepted.size:
            self.max_event_time_ms = max(self.max_event_time_ms, int(accepted.max()))

    def _session_for(self, key: int, *, cell: int, time_ms: int, offset: int, turns: _Turns) -> _Session:
        gap_ms = self._config.gap_ms
        of_key = self._by_key.setdefault(key, [])
        near = [session for session in of_key if session.extend(time_ms, cell=cell, gap_ms=gap_ms)]
        if near:
            return near[0] if len(near) == 1 else self._merge(near, turns)
        session = _Session(key, cell=cell, time_ms=time_ms, first_offset=offset, watermark_before_ms=self.watermark_ms)
        of_key.append(session)
        self._by_age.append(session)
        heapq.heappush(self._by_close, (time_ms + gap_ms, offset, session))
        self.open_sessions += 1
        return session

    def _merge(self, sessions: list[_Session], turns: _Turns) -> _Session:
        """Make one of several: the oldest goes on, the lowest offsets stay."""
        survivor, *others = sorted(sessions, key=lambda session: session.first_offset)
        events = sorted((offset, event_id) for s in sessions for event_id, offset in s.kept.items())
        survivor.start_ms = min(session.start_ms for session in sessions)
        survivor.last_ms = max(session.last_ms for session in sessions)
        survivor.kept = {}
        self.open_events -= len(events)
        for offset, event_id in events:
            if event_id in survivor.kept:
                turns.drop(offset, DUPLICATE)
            elif len(survivor.kept) >= self._config.max_events:
                turns.drop(offset, FULL)
            else:
                survivor.kept[event_id] = offset
        self.open_events += len(survivor.kept)
        of_key = self._by_key[survivor.key]
        for other in others:
            other.is_open = False
            of_key.remove(other)
            self.open_sessions -= 1
        return survivor

    def _close(self, turns: _Turns) -> None:
        """Close by (last + gap, first offset). An entry of the heap is never later than its session's real close."""
        heap, watermark_ms, gap_ms = self._by_close, self.watermark_ms, self._config.gap_ms
        if not heap or heap[0][0] > watermark_ms:
            return
        due: list[tuple[int, int, _Session]] = []
        while heap and heap[0][0] <= watermark_ms:
            _, first_offset, session = heapq.heappop(heap)
            if not session.is_open:
                continue
            close_ms = session.last_ms + gap_ms
            if close_ms <= watermark_ms:
                due.append((close_ms, first_offset, session))
            else:
                heapq.heappush(heap, (close_ms, first_offset, session))
        for _, _, session in sorted(due):
            self._finish(session, turns)
        if len(self._by_age) > 2 * self.open_sessions + 1024:
            self._by_age = deque(session for session in self._by_age if session.is_open)

    def _finish(self, session: _Session, turns: _Turns) -> None:
        session.is_open = False
        turns.close(session.kept)
        self.open_sessions -= 1
        self.open_events -= len(session.kept)
        of_key = self._by_key[session.key]
        if len(of_key) == 1:
            del self._by_key[session.key]
        else:
            of_key.remove(session)


def session_of(sessions: OpenSessions, *, keys: Int64, times_ms: Int64) -> Int64:
    """int64[M]: the number of each event's session. Raises RestoreError where there is none."""
    num_sessions = sessions.keys.shape[0]
    if not num_sessions and keys.shape[0]:
        raise RestoreError(f"{keys.shape[0]} events are of no session")
    all_keys = np.concatenate([sessions.keys, keys])
    all_times = np.concatenate([sessions.starts_ms, times_ms])
    order = np.lexsort((np.arange(all_keys.size) >= num_sessions, all_times, all_keys))
    at = np.maximum.accumulate(np.where(order < num_sessions, np.arange(order.size), -1))
    candidate = np.where(at >= 0, order[at], -1)
    found = np.empty(order.size, np.int64)
    found[order] = candidate
    of_event = found[num_sessions:]
    fits = (of_event >= 0) & (sessions.keys[of_event] == keys) & (times_ms <= sessions.lasts_ms[of_event])
    if not fits.all():
        raise RestoreError(f"{np.count_nonzero(~fits)} events are of no session")
    return of_event
