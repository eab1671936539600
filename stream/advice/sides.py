"""Whose a feature is: the user's, the item's, or neither's; found by what its value follows.

Two samples of a session show different items to one user, two samples of an item come from different sessions. What is
equal in the former is the user's, what is equal in the latter the item's, as far as it is more often equal than in two
samples that share neither. Letters in shapes: S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np

from dedup_cache.arrays import Bool, Int64, UInt64


class Side(Enum):
    """Whose a feature is."""

    USER = "user"
    ITEM = "item"
    SESSION = "session"
    """Made of the session by the stream."""
    CONTEXT = "context"
    """It follows neither the user nor the item."""
    OPEN = "any"
    """Nearly always the same, or too little was seen."""


BOUND = (Side.USER, Side.ITEM)
"""Those that never share a group."""
SAME_EVERYWHERE = 0.98
FOLLOWS_FROM = 0.3
"""Of the pairs that chance does not make equal, so many must be equal."""
MIN_PAIRS = 30


@dataclass(slots=True)
class Equal:
    """How many of the pairs looked at were equal."""

    equal: int = 0
    pairs: int = 0

    def add(self, equal: Bool) -> None:
        """bool[pairs]"""
        self.equal += int(equal.sum())
        self.pairs += equal.size

    @property
    def share(self) -> float:
        """0 without pairs."""
        return self.equal / self.pairs if self.pairs else 0.0

    def beyond(self, chance: Equal) -> float:
        """Share of the pairs that chance does not make equal; 0 where too few were seen."""
        if self.pairs < MIN_PAIRS:
            return 0.0
        return max(0.0, (self.share - chance.share) / max(1e-9, 1 - chance.share))


@dataclass(slots=True)
class Following:
    """Of one feature, how often it is equal where only the user is, only the item, or neither."""

    user: Equal = field(default_factory=Equal)
    item: Equal = field(default_factory=Equal)
    chance: Equal = field(default_factory=Equal)

    def add(self, prints: UInt64, pairs: SamplePairs) -> None:
        """Values uint64[S] of a block, and its pairs."""
        for counted, (one, other) in ((self.user, pairs.user), (self.item, pairs.item), (self.chance, pairs.chance)):
            counted.add(prints[one] == prints[other])

    def side(self, *, slides: bool) -> Side:
        """Whose it is; a list that `slides` from sample to sample of a session is the user's."""
        if slides:
            return Side.USER
        if self.chance.pairs < MIN_PAIRS or self.chance.share >= SAME_EVERYWHERE:
            return Side.OPEN
        user, item = self.user.beyond(self.chance), self.item.beyond(self.chance)
        if max(user, item) < FOLLOWS_FROM:
            return Side.CONTEXT
        return Side.USER if user >= item else Side.ITEM


class SamplePairs(NamedTuple):
    """Pairs of samples of a block, each (int64[pairs], int64[pairs])."""

    user: tuple[Int64, Int64]
    """Of one session, not of one item."""
    item: tuple[Int64, Int64]
    """Of one item, not of one user."""
    chance: tuple[Int64, Int64]
    """Of neither."""


def sample_pairs(sessions: Int64, users: Int64, items: Int64) -> SamplePairs:
    """Pairs of neighbours: int64[S] each, of samples in order of closing; items below 0 are not known."""
    places = np.arange(sessions.size)
    same_session = (sessions[1:] == sessions[:-1]) & ((items[1:] != items[:-1]) | (items[1:] < 0))
    by_item = np.argsort(items, kind="stable")
    one, other = by_item[:-1], by_item[1:]
    same_item = (items[one] == items[other]) & (items[one] >= 0) & (users[one] != users[other])
    shuffled = np.random.default_rng(0).permutation(places)
    strangers = (users != users[shuffled]) & ((items != items[shuffled]) | (items < 0))
    return SamplePairs(
        (places[:-1][same_session], places[1:][same_session]),
        (one[same_item], other[same_item]),
        (places[strangers], shuffled[strangers]),
    )
