"""One pass over the JSON text of many records, straight into columns.

What is accepted is a part of JSON that means the same to everybody. Whatever else a record holds (half a surrogate
pair, a name twice, a number of 20 digits, bytes that are no UTF-8, a wrong type), the record is called unsure,
and somebody slower has to look at it.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dedup_cache.arrays import Bool, Float64, Int64, UInt8
from dedup_cache.compiled.kernel import kernel, part
from stream.compiled import json_float, json_grammar
from stream.compiled.json_grammar import (
    CLOSE,
    CLOSE_LIST,
    COLON,
    COMMA,
    FLOAT,
    INT,
    OPEN,
    OPEN_LIST,
    QUOTE,
    blank,
    number,
    past_value,
    past_word,
    short_integer,
    string_end,
    unescape,
)

TEXT, LIST, OBJECT, CHOICE = 2, 8, 16, 32
"""What a value may be; LIST goes with the kind of its elements, CHOICE (a text out of some) and OBJECT stand alone."""
SPAN_BITS = 16
"""A text is named by one number: its place << SPAN_BITS | its length."""
DEEPEST = 16
_SOURCES = zlib.crc32(b"".join(Path(str(one.__file__)).read_bytes() for one in (json_grammar, json_float)))
"""An argument of the kernel, for numba's cache does not look at the files of what a kernel calls."""


class Paths(NamedTuple):
    """The values to read. Path p is a member of an object, or one of the texts of a choice; siblings are neighbours."""

    names: UInt8
    """All names in a row; that of p is names[name_starts[p] : name_starts[p + 1]]."""
    name_starts: Int64
    is_plain: Bool
    """bool[P]: whether JSON text may show the name as it is, without escapes."""
    first: Int64
    """int64[objects + 1]: object o has the members first[o] up to first[o + 1]; object 0 is the record."""
    kinds: Int64
    """int64[P]"""
    inner: Int64
    """int64[P]: of an OBJECT or CHOICE, the number of the object that lists its members."""
    low: Float64
    high: Float64
    """float64[P]: the least and the greatest number; integers are compared as such within 2^53."""


class Found(NamedTuple):
    """What E records hold, by path and record."""

    kinds: UInt8
    """uint8[P, E]: what was there: INT, TEXT, FLOAT, CHOICE, LIST; 0 where it is missing or null."""
    values: Int64
    """int64[P, E]: the integer, the path of a choice, the place of a list in `pool`."""
    floats: Float64
    """The same memory."""
    spans: Int64
    """int64[P, E]: the text of a TEXT, CHOICE or INT; the length of a list."""
    pool: Int64
    """The elements of all lists: integers, spans of texts, or"""
    pool_floats: Float64
    """floats, in the same memory."""
    sure: Bool
    """bool[E]"""


class Notes(NamedTuple):
    """Work space, and what is remembered from record to record."""

    seen: Int64
    """int64[P]: the last record that had the path."""
    follows: Int64
    """int64[P]: the path that came next the last time."""
    owners: Int64
    """int64[DEEPEST]: the objects that are open."""


def make_notes(paths: Paths) -> Notes:
    """For one call of `scan`."""
    count = paths.kinds.shape[0]
    return Notes(np.full(count, -1), np.zeros(count, np.int64), np.zeros(DEEPEST, np.int64))


@part
def _is_guess(text: UInt8, at: int, paths: Paths, owner: int, guess: int) -> bool:
    """Whether the string that begins at `at` is, letter by letter, the name of `guess`, a member of `owner`."""
    if guess < paths.first[owner] or guess >= paths.first[owner + 1] or not paths.is_plain[guess]:
        return False
    start = paths.name_starts[guess]
    size = paths.name_starts[guess + 1] - start
    for k in range(size):
        if text[at + k] != paths.names[start + k]:
            return False
    return bool(text[at + size] == QUOTE)


@part
def _find(text: UInt8, at: int, end: int, paths: Paths, owner: int, guess: int) -> int:
    """The member of object `owner` whose name is text[at:end], or -1; the guess is looked at first."""
    first, last = paths.first[owner], paths.first[owner + 1]
    if guess < first or guess >= last:
        guess = first
    for step in range(last - first):
        p = guess + step
        if p >= last:
            p -= last - first
        start = paths.name_starts[p]
        same = paths.name_starts[p + 1] - start == end - at
        k = 0
        while same and k < end - at:
            same = paths.names[start + k] == text[at + k]
            k += 1
        if same:
            return p
    return -1


@part
def _member(text: UInt8, at: int, paths: Paths, owner: int, guess: int) -> tuple[int, int]:
    """Which member of `owner` the string that begins at `at` names, or -1; and where it ends, or -1 for no string."""
    if _is_guess(text, at, paths, owner, guess):
        return guess, at + paths.name_starts[guess + 1] - paths.name_starts[guess]
    end, plain = string_end(text, at)
    if end < 0:
        return -1, end
    last = end if plain else unescape(text, at, end)
    return _find(text, at, last, paths, owner, guess), end


@part
def _fits(kind: int, wanted: int, value: float, low: float, high: float) -> bool:
    return (kind & wanted != 0 or (kind == INT and wanted & FLOAT != 0)) and low <= value <= high


@part
def _list(text: UInt8, i: int, paths: Paths, found: Found, p: int, e: int, used: int) -> tuple[int, int]:
    """Read a list that begins at i into the pool from `used` on; (the place behind it or -1, used)."""
    wanted = paths.kinds[p]
    first = used
    i = blank(text, i + 1)
    more = text[i] != CLOSE_LIST
    while more:
        behind, digits = short_integer(text, i) if wanted == LIST | INT else (-1, np.uint64(0))
        if behind >= 0:
            found.pool[used] = digits
            i = behind
        elif text[i] == QUOTE:
            end, plain = string_end(text, i + 1)
            if end < 0 or wanted & TEXT == 0 or end - i >= 1 << SPAN_BITS:
                return -1, first
            last = end if plain else unescape(text, i + 1, end)
            found.pool[used] = (i + 1) << SPAN_BITS | (last - i - 1)
            i = end + 1
        else:
            i, kind, integer, real = number(text, i)
            if i < 0 or not _fits(kind, wanted, real, paths.low[p], paths.high[p]):
                return -1, first
            if wanted & FLOAT:
                found.pool_floats[used] = real
            else:
                found.pool[used] = integer
        used += 1
        i = blank(text, i)
        more = text[i] == COMMA
        if more:
            i = blank(text, i + 1)
        elif text[i] != CLOSE_LIST:
            return -1, first
    found.kinds[p, e] = LIST
    found.values[p, e] = first
    found.spans[p, e] = used - first
    return i + 1, used


@part
def _scalar(text: UInt8, i: int, paths: Paths, found: Found, p: int, e: int) -> int:
    """Read a string, a number or null; the place behind it, or -1."""
    if text[i] == 110:
        return past_word(text, i)
    wanted = paths.kinds[p]
    if wanted & LIST:
        return -1
    if text[i] == QUOTE:
        end, plain = string_end(text, i + 1)
        if end < 0 or wanted & (TEXT | CHOICE) == 0 or end - i >= 1 << SPAN_BITS:
            return -1
        last = end if plain else unescape(text, i + 1, end)
        found.spans[p, e] = (i + 1) << SPAN_BITS | (last - i - 1)
        found.kinds[p, e] = wanted & (TEXT | CHOICE)
        if wanted & CHOICE:
            found.values[p, e] = _find(text, i + 1, last, paths, paths.inner[p], 0)
            return end + 1 if found.values[p, e] >= 0 else -1
        return end + 1
    end, kind, integer, real = number(text, i)
    if end < 0 or not _fits(kind, wanted, real, paths.low[p], paths.high[p]):
        return -1
    if wanted & FLOAT:
        found.floats[p, e] = real
    else:
        found.values[p, e] = integer
    found.spans[p, e] = i << SPAN_BITS | (end - i)
    found.kinds[p, e] = kind
    return end


@part
def _record(text: UInt8, i: int, paths: Paths, found: Found, e: int, used: int, notes: Notes) -> tuple[int, int]:
    """Read record e, which begins at i, its lists into the pool from `used` on; (the place behind it or -1, used)."""
    depth, before, comma = 0, 0, False
    i = blank(text, i)
    if text[i] != OPEN:
        return -1, used
    i += 1
    while True:
        i = blank(text, i)
        if text[i] == CLOSE:
            i += 1
            depth -= 1
            comma = True
            if depth < 0:
                return blank(text, i), used
            continue
        if comma:
            if text[i] != COMMA:
                return -1, used
            i = blank(text, i + 1)
        if text[i] != QUOTE:
            return -1, used
        p, end = _member(text, i + 1, paths, notes.owners[depth], notes.follows[before])
        if end < 0:
            return -1, used
        i = blank(text, end + 1)
        if text[i] != COLON:
            return -1, used
        i = blank(text, i + 1)
        comma = True
        if p < 0:
            i = past_value(text, i)
        else:
            if notes.seen[p] == e:
                return -1, used
            notes.seen[p], notes.follows[before], before = e, p, p
            if paths.kinds[p] == OBJECT and text[i] == OPEN and depth < DEEPEST - 1:
                depth += 1
                notes.owners[depth] = paths.inner[p]
                comma = False
                i += 1
            elif paths.kinds[p] & LIST and text[i] == OPEN_LIST:
                i, used = _list(text, i, paths, found, p, e, used)
            else:
                i = _scalar(text, i, paths, found, p, e)
        if i < 0:
            return -1, used


@kernel
def scan(text: UInt8, ends: Int64, paths: Paths, found: Found, notes: Notes, _sources: int = _SOURCES) -> None:
    """Read E records: `text` is each followed by a zero byte, `ends` int64[E] the places of the zeros.

    What escapes mean is written over them.
    """
    at = used = 0
    for e in range(ends.shape[0]):
        for p in range(paths.kinds.shape[0]):
            found.kinds[p, e] = 0
        end, used = _record(text, at, paths, found, e, used, notes)
        found.sure[e] = end == ends[e]
        at = ends[e] + 1
