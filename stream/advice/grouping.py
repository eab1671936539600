"""Which features should share an inverse: greedy merging by what a batch then holds.

A group of features costs an inverse (one number a sample) and a row whenever any of its features changes. Two groups
are merged as long as some pair of them costs less together: within sessions, and by the distinct rows of real batches,
for items repeat across sessions until a history joins them. What is the user's never stands with what is the item's:
a request to rank has the former once and the latter for every candidate.

Letters in shapes: S samples, P pairs of neighbouring samples of a session, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dedup_cache.arrays import Bool, UInt64
from stream.advice.observe import joined_keys
from stream.advice.sides import BOUND, Side

INVERSE_BYTES = 4.0
"""Of a sample, before compression."""
SMALL = 0.01
"""Of all bytes: a group of fewer is spared its own index and lookup where that costs at most SPARED bytes more."""
SPARED = 0.005
"""Of all bytes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One feature, or some that have to stay together."""

    names: tuple[str, ...]
    row_bytes: float
    """Of one row of it."""
    changed: Bool
    """bool[P]"""
    keys: UInt64
    """uint64[S], equal for equal values of one batch."""
    side: Side = Side.OPEN

    @property
    def bytes(self) -> float:
        """Of its rows and its inverse."""
        return self.row_bytes * np.unique(self.keys).size + INVERSE_BYTES * self.keys.size


class _Spare(NamedTuple):
    """Which groups are small, and what joining one may cost."""

    row_bytes: float
    bytes: float

    def slack(self, one: Candidate, other: Candidate) -> float:
        """So many bytes more count as saved."""
        return self.bytes if min(one.row_bytes, other.row_bytes) <= self.row_bytes else 0.0


def greedy_groups(candidates: Sequence[Candidate], *, sessions: int) -> list[tuple[str, ...]]:
    """Names by group, features and groups in the order of `candidates`."""
    if not candidates:
        return []
    members = [[place] for place in range(len(candidates))]
    groups = list(candidates)
    barred = np.tri(len(groups), dtype=np.bool_)
    spare = _Spare(SMALL * sum(group.row_bytes for group in groups), SPARED * sum(group.bytes for group in groups))
    while (pair := _best_pair(groups, barred | _apart(groups), sessions=sessions, spare=spare)) is not None:
        one, other = pair
        merged = joined((groups[one], groups[other]))
        if merged.bytes >= groups[one].bytes + groups[other].bytes + spare.slack(groups[one], groups[other]):
            barred[one, other] = True
            continue
        groups[one] = merged
        members[one] += members[other]
        del groups[other], members[other]
        barred = np.delete(np.delete(barred, other, axis=0), other, axis=1)
    ordered = sorted(sorted(group) for group in members)
    return [tuple(name for place in group for name in candidates[place].names) for group in ordered]


def joined(members: Sequence[Candidate]) -> Candidate:
    """All of them as one."""
    keys = members[0].keys
    for member in members[1:]:
        keys = joined_keys(keys, member.keys)
    return Candidate(
        tuple(name for member in members for name in member.names),
        sum(member.row_bytes for member in members),
        np.logical_or.reduce([member.changed for member in members]),
        keys,
        joined_side([member.side for member in members]),
    )


def joined_side(sides: Sequence[Side]) -> Side:
    """Of features that stay together: the user's or the item's where any of them is that, and none the other."""
    bound = {side for side in sides if side in BOUND}
    if len(bound) == 1:
        return bound.pop()
    return Side.OPEN if bound or len(set(sides)) != 1 else sides[0]


def _apart(groups: Sequence[Candidate]) -> Bool:
    """bool[G, G]: the one is the user's and the other the item's."""
    user, item = (np.array([group.side is side for group in groups]) for side in BOUND)
    apart: Bool = np.outer(user, item) | np.outer(item, user)
    return apart


def _best_pair(groups: Sequence[Candidate], barred: Bool, *, sessions: int, spare: _Spare) -> tuple[int, int] | None:
    """The two groups, the lower number first, that promise to save most within sessions; None where none does."""
    if len(groups) < 2:
        return None
    changed = np.array([group.changed for group in groups], np.float32)
    size = np.array([group.row_bytes for group in groups])
    counts = changed.sum(axis=1, dtype=np.float64)
    either = counts[:, None] + counts[None, :] - changed @ changed.T
    apart = (sessions + counts) * size
    together = (sessions + either) * (size[:, None] + size[None, :])
    saved = apart[:, None] + apart[None, :] + INVERSE_BYTES * groups[0].keys.size - together
    small = size <= spare.row_bytes
    saved += spare.bytes * (small[:, None] | small[None, :])
    saved[barred] = -np.inf
    one, other = divmod(int(np.argmax(saved)), len(groups))
    return (one, other) if saved[one, other] > 0 else None
