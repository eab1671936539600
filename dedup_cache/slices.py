"""Rows that overlap the row before them, stored as slices of one union list (RecD's partial IKJT, arXiv 2211.05239).

Samples of a session are neighbours, so a history that grows or slides by one id per event stands in the row before but
for one id. A row v is linked to the row u before it where the two agree on all the places that they share:

- at the end: v continues a suffix of u (oldest first: u = [1,2,3], v = [2,3,4]), or lies within u;
- at the front: a suffix of v, or all of u, continues as a prefix of u (newest first: u = [3,2,1], v = [4,3,2]).

Linked rows form a chain, and a chain is one list. A link is cut where v would go beyond u into places that an earlier
row of the chain already fills. Letters in shapes: U rows, N ids, P pairs of rows, C candidate places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dedup_cache.arrays import Bool, Int64
from dedup_cache.ikjt import Group
from dedup_cache.jagged import Jagged, Rows, concat_columns, gather
from dedup_cache.schema import GroupSchema, Slicing

MAX_CANDIDATES = 4
"""Places of one row at which another may begin; of more, which takes repeats within a list, the last are not tried."""
MIN_SAVED_IDS_PER_ROW = 0.5
"""A row that does not follow its predecessor costs up to 4 bytes more as a slice, and an id is 8."""


@dataclass(frozen=True, slots=True)
class _Pairs:
    """P neighbouring rows u (before) and v (after), neither empty: their places in the values and their lengths."""

    u_start: Int64
    u_length: Int64
    v_start: Int64
    v_length: Int64

    def of(self, indices: Int64) -> _Pairs:
        return _Pairs(self.u_start[indices], self.u_length[indices], self.v_start[indices], self.v_length[indices])

    def swapped(self) -> _Pairs:
        return _Pairs(self.v_start, self.v_length, self.u_start, self.u_length)


def slice_group(group: Group, schema: GroupSchema) -> Group:
    """The same rows, each list in the form that the schema asks for; rows by reference are empty and take no part."""
    rows = Rows(group.rows.dense, sliced(group.rows.lists, schema.slicing))
    return Group(rows, group.inverse, group.ids, group.checks, group.inline)


def sliced(lists: Mapping[str, Jagged], slicing: Sequence[Slicing]) -> dict[str, Jagged]:
    """The same rows in the forms asked for, list by list.

    A column that came as slices stays as it is, but for NEVER.
    """
    lists = dict(lists)
    wanted = dict(zip(lists, slicing, strict=True))
    for name, column in lists.items():
        if wanted[name] is Slicing.NEVER and not column.is_contiguous():
            lists[name] = Jagged.from_lengths(*column.compact())
    tried = [name for name, column in lists.items() if _is_worth_a_try(column, wanted[name])]
    for name, made in zip(tried, overlapped([lists[name] for name in tried]), strict=True):
        saved = lists[name].values.shape[0] - made.values.shape[0]
        needed = MIN_SAVED_IDS_PER_ROW * made.num_rows if wanted[name] is Slicing.AUTO else 1
        if saved >= needed:
            lists[name] = made
    return lists


def _is_worth_a_try(column: Jagged, slicing: Slicing) -> bool:
    if slicing is Slicing.NEVER or column.num_rows < 2 or not column.is_contiguous():
        return False
    return slicing is Slicing.ALWAYS or column.values.shape[0] > column.num_rows


def overlapped(columns: Sequence[Jagged]) -> list[Jagged]:
    """The same rows as slices of the union lists of their chains, column by column; O(N). Empty rows take no part."""
    if not columns:
        return []
    whole = concat_columns(columns)
    filled = np.flatnonzero(whole.lengths)
    owner = np.repeat(np.arange(len(columns)), [column.num_rows for column in columns])[filled]
    if filled.size < 2:
        return list(columns)
    starts, lengths = whole.starts[filled].astype(np.int64), whole.lengths[filled].astype(np.int64)
    shifts, linked = _links(whole.values, _Pairs(starts[:-1], lengths[:-1], starts[1:], lengths[1:]))
    linked &= owner[1:] == owner[:-1]
    heads = np.concatenate([[True], ~linked])
    places = _places(np.concatenate([[0], np.where(linked, shifts, 0)]), heads)
    linked &= _free_of_conflict(places, lengths, heads)
    heads[1:] = ~linked
    places = _places(np.concatenate([[0], np.where(linked, shifts, 0)]), heads)
    return _split(_laid_out(whole, filled, places, heads), columns)


def _links(values: Int64, pairs: _Pairs) -> tuple[Int64, Bool]:
    """By pair, how far v begins behind u (before it: below 0), and whether they are linked at all."""
    forward, found = _first_match(values, pairs)
    shifts = np.where(found, forward, 0)
    open_pairs = np.flatnonzero(~found)
    backward, found_backward = _first_match(values, pairs.of(open_pairs).swapped())
    shifts[open_pairs] = np.where(found_backward, -backward, 0)
    found[open_pairs] = found_backward
    return shifts, found


def _first_match(values: Int64, pairs: _Pairs) -> tuple[Int64, Bool]:
    """By pair, the first place k of u from which on u and v agree as far as both go, and whether there is one."""
    pair, place = _candidates(values, pairs)
    shared = np.minimum(pairs.u_length[pair] - place, pairs.v_length[pair])
    one = gather(values, pairs.u_start[pair] + place, shared)
    other = gather(values, pairs.v_start[pair], shared)
    begins = np.cumsum(shared) - shared
    agree = np.logical_and.reduceat(one == other, begins) if pair.size else np.zeros(0, np.bool_)
    pair, place = pair[agree][::-1], place[agree][::-1]
    first = np.full(pairs.u_start.shape[0], -1, np.int64)
    first[pair] = place
    return first, first >= 0


def _candidates(values: Int64, pairs: _Pairs) -> tuple[Int64, Int64]:
    """(pair, place of u) int64[C] where u holds v's first id, in order; at most MAX_CANDIDATES a pair."""
    ends = np.cumsum(pairs.u_length)
    wanted = np.repeat(values[pairs.v_start], pairs.u_length)
    hits = np.flatnonzero(gather(values, pairs.u_start, pairs.u_length) == wanted)
    pair = np.searchsorted(ends, hits, side="right")
    place = hits - (ends - pairs.u_length)[pair]
    rank = np.arange(pair.size) - np.searchsorted(pair, pair)
    near = rank < MAX_CANDIDATES
    return pair[near], place[near]


def _places(shifts: Int64, heads: Bool) -> Int64:
    """Where each row begins, counted from the beginning of its chain's first row."""
    totals = np.cumsum(shifts)
    firsts = np.flatnonzero(heads)
    return totals - np.repeat(totals[firsts], np.diff(np.append(firsts, heads.size)))


def _free_of_conflict(places: Int64, lengths: Int64, heads: Bool) -> Bool:
    """By pair, whether v goes beyond u only where u is the outermost row of its chain so far.

    Chains that are cut at the others get shorter, so what holds before holds after.
    """
    ends = places + lengths
    farthest, nearest = _running_max(ends, heads), -_running_max(-places, heads)
    behind = (ends[1:] <= ends[:-1]) | (ends[:-1] == farthest[:-1])
    before = (places[1:] >= places[:-1]) | (places[:-1] == nearest[:-1])
    free: Bool = behind & before
    return free


def _running_max(numbers: Int64, heads: Bool) -> Int64:
    """The greatest number of the chain so far."""
    span = np.int64(numbers.max() - numbers.min() + 1)
    lift = np.cumsum(heads) * span
    maxima: Int64 = np.maximum.accumulate(numbers + lift) - lift
    return maxima


def _laid_out(column: Jagged, filled: Int64, places: Int64, heads: Bool) -> Jagged:
    """Chains one behind the other, each as long as its rows reach."""
    firsts = np.flatnonzero(heads)
    lengths = column.lengths[filled].astype(np.int64)
    lowest = np.minimum.reduceat(places, firsts)
    sizes = np.maximum.reduceat(places + lengths, firsts) - lowest
    bases = np.cumsum(sizes) - sizes - lowest
    begins = places + np.repeat(bases, np.diff(np.append(firsts, heads.size)))
    values = np.empty(int(sizes.sum()), np.int64)
    ends = np.cumsum(lengths)
    values[np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]))] = column.values
    starts = np.zeros(column.num_rows, np.int32)
    starts[filled] = begins
    return Jagged(values, starts, column.lengths)


def _split(whole: Jagged, columns: Sequence[Jagged]) -> list[Jagged]:
    """The columns that `whole` was put together from, whose rows do not share values across columns."""
    parts, row, base = [], 0, 0
    for column in columns:
        rows = slice(row, row + column.num_rows)
        starts, lengths = whole.starts[rows], whole.lengths[rows]
        end = max(base, int((starts + lengths).max(initial=0)))
        local = np.where(lengths > 0, starts - base, 0).astype(np.int32)
        parts.append(Jagged(whole.values[base:end], local, lengths))
        row, base = rows.stop, end
    return parts
