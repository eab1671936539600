"""Operations on two id lists of the same row.

Sources: DPP's table of operations (arXiv 2108.09373); the family of ComputeScore as TorchArrow's code has it. Nothing
here loops over rows: the ids of both lists are grouped by (row, id) once.

Letters in shapes: U rows, N ids of both lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from dedup_cache import Jagged, distinct
from dedup_cache.arrays import AnyArray, Bool, Float32, Int32, Int64
from stream.transforms import fast
from stream.transforms.mixing import GOLDEN_GAMMA, combine, mix, seed
from stream.transforms.operation import Ids, Kind, KindError, Numbers, Operation

MAX_PAIRS = 1 << 16
PAIR_SALT = 2


class Cartesian(Operation, frozen=True):
    """Each pair (a, b) of an id of the first and one of the second list as one id, a hash of both in order (DPP).

    combine(combine(seed(2), a), b) of `mixing`, so the same as an NGram of the two. All b of the first a come first;
    pairs beyond `max_pairs` in a row are left out. One empty list, no pairs.
    """

    takes: ClassVar = (Ids, Ids)
    max_pairs: Annotated[int, msgspec.Meta(gt=0, le=MAX_PAIRS)] = 1_000

    def kind(self, first: Ids, second: Ids) -> Kind:
        """The product of the lengths, limited."""
        return Ids(min(first.max_length * second.max_length, self.max_pairs))

    def run(self, first: Jagged, second: Jagged) -> Jagged:
        """Compact lists."""
        made = fast.hash_pairs(first, second, max_pairs=self.max_pairs, state=seed(PAIR_SALT))
        return self._pairs(first, second) if made is None else made

    def _pairs(self, first: Jagged, second: Jagged) -> Jagged:
        widths = second.lengths.astype(np.int64)
        counts = np.minimum(first.lengths * widths, self.max_pairs)
        ends = np.cumsum(counts)
        places = np.arange(int(ends[-1]) if ends.size else 0) - np.repeat(ends - counts, counts)
        width = np.repeat(widths, counts)
        ids_a = first.values[np.repeat(first.starts, counts) + places // np.maximum(width, 1)]
        ids_b = second.values[np.repeat(second.starts, counts) + places % np.maximum(width, 1)]
        return Jagged.from_lengths(combine(combine(seed(PAIR_SALT), ids_a), ids_b).view(np.int64), counts)


class IdListTransform(Operation, frozen=True):
    """Set operations: each id once, in the order of first appearance in the first list, then in the second (DPP).

    `intersection`: ids of both; `difference`: of the first but not the second; `union`: of either.
    """

    takes: ClassVar = (Ids, Ids)
    operation: Literal["intersection", "union", "difference"]

    def kind(self, first: Ids, second: Ids) -> Kind:
        """Never longer than the lists together."""
        if self.operation != "union":
            return Ids(first.max_length, first.bound)
        known = first.bound is not None and second.bound is not None
        return Ids(first.max_length + second.max_length, max(first.bound or 0, second.bound or 0) if known else None)

    def run(self, first: Jagged, second: Jagged) -> Jagged:
        """Compact lists."""
        made = fast.choose_ids(first, second, operation=self.operation)
        return self._chosen(first, second) if made is None else made

    def _chosen(self, first: Jagged, second: Jagged) -> Jagged:
        pool = _Pool.of(first, second)
        chosen = pool.is_first_appearance()
        if self.operation != "union":
            in_second = pool.totals(pool.in_second.astype(np.float64)) > 0
            wanted = in_second if self.operation == "intersection" else ~in_second
            chosen &= wanted[pool.of_key] & ~pool.in_second
        return Jagged.from_lengths(pool.values[chosen], np.bincount(pool.rows[chosen], minlength=first.num_rows))


class ComputeScore(Operation, frozen=True):
    """How two id lists of a row match, as one number (TorchArrow's `has_id_overlap` and its relatives).

    Lists are multisets; n(x) and m(x) say how often x stands in the first and in the second, sums are over distinct
    ids of both. `scores` has one number per place in the second list (`weighted_cosine`: one feature for each list).

    - `has_overlap`: 1 where any id stands in both, else 0. `overlap_count`: sum of min(n, m).
    - `max_count`: sum of max(n, m). `jaccard`: overlap / (N + M - overlap); 0 for two empty lists.
    - `cosine`: of the vectors n and m; `weighted_cosine`: of the sums of scores by id. 0 where a vector is zero.
    - `score_sum`: sum of the second list's scores over its places with a common id; `score_min`, `score_max` of them,
      0 where nothing is common.
    """

    kind_: Literal[
        "has_overlap",
        "overlap_count",
        "max_count",
        "jaccard",
        "cosine",
        "weighted_cosine",
        "score_sum",
        "score_min",
        "score_max",
    ] = msgspec.field(name="kind")

    def inputs(self) -> tuple[type | UnionType, ...]:
        """ids, ids; for `score_*` ids, ids, scores; for `weighted_cosine` ids, scores, ids, scores."""
        if self.kind_ == "weighted_cosine":
            return (Ids, Numbers, Ids, Numbers)
        return (Ids, Ids, Numbers) if self.kind_.startswith("score") else (Ids, Ids)

    def kind(self, *kinds: Kind, **_: object) -> Kind:
        """One number. KindError where a list may have more ids than scores."""
        ids = [kind for kind in kinds if isinstance(kind, Ids)]
        scores = [kind for kind in kinds if isinstance(kind, Numbers)]
        for given, column in zip(ids[-len(scores) :] if scores else [], scores, strict=True):
            if column.width < given.max_length:
                raise KindError(f"{column} cannot score a list of up to {given.max_length} ids")
        return Numbers(1)

    def run(self, *columns: Jagged | Float32, **_: object) -> Float32:
        """float32[U, 1], computed in 64 bits."""
        lists = [column for column in columns if isinstance(column, Jagged)]
        scores = [column for column in columns if not isinstance(column, Jagged)]
        if not scores:
            return self._counted(*lists).astype(np.float32)[:, None]
        pool = _Pool.of(*lists)
        if self.kind_ == "weighted_cosine":
            a, b = pool.sides(pool.spread(scores[0], second=False) + pool.spread(scores[1], second=True))
            result = _cosine(*map(pool.by_row, (a * b, a * a, b * b)))
        else:
            result = self._scored(pool, pool.spread(scores[0], second=True))
        return result.astype(np.float32)[:, None]

    def _counted(self, first: Jagged, second: Jagged) -> AnyArray:
        found = fast.compare_ids(first, second, overlap_only=self.kind_ not in ("max_count", "cosine"))
        sums: AnyArray = _Pool.of(first, second).compare() if found is None else found
        overlap: AnyArray = sums[0]
        if self.kind_ == "has_overlap":
            overlap = np.minimum(overlap, 1.0)
        elif self.kind_ == "max_count":
            overlap = sums[1]
        elif self.kind_ == "cosine":
            overlap = _cosine(*sums[2:])
        elif self.kind_ == "jaccard":
            union = first.lengths + second.lengths.astype(np.int64) - overlap
            overlap = overlap / np.maximum(union, 1.0)
        return overlap

    def _scored(self, pool: _Pool, scores: AnyArray) -> AnyArray:
        in_first = pool.totals((~pool.in_second).astype(np.float64)) > 0
        common = pool.in_second & in_first[pool.of_key]
        rows, scores = pool.rows[common], scores[common]
        if self.kind_ == "score_sum":
            sums: AnyArray = np.bincount(rows, weights=scores, minlength=pool.num_rows)
            return sums
        best = np.full(pool.num_rows, np.inf if self.kind_ == "score_min" else -np.inf)
        (np.minimum if self.kind_ == "score_min" else np.maximum).at(best, rows, scores)
        found: AnyArray = np.where(np.bincount(rows, minlength=pool.num_rows) > 0, best, 0.0)
        return found


@dataclass(frozen=True, slots=True)
class _Pool:
    """The ids of two lists, row after row, the first list's before the second's; keys are the distinct (row, id)."""

    num_rows: int
    values: Int64
    rows: Int64
    """int64[N]"""
    in_second: Bool
    """bool[N]: of the second list."""
    places: Int64
    """int64[N]: place in its own list."""
    first: Int64
    """int64[keys]: where each (row, id) stands first."""
    of_key: Int32
    """int32[N]: number of its (row, id)."""

    @staticmethod
    def of(first: Jagged, second: Jagged) -> _Pool:
        """Rows of both must be as many."""
        count = first.num_rows
        both = Jagged(
            np.concatenate([first.values, second.values]),
            np.stack([first.starts, second.starts + np.int32(first.values.shape[0])], axis=1).ravel(),
            np.stack([first.lengths, second.lengths], axis=1).ravel(),
        )
        values, lengths = both.compact()
        half: AnyArray = np.repeat(np.arange(2 * count), lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.arange(values.shape[0], dtype=np.int64) - np.repeat(ends - lengths, lengths)
        rows = half >> 1
        # One row's mixed ids differ from another's for the same id: the pair (mixed, id) is exact.
        mixed = mix(values.view(np.uint64) + rows.view(np.uint64) * GOLDEN_GAMMA)
        keys = distinct(np.stack([mixed, values.view(np.uint64)], axis=1))
        return _Pool(count, values, rows, (half & 1).astype(np.bool_), places, keys.first, keys.inverse)

    def is_first_appearance(self) -> Bool:
        """bool[N]: whether no equal id stands before it in its row."""
        chosen = np.zeros(self.rows.shape[0], np.bool_)
        chosen[self.first] = True
        return chosen

    def totals(self, weights: AnyArray) -> AnyArray:
        """float64[keys]: sum of float64[N] by key."""
        return np.bincount(self.of_key, weights=weights, minlength=self.first.shape[0])

    def sides(self, weights: AnyArray) -> tuple[AnyArray, AnyArray]:
        """float64[keys] twice: sums by key over the first list and over the second."""
        return self.totals(np.where(self.in_second, 0.0, weights)), self.totals(np.where(self.in_second, weights, 0.0))

    def by_row(self, of_keys: AnyArray) -> AnyArray:
        """float64[U]: sums over the keys of each row."""
        return np.bincount(self.rows[self.first], weights=of_keys, minlength=self.num_rows)

    def compare(self) -> AnyArray:
        """float64[5, U], as `fast.compare_ids` has it."""
        n, m = self.sides(np.ones(self.rows.shape[0]))
        greater = np.where((n > 0) & (m > 0), np.maximum(n, m), 0.0)
        return np.stack([self.by_row(sums) for sums in (np.minimum(n, m), greater, n * m, n * n, m * m)])

    def spread(self, scores: Float32, *, second: bool) -> AnyArray:
        """float64[N]: the score of each id of one of the lists, 0 for the other's and where it is NaN."""
        spread = np.zeros(self.rows.shape[0])
        chosen = self.in_second == second
        spread[chosen] = np.nan_to_num(scores[self.rows[chosen], self.places[chosen]])
        return spread


def _cosine(product: AnyArray, squares: AnyArray, squares_2: AnyArray) -> AnyArray:
    norms = np.sqrt(squares) * np.sqrt(squares_2)
    return np.where(norms > 0, product / np.where(norms > 0, norms, 1.0), 0.0)
