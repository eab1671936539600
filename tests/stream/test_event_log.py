"""The log of held events against a dictionary: what is appended is read, whatever is released and moved in between."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from dedup_cache import Jagged
from stream import event_log
from stream.columns import ImpressionColumns
from stream.event_block import EVENT, IMPRESSION, EventBlock, objects
from stream.event_log import EventLog

MIN_WORDS = 64
DENSE, IDS, LISTS, SCORES = 3, 2, 2, 1
TEXTS = (None, b"", b"k", b"\0\xff" * 9, b"long" * 100)


@dataclass(frozen=True)
class Event:
    """One event in plain values; an engagement has no features."""

    key: bytes | None
    value: bytes | None
    shown: bool
    dense: list[float]
    ids: list[int]
    has_id: list[bool]
    lists: list[list[int]]
    scores: list[float]


def some_event(rng: random.Random) -> Event:
    return Event(
        key=rng.choice(TEXTS),
        value=rng.choice(TEXTS),
        shown=rng.random() < 0.6,
        dense=[rng.randrange(-9, 9) / 4 for _ in range(DENSE)],
        ids=[rng.randrange(-(2**63), 2**63) for _ in range(IDS)],
        has_id=[rng.random() < 0.5 for _ in range(IDS)],
        lists=[[rng.randrange(-(2**63), 2**63) for _ in range(rng.choice([0, 0, 1, 3, 40]))] for _ in range(LISTS)],
        scores=[rng.random() // 0.1 for _ in range(SCORES)],
    )


def columns_of(shown: list[Event]) -> ImpressionColumns:
    count = len(shown)
    return ImpressionColumns(
        dense=np.array([one.dense for one in shown], np.float32).reshape(count, DENSE),
        ids=np.array([one.ids for one in shown], np.int64).reshape(count, IDS),
        has_id=np.array([one.has_id for one in shown], np.bool_).reshape(count, IDS),
        lists=tuple(Jagged.from_rows([one.lists[k] for one in shown]) for k in range(LISTS)),
        scores=np.array([one.scores for one in shown], np.float32).reshape(count, SCORES),
    )


def block_of(events: list[Event]) -> EventBlock:
    rows = np.zeros(len(events), EVENT)
    rows["kind"] = [IMPRESSION if one.shown else IMPRESSION + 1 for one in events]
    keys, values = objects([one.key for one in events]), objects([one.value for one in events])
    columns = columns_of([one for one in events if one.shown])
    return EventBlock(rows, np.zeros(len(events), np.int64), keys, values, columns)


@dataclass
class Moves:
    """How often the log was pushed together where it lies, into a larger one and into a smaller one."""

    in_place: int = 0
    grown: int = 0
    shrunk: int = 0


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    monkeypatch.setattr(event_log, "MIN_WORDS", MIN_WORDS)
    moves, move = Moves(), EventLog._move

    def counted(log: EventLog, size: int) -> None:
        before, held, head = log._log.words.shape[0], log._held_words, log._head
        move(log, size)
        assert log._head == held <= head
        assert log._log.words.shape[0] == size
        moves.in_place += size == before and 0 < held < head
        moves.grown += size > before and held > 0
        moves.shrunk += size < before

    monkeypatch.setattr(EventLog, "_move", counted)
    return moves


class Machine:
    """A log and what it should hold, by slot."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.log = EventLog(columns_of([]))
        self.held: dict[int, Event] = {}
        self.slots = 0

    def append(self, count: int) -> None:
        if self.slots - len(self.held) < count:
            self.slots += 2 * count
            self.log.reserve_slots(self.slots)
        slots = self.rng.sample(sorted(set(range(self.slots)) - set(self.held)), count)
        events = [some_event(self.rng) for _ in slots]
        self.log.append(np.array(slots, np.int32), block_of(events))
        self.held |= dict(zip(slots, events, strict=True))

    def release(self, count: int) -> None:
        slots = self.rng.sample(sorted(self.held), count)
        self.log.release(np.array(slots, np.int32))
        for slot in slots:
            del self.held[slot]

    def check(self) -> None:
        """All that is held, in any order."""
        slots = self.rng.sample(sorted(self.held), len(self.held))
        keys, values = self.log.records(np.array(slots, np.int32))
        assert keys.tolist() == [None if self.held[slot].shown else self.held[slot].key for slot in slots]
        assert values.tolist() == [None if self.held[slot].shown else self.held[slot].value for slot in slots]
        shown = [slot for slot in slots if self.held[slot].shown]
        found = self.log.impressions(np.array(shown, np.int32))
        expected = columns_of([self.held[slot] for slot in shown])
        for name in ("dense", "ids", "has_id", "scores"):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one.dtype, one.shape, one.tolist()) == (other.dtype, other.shape, other.tolist()), name
        for one, other in zip(found.lists, expected.lists, strict=True):
            assert [row.tolist() for row in one.rows()] == [row.tolist() for row in other.rows()]


@pytest.mark.parametrize("seed", range(8))
def test_what_was_appended_is_read_until_it_is_released(seed: int, moves: Moves) -> None:
    rng = random.Random(seed)
    machine = Machine(rng)
    machine.check()
    for step in range(80):
        machine.append(rng.choice([0, 1, 3, 6, 30 if step < 40 else 6]))
        machine.check()
        gone = rng.randint(0, len(machine.held)) if step % 20 == 19 else max(0, len(machine.held) - 20)
        machine.release(gone)
        machine.check()
    assert moves.in_place
    assert moves.grown


def test_memory_is_given_back(moves: Moves) -> None:
    machine = Machine(random.Random(0))
    machine.append(400)
    most = machine.log.num_bytes
    machine.release(399)
    machine.append(1)
    machine.release(1)
    machine.check()
    assert moves.shrunk
    assert machine.log.num_bytes < most / 4
