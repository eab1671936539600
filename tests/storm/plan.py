"""What happens in a storm, decided by its seed before it begins."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tests.storm.worker import POINTS_OF_A_REBALANCE, POINTS_OF_A_TRANSACTION

ROUNDS = (("consumer", False), ("consumer", True), ("classic", False), ("classic", True))
"""Group protocol, and whether the members are static."""
WORKERS = (1, 3, 2)
CALM = 0.7
"""Fraction of the blows that wait until all is well again; the others meet a recovery."""
MOST_IN_FLIGHT_MS = 4.0
MOST_IN_REBUILD_MS = 60.0


class Kind(StrEnum):
    """What is done to the system."""

    KILL = "kill"
    """-9 at any moment."""
    KILL_IN_TRANSACTION = "kill in transaction"
    """-9 at a point of a transaction, or a moment behind it: the commit may be under way, done, or unheard of."""
    KILL_HEIR = "kill heir"
    """-9, and -9 to who takes the partitions over, while it does so. Two kills."""
    KILL_LEAVER = "kill leaver"
    """-9 to a worker that was told to end, while it gives its partitions away."""
    ZOMBIE = "zombie"
    """Stopped in a transaction for longer than its session, woken up when others have its partitions."""
    BROKER_KILL = "broker kill"
    """-9 to the broker with a commit under way."""
    BROKER_STOP = "broker stop"
    REDIS_KILL = "redis kill"
    REDIS_FLUSH = "redis flush"

    @property
    def kills(self) -> int:
        """How many workers it kills."""
        return {Kind.KILL: 1, Kind.KILL_IN_TRANSACTION: 1, Kind.KILL_HEIR: 2, Kind.KILL_LEAVER: 1}.get(self, 0)


@dataclass(frozen=True, slots=True)
class Blow:
    """One thing that is done. `victim` in [0, 1) chooses among the workers that are there."""

    kind: Kind
    victim: float
    point: str
    count: int
    delay_ms: float
    pause_s: float
    """Between the blow before and this one."""
    calm: bool
    """Only after every partition committed something since the blow before."""


A_KILL = Blow(Kind.KILL, victim=0.0, point="", count=1, delay_ms=0.0, pause_s=0.0, calm=True)


@dataclass(frozen=True, slots=True)
class Phase:
    """So many workers, and what happens to them."""

    workers: int
    blows: tuple[Blow, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One way to be a member of the group."""

    protocol: str
    static: bool
    phases: tuple[Phase, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.protocol}/{'static' if self.static else 'dynamic'}"

    @property
    def kills(self) -> int:
        """How many workers its blows kill, where each victim is there."""
        return sum(blow.kind.kills for phase in self.phases for blow in phase.blows)


def plan(*, seed: int, kills: int) -> list[Round]:
    """All rounds, with `kills` kills in all, and in each a zombie and the broker, Redis and its memory lost once."""
    chance = random.Random(seed)
    rounds = []
    for number, (protocol, static) in enumerate(ROUNDS):
        share = kills // len(ROUNDS) + (number < kills % len(ROUNDS))
        phases = tuple(
            Phase(workers, tuple(_blows(chance, workers, _part(share, i), others=_others(number, phase=i))))
            for i, workers in enumerate(WORKERS)
        )
        rounds.append(Round(protocol, static, phases))
    return rounds


def short_plan(*, seed: int) -> list[Round]:
    """One round of two workers, with each kind of blow once."""
    chance = random.Random(seed)
    kinds = [Kind.KILL_IN_TRANSACTION, Kind.ZOMBIE, Kind.KILL, Kind.REDIS_FLUSH, Kind.BROKER_KILL, Kind.KILL_HEIR]
    blows = tuple(_blow(chance, kind, most_pause_s=0.3) for kind in kinds)
    return [Round("consumer", static=False, phases=(Phase(2, blows),))]


def _part(share: int, phase: int) -> int:
    """A fifth with one worker, half with three, the rest with two."""
    parts = [share // 5, share // 2]
    return [*parts, share - sum(parts)][phase]


def _others(round_: int, *, phase: int) -> list[Kind]:
    """One worker sees Redis go, three see the broker go and wake up as zombies, two lose what Redis remembers."""
    broker = Kind.BROKER_STOP if round_ % 2 else Kind.BROKER_KILL
    return ([Kind.REDIS_KILL], [broker, Kind.ZOMBIE], [Kind.REDIS_FLUSH])[phase]


def _blows(chance: random.Random, workers: int, kills: int, *, others: list[Kind]) -> Iterator[Blow]:
    kinds = list(others)
    left = kills
    while left:
        weights = {Kind.KILL: 3, Kind.KILL_IN_TRANSACTION: 5, Kind.KILL_HEIR: 2 * (left > 1), Kind.KILL_LEAVER: 1}
        (kind,) = chance.choices([*weights], [*weights.values()])
        kinds.append(kind)
        left -= kind.kills
    chance.shuffle(kinds)
    for kind in kinds:
        yield _blow(chance, kind, most_pause_s=3.0 / workers)


def _blow(chance: random.Random, kind: Kind, *, most_pause_s: float) -> Blow:
    if kind is Kind.KILL_HEIR:
        point, most_ms = chance.choice(POINTS_OF_A_REBALANCE), MOST_IN_REBUILD_MS
    elif kind is Kind.KILL_LEAVER:
        point, most_ms = "revoked", MOST_IN_FLIGHT_MS
    else:
        point, most_ms = chance.choice(POINTS_OF_A_TRANSACTION), MOST_IN_FLIGHT_MS
    delay_ms = round(chance.choice([0.0, chance.random() * most_ms]), 3)
    count = chance.randrange(1, 4) if kind is Kind.KILL_IN_TRANSACTION else 1
    pause_s, calm = round(chance.random() * most_pause_s, 3), chance.random() < CALM
    return Blow(kind, chance.random(), point, count, delay_ms, pause_s, calm)
