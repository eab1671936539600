"""Which features should share an inverse: greedy merging by what a batch then holds.

A group of features costs an inverse (one number a sample) and a row whenever any of its features changes. Two groups
are merged as long as some pair of them costs less together: within sessions, and by the distinct rows of real batches,
for items repeat across sessions until a history joins them. Letters in shapes: S samples, P pairs of neighbouring
samples of a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dedup_cache.arrays import Bool, UInt64
from stream.advice.observe import joined_keys

INVERSE_BYTES = 4.0
"""Of a sample, before compression."""


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

    @property
    def bytes(self) -> float:
        """Of its rows and its inverse."""
        return self.row_bytes * np.unique(self.keys).size + INVERSE_BYTES * self.keys.size


def greedy_groups(candidates: Sequence[Candidate], *, sessions: int) -> list[tuple[str, ...]]:
    """Names by group, features and groups in the order of `candidates`."""
    if not candidates:
        return []
    members = [[place] for place in range(len(candidates))]
    groups = list(candidates)
    barred = np.tri(len(groups), dtype=np.bool_)
    while (pair := _best_pair(groups, barred, sessions=sessions)) is not None:
        one, other = pair
        merged = _merged(groups[one], groups[other])
        if merged.bytes >= groups[one].bytes + groups[other].bytes:
            barred[one, other] = True
            continue
        groups[one] = merged
        members[one] += members[other]
        del groups[other], members[other]
        barred = np.delete(np.delete(barred, other, axis=0), other, axis=1)
    ordered = sorted(sorted(group) for group in members)
    return [tuple(name for place in group for name in candidates[place].names) for group in ordered]


def _merged(one: Candidate, other: Candidate) -> Candidate:
    return Candidate(
        one.names + other.names,
        one.row_bytes + other.row_bytes,
        one.changed | other.changed,
        joined_keys(one.keys, other.keys),
    )


def _best_pair(groups: Sequence[Candidate], barred: Bool, *, sessions: int) -> tuple[int, int] | None:
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
    saved[barred] = -np.inf
    one, other = divmod(int(np.argmax(saved)), len(groups))
    return (one, other) if saved[one, other] > 0 else None
