"""Operations on id lists. Those that look at one id at a time work on slices as they are, once per stored id.

Sources: DPP's table of operations (arXiv 2108.09373), and TorchArrow's definitions where it has one. An empty list
stays empty unless said otherwise. Ids are signed 64-bit integers; a negative one is an id like any other.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import Bool, Float32, Int64
from stream.hashing import hash_strings
from stream.transforms import fast
from stream.transforms.mixing import combine, reduce, seed
from stream.transforms.operation import Ids, Kind, KindError, Numbers, Operation

MAX_SIZE = 2**31 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)
Int64Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(gt=0, le=MAX_SIZE)]


class SigridHash(Operation, frozen=True):
    """Each id to [0, buckets): `mixing.combine(seed(salt), id)`, reduced without bias; 0 where `buckets` is 1.

    TorchArrow's `sigrid_hash` by contract, not bit by bit: it hashes by folly. Other salts give independent
    collisions; features of one salt and size agree on their ids.
    """

    merges: ClassVar = False
    buckets: Size
    salt: Int64Number = 0

    def kind(self, ids: Ids) -> Kind:
        """As many ids, all below `buckets`."""
        return Ids(ids.max_length, self.buckets)

    def run(self, column: Jagged) -> Jagged:
        """Slices stay slices."""
        state = seed(self.salt)
        made = fast.hash_ids(column, state=state, size=self.buckets)
        return _with_values(column, reduce(combine(state, column.values), self.buckets)) if made is None else made


class PositiveModulus(Operation, frozen=True):
    """Each id modulo `modulus`, never negative: -1 modulo 10 is 9 (DPP)."""

    modulus: Size

    def kind(self, ids: Ids) -> Kind:
        """As many ids, all below `modulus`."""
        return Ids(ids.max_length, self.modulus)

    def run(self, column: Jagged) -> Jagged:
        """Slices stay slices."""
        return _with_values(column, np.mod(column.values, np.int64(self.modulus)))


class FirstX(Operation, frozen=True):
    """The first min(x, length) ids of each list (DPP; TorchArrow's `firstx`)."""

    x: Size

    def kind(self, ids: Ids) -> Kind:
        """At most `x` ids."""
        return Ids(min(ids.max_length, self.x), ids.bound)

    def run(self, column: Jagged) -> Jagged:
        """Shorter slices of the same values."""
        if int(column.lengths.max(initial=0)) <= self.x:
            return column
        return _trim(Jagged(column.values, column.starts, np.minimum(column.lengths, np.int32(self.x))))


class Clamp(Operation, frozen=True):
    """Each id, or number, into [low, high] (DPP's std::clamp; TorchArrow's `clamp_list`). NaN stays NaN.

    Ids need integers as limits; numbers are compared in 32 bits.
    """

    takes: ClassVar = (Ids | Numbers,)
    low: int | float
    high: int | float

    def __post_init__(self) -> None:
        """Both limits are numbers, in order."""
        for name, limit in (("low", self.low), ("high", self.high)):
            if not abs(limit) <= FLOAT32_MAX or (isinstance(limit, int) and not -(2**63) <= limit < 2**63):
                raise ValueError(f"{name} must be a 32-bit number or a 64-bit integer, got {limit}")
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    def kind(self, given: Kind) -> Kind:
        """The same, within the limits."""
        if isinstance(given, Numbers):
            return given
        if isinstance(self.low, float) or isinstance(self.high, float):
            raise KindError(f"needs integers as the limits of ids, got {self.low} and {self.high}")
        return Ids(given.max_length, self.high + 1 if self.low >= 0 else None)

    def run(self, column: Jagged | Float32) -> Jagged | Float32:
        """Slices stay slices."""
        if isinstance(column, Jagged):
            return _with_values(column, np.clip(column.values, np.int64(self.low), np.int64(self.high)))
        clipped: Float32 = np.clip(column, np.float32(self.low), np.float32(self.high))
        return clipped


class MapId(Operation, frozen=True):
    """Each id by a table; one that the table does not hold becomes `default`, or falls out where there is none (DPP).

    Keys may be texts: a string feature's ids are the hashes of its texts.
    """

    table: tuple[tuple[Int64Number | str, Int64Number], ...]
    """Pairs [id or text, new id]."""
    default: Int64Number | None = None

    def __post_init__(self) -> None:
        """Every key once."""
        if not self.table:
            raise ValueError("table is empty")
        keys, counts = np.unique(self._keys(), return_counts=True)
        if int(counts.max()) > 1:
            twice = keys[counts > 1]
            raise ValueError(f"table has a key twice: {self.table[int(np.argmax(self._keys() == twice[0]))][0]}")

    def kind(self, ids: Ids) -> Kind:
        """At most as many ids, those that the table names."""
        named = [new for _, new in self.table] + ([] if self.default is None else [self.default])
        return Ids(ids.max_length, max(named) + 1 if min(named) >= 0 else None)

    def run(self, column: Jagged) -> Jagged:
        """Slices stay slices, also where ids fall out of them."""
        keys = self._keys()
        order = np.argsort(keys)
        keys, new = keys[order], np.array([new for _, new in self.table], np.int64)[order]
        places = np.minimum(np.searchsorted(keys, column.values), keys.size - 1)
        found = keys[places] == column.values
        if self.default is None:
            return _keep(_with_values(column, new[places]), found)
        return _with_values(column, np.where(found, new[places], np.int64(self.default)))

    def _keys(self) -> Int64:
        texts = [key for key, _ in self.table if isinstance(key, str)]
        hashed = iter(hash_strings(texts).tolist())
        return np.array([next(hashed) if isinstance(key, str) else key for key, _ in self.table], np.int64)


class NGram(Operation, frozen=True):
    """Each window of `n` consecutive ids as one id, a hash of them in order; lists shorter than `n` give none (DPP).

    `n` ids a, b, ... become combine(combine(seed(n), a), b) ... of `mixing`: any 64 bits, mostly a case for SigridHash.
    """

    merges: ClassVar = False
    n: Annotated[int, msgspec.Meta(ge=2, le=16)]

    def kind(self, ids: Ids) -> Kind:
        """`n` - 1 ids less."""
        return Ids(max(ids.max_length - self.n + 1, 0))

    def run(self, column: Jagged) -> Jagged:
        """Slices stay slices: a window is hashed once for all rows that hold it."""
        if column.is_contiguous():
            made = fast.hash_windows(column, n=self.n, state=seed(self.n))
            if made is not None:
                return made
        whole = Jagged.from_lengths(column.values, np.array([column.values.shape[0]]))
        all_windows = fast.hash_windows(whole, n=self.n, state=seed(self.n))
        hashed = self._windows(column.values) if all_windows is None else all_windows.values
        lengths = np.maximum(column.lengths - np.int32(self.n - 1), np.int32(0))
        starts = np.where(lengths > 0, column.starts, np.int32(0))
        return _trim(Jagged(hashed, starts, lengths))

    def _windows(self, values: Int64) -> Int64:
        windows = max(values.shape[0] - self.n + 1, 0)
        state = np.repeat(seed(self.n), windows)
        for i in range(self.n):
            state = combine(state, values[i : i + windows])
        return state.view(np.int64)


class Enumerate(Operation, frozen=True):
    """Places in the list, from 0: `pair` makes one id of place and id, `place` the places themselves (DPP).

    A pair is combine(seed(place), id) of `mixing`, so that an embedding knows where in the list its id stood.
    """

    merges: ClassVar = False
    of: Literal["pair", "place"] = "pair"

    def kind(self, ids: Ids) -> Kind:
        """As many ids."""
        return Ids(ids.max_length, max(ids.max_length, 1) if self.of == "place" else None)

    def run(self, column: Jagged) -> Jagged:
        """Places are slices of one column 0, 1, 2, ...; pairs of slices are copied, they differ by row."""
        if self.of == "place":
            longest = int(column.lengths.max(initial=0))
            return Jagged(np.arange(longest, dtype=np.int64), np.zeros_like(column.starts), column.lengths)
        made = fast.hash_places(column)
        if made is not None:
            return made
        values, lengths = column.compact()
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.arange(values.shape[0], dtype=np.int64) - np.repeat(ends - lengths, lengths)
        seeds = np.concatenate([seed(place) for place in range(int(lengths.max(initial=0)))] or [seed(0)])
        return Jagged.from_lengths(combine(seeds[places], values).view(np.int64), lengths)


def _with_values(column: Jagged, values: Int64) -> Jagged:
    return Jagged(values, column.starts, column.lengths)


def _keep(column: Jagged, kept: Bool) -> Jagged:
    """The same rows without the ids that are not `kept`, bool[N]."""
    before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    starts, stops = before[column.starts], before[column.starts + column.lengths]
    return Jagged(column.values[kept], starts.astype(np.int32), (stops - starts).astype(np.int32))


def _trim(column: Jagged) -> Jagged:
    trimmed = fast.trim(column)
    return column.trim() if trimmed is None else trimmed
