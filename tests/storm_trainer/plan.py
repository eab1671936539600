"""What happens in a storm over the trainer, decided by its seed before it begins."""

from __future__ import annotations

import random
from dataclasses import dataclass

TRAINING = ("step",)
CHECKPOINTING = ("begun", "tensors", "arrays", "record", "sealed", "renamed", "current", "retained")
PUBLISHING = ("publishing", "published")
POINTS = (*TRAINING, *CHECKPOINTING, *PUBLISHING)
ANY = "any"
"""A moment that nothing in the trainer decides."""
CHUNK = 16
"""Batches a partition that are sent before each start."""
MOST_DELAY_S = 1.5
IN_TRAINING = 0.7
"""Share of the blows at any moment that wait for the first step."""


@dataclass(frozen=True, slots=True)
class Blow:
    """-9 to one rank, at a point or at any moment."""

    rank: int
    point: str
    count: int
    """How often the point is passed before."""
    delay_s: float
    """Of a blow at any moment: counted from the start of the processes, or of training."""
    in_training: bool = True

    @property
    def cue(self) -> str:
        """As tests.trainer.rank_run takes it."""
        return f"{self.point}:{self.count}"


def plan(*, seed: int, kills: int, ranks: int) -> list[Blow]:
    """Every point as often as every other, a third at any moment, in an order of the seed's."""
    chance = random.Random(f"{seed}/{ranks}")
    at_any = kills // 3
    points = [*chance.sample(POINTS, len(POINTS))] * (kills // len(POINTS) + 1)
    blows = [_blow(chance, point, ranks=ranks) for point in [*points[: kills - at_any], *[ANY] * at_any]]
    chance.shuffle(blows)
    return blows


def _blow(chance: random.Random, point: str, *, ranks: int) -> Blow:
    # Versions are published by rank 0.
    rank = 0 if point in PUBLISHING else chance.randrange(ranks)
    # Later than the first cut most times, or every run would begin where the one before began.
    count = chance.randrange(1, 2 * CHUNK) if point in TRAINING else chance.choice([1, 2, 3, 4])
    return Blow(rank, point, count, round(chance.random() * MOST_DELAY_S, 3), chance.random() < IN_TRAINING)
