"""Counting what repeats, sample by sample, feature by feature.

Letters in shapes: S samples, F features, P pairs of neighbouring samples of a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from dedup_cache import Jagged, Rows, distinct, fingerprints
from dedup_cache.arrays import Bool, Int64, UInt64
from dedup_cache.slices import overlapped
from stream.advice.sides import Following, sample_pairs
from stream.builder import take_samples
from stream.config import Config, FeatureConfig
from stream.records import SampleBlock

SESSION_START = "recd.session_start"
"""Group and feature that tell an observer which samples share a session."""


KEY_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def with_session_start(config: Config) -> Config:
    """The configuration with one feature more, which says when a sample's session began."""
    start = FeatureConfig(name=SESSION_START, group=SESSION_START, source="session.ms_since_start")
    return msgspec.structs.replace(config, features=(*config.features, start))


@dataclass(slots=True)
class FeatureCounts:
    """Of one feature, over everything observed."""

    changed: list[Bool] = field(default_factory=list)
    """bool[P] per block: whether the value changed from one sample of a session to the next."""
    keys: list[UInt64] = field(default_factory=list)
    """uint64[S] per block: equal for equal values of one batch."""
    returns: int = 0
    """Sessions whose user had a session before."""
    kept: int = 0
    """Of those, the ones that begin with the value with which the session before ended."""
    ids: int = 0
    """Ids over all samples."""
    distinct_rows: int = 0
    """Over the batches, distinct values of each."""
    distinct_ids: int = 0
    """Their ids, one value behind the other."""
    sliced_ids: int = 0
    """Their ids as slices."""
    following: Following = field(default_factory=Following)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that was counted."""

    samples: int
    sessions: int
    features: dict[str, FeatureCounts]

    @property
    def per_session(self) -> float:
        """Mean number of samples in a session."""
        return self.samples / max(1, self.sessions)


class Observer:
    """Looks at the samples of partitions, session by session, as the batches would hold them."""

    def __init__(self, config: Config) -> None:
        self._features = config.features
        self._places = dense_places(config.features)
        self._batch = config.batch.max_samples
        self._counts = {feature.name: FeatureCounts() for feature in config.features}
        self._last: dict[str, dict[bytes | int, tuple[int, int]]] = {f.name: {} for f in config.features}
        self._samples = self._sessions = self._batches = 0

    def add(self, block: SampleBlock, keys: list[bytes | None], items: Int64) -> None:
        """Samples of one partition in order of closing, whole sessions side by side; `keys` of their records.

        `items` int64[S]: which item each shows, numbered from 0 on; -1: not known. The block is of a configuration from
        `with_session_start`.
        """
        starts = block.event_times_ms - block.groups[SESSION_START].dense[:, 0].astype(np.int64)
        users = [key if key is not None else ~place for place, key in enumerate(keys)]
        number = {user: i for i, user in enumerate(dict.fromkeys(users))}
        user_of = np.array([number[user] for user in users], np.int64)
        first = np.ones(block.num_samples, np.bool_)
        first[1:] = (starts[1:] != starts[:-1]) | (user_of[1:] != user_of[:-1])
        firsts = np.flatnonzero(first)
        lasts = np.append(firsts[1:], block.num_samples) - 1
        self._samples += block.num_samples
        self._sessions += firsts.size
        batch_of = self._batches + np.arange(block.num_samples) // self._batch
        self._batches = int(batch_of[-1]) + 1
        pairs = sample_pairs(np.cumsum(first), user_of, items)
        for feature in self._features:
            counts, rows = self._counts[feature.name], feature_rows(block, feature, columns=self._places[feature.name])
            prints = fingerprints(rows, salt=b"")
            counts.changed.append((prints[1:] != prints[:-1]).any(axis=1)[~first[1:]])
            counts.keys.append(joined_keys(prints[:, 0], batch_of.astype(np.uint64)))
            counts.following.add(prints[:, 0], pairs)
            self._across(feature.name, prints, firsts=firsts, lasts=lasts, users=[users[i] for i in firsts.tolist()])
            for column in rows.lists.values():
                counts.ids += int(column.lengths.sum(dtype=np.int64))
        for at in range(0, block.num_samples, self._batch):
            self._count_batch(take_samples(block, np.arange(at, min(at + self._batch, block.num_samples))))

    def observed(self) -> Observed:
        """What was counted so far."""
        return Observed(self._samples, self._sessions, self._counts)

    def _across(self, name: str, prints: UInt64, *, firsts: Int64, lasts: Int64, users: list[bytes | int]) -> None:
        counts, last = self._counts[name], self._last[name]
        pairs = zip(users, prints[firsts].tolist(), prints[lasts].tolist(), strict=True)
        for user, begin, end in pairs:
            if isinstance(user, int):
                continue
            before = last.get(user)
            if before is not None:
                counts.returns += 1
                counts.kept += before == (begin[0], begin[1])
            last[user] = (end[0], end[1])

    def _count_batch(self, batch: SampleBlock) -> None:
        for feature in self._features:
            counts, rows = self._counts[feature.name], feature_rows(batch, feature, columns=self._places[feature.name])
            chosen = rows.take(distinct(fingerprints(rows, salt=b"")).first)
            counts.distinct_rows += chosen.num_rows
            columns: list[Jagged] = list(chosen.lists.values())
            counts.distinct_ids += sum(column.values.shape[0] for column in columns)
            counts.sliced_ids += sum(column.values.shape[0] for column in overlapped(columns))


def joined_keys(one: UInt64, other: UInt64) -> UInt64:
    """Keys that are equal where both are."""
    return (one ^ (one >> np.uint64(32))) * KEY_MULTIPLIER + other


def feature_rows(block: SampleBlock, feature: FeatureConfig, *, columns: range) -> Rows:
    """The rows of one feature alone; `columns` are its places in the dense matrix of its group."""
    rows = block.groups[feature.group]
    lists = {} if feature.is_dense else {feature.name: rows.lists[feature.name]}
    return Rows(rows.dense[:, columns.start : columns.stop], lists)


def dense_places(features: Sequence[FeatureConfig]) -> dict[str, range]:
    """By feature, its columns in the dense matrix of its group."""
    widths: dict[str, int] = {}
    places = {}
    for feature in features:
        begin = widths.get(feature.group, 0)
        widths[feature.group] = begin + len(feature.dense_columns)
        places[feature.name] = range(begin, widths[feature.group])
    return places
