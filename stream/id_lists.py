"""Many id lists beside a world's own features: of users, moving at known rates, and of items.

This is what makes traffic like RecD's (arXiv 2211.05239): most of a sample's bytes are lists of the user that hardly
change within a session, some of which slide by one id at a time. A group of lists moves as a whole or not at all, so
what belongs together, and how often it repeats, is known beforehand. The ids mean nothing for the truth of the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

VOCABULARY = 200_000
ID_BITS = 36
POOL_IDS = 1 << 14
STATS = 16
"""Numbers of a user beside the lists of the first group, and of an item."""
_ZIPF_EXPONENT = 1.05
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Motion(Enum):
    """How a list changes."""

    REDRAWN = "redrawn"
    """Every id is another one."""
    APPENDED = "appended"
    """One id comes in at the end, the first one leaves: oldest first."""
    PREPENDED = "prepended"
    """One id comes in at the front, the last one leaves: newest first."""


@dataclass(frozen=True, slots=True)
class ListGroup:
    """Lists of a user that move together, named `name_0`, `name_1`, ..."""

    name: str
    move: float
    """Chance that they move from one request of the user to the next."""
    motion: Motion
    lengths: tuple[int, ...]
    """Of each list; sliding ones keep it."""

    @property
    def fields(self) -> list[str]:
        """Names of the lists."""
        return [f"{self.name}_{i}" for i in range(len(self.lengths))]


@dataclass(frozen=True, slots=True)
class ListPlan:
    """The lists of a kind of traffic. With a plan every user also has `user_stats` and every item `item_stats`."""

    user: tuple[ListGroup, ...]
    item: tuple[int, ...]
    """Longest lengths of the lists `item_0`, `item_1`, ...; an item's own are between a third of it and all of it."""


class IdLists:
    """The lists of all users and items, as JSON, drawn when they are first needed."""

    def __init__(self, plan: ListPlan, *, seed: int) -> None:
        self._plan = plan
        self._rng = np.random.default_rng([seed, 1])
        self._moves = np.array([group.move for group in plan.user])
        self._pool: list[int] = []
        self._users: dict[int, list[list[list[int]]]] = {}
        self._user_texts: dict[int, list[str]] = {}
        self._items: dict[int, str] = {}

    def render(self, users: np.ndarray, items: np.ndarray, requests: np.ndarray) -> list[str]:
        """One text of members (`"a":[1,2],"b":[3]`) per impression, in order of time; arrays are int64[I].

        A user's lists may move with each request, the impressions of one request stand side by side.
        """
        first = np.ones(len(requests), bool)
        first[1:] = requests[1:] != requests[:-1]
        moving = (self._rng.random((len(users), len(self._moves))) < self._moves) & first[:, None]
        texts = []
        for user, item, moved in zip(users.tolist(), items.tolist(), moving, strict=True):
            if user not in self._users:
                self._appear(user)
            for place in np.flatnonzero(moved).tolist():
                self._move(user, place)
            if item not in self._items:
                self._items[item] = self._item_text()
            texts.append(",".join(self._user_texts[user]) + "," + self._items[item])
        return texts

    def _appear(self, user: int) -> None:
        self._users[user] = [[self._take(length) for length in group.lengths] for group in self._plan.user]
        self._user_texts[user] = [self._group_text(user, place) for place in range(len(self._plan.user))]

    def _move(self, user: int, place: int) -> None:
        lists, motion = self._users[user][place], self._plan.user[place].motion
        if motion is Motion.REDRAWN:
            lists[:] = [self._take(len(ids)) for ids in lists]
        elif motion is Motion.APPENDED:
            lists[:] = [ids[1:] + self._take(1) for ids in lists]
        else:
            lists[:] = [self._take(1) + ids[:-1] for ids in lists]
        self._user_texts[user][place] = self._group_text(user, place)

    def _group_text(self, user: int, place: int) -> str:
        fields = self._plan.user[place].fields
        members = [_member(name, ids) for name, ids in zip(fields, self._users[user][place], strict=True)]
        if place == 0:
            members.append(self._stats("user_stats"))
        return ",".join(members)

    def _item_text(self) -> str:
        lengths = [int(self._rng.integers(longest // 3, longest + 1)) for longest in self._plan.item]
        lists = [_member(f"item_{i}", self._take(length)) for i, length in enumerate(lengths)]
        return ",".join([*lists, self._stats("item_stats")])

    def _stats(self, name: str) -> str:
        numbers = np.round(self._rng.normal(0.0, 1.0, STATS), 3).tolist()
        return f'"{name}":[{",".join(map(str, numbers))}]'

    def _take(self, count: int) -> list[int]:
        """So many ids, by popularity."""
        while len(self._pool) < count:
            ranks = self._rng.zipf(_ZIPF_EXPONENT, POOL_IDS) % VOCABULARY
            self._pool += ((ranks.astype(np.uint64) * _GOLDEN_GAMMA) >> np.uint64(64 - ID_BITS)).tolist()
        taken = self._pool[-count:]
        del self._pool[-count:]
        return taken


def _member(name: str, ids: list[int]) -> str:
    return f'"{name}":[{",".join(map(str, ids))}]'
