"""Columns of JSON records, read by a compiled scanner: what `EventSchema` reads record by record, at once.

Letters in shapes: E records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from dedup_cache.arrays import Bool, Float64, Int64, UInt8
from stream.compiled.json_grammar import FLOAT, INT
from stream.compiled.json_scan import CHOICE, LIST, OBJECT, SPAN_BITS, TEXT, Found, Notes, Paths, make_notes, scan
from stream.compiled.text_hash import LONGEST, hash_spans
from stream.event_schema import FLOAT32_MAX, MAX_TIME_MS

KINDS = {
    "id": INT | TEXT,
    "time[ms]": INT,
    "time[s]": FLOAT,
    "string": TEXT,
    "int": INT,
    "float": FLOAT,
    "probability": FLOAT,
    "list[int]": LIST | INT,
    "list[string]": LIST | TEXT,
}
BOUNDS = {
    "time[ms]": (0.0, float(MAX_TIME_MS)),
    "time[s]": (0.0, MAX_TIME_MS / 1000),
    "float": (-FLOAT32_MAX, FLOAT32_MAX),
    "probability": (0.0, 1.0),
}
ANYTHING = (-np.inf, np.inf)


class JsonColumns:
    """Reads the paths of an `EventSchema`, `types` by path; `choices` are the texts that a value may have, by path."""

    def __init__(self, types: Mapping[str, str], *, choices: Mapping[str, Sequence[str]]) -> None:
        self._number, self._paths = _tables(types, choices)
        self._choice_first = {path: int(self._paths.first[self._paths.inner[self._number[path]]]) for path in choices}
        self._longest = {
            path: int(kind.removeprefix("list[float,").removesuffix("]"))
            for path, kind in types.items()
            if kind.startswith("list[float,")
        }
        self._pool = np.empty(0, np.int64)

    def read(self, values: Sequence[bytes | None]) -> JsonBlock:
        """What E records hold at the paths."""
        text, ends, paths, found, notes = self.arguments(values)
        scan(text, ends, paths, found, notes)
        block = JsonBlock(text, ends, found, self._number, self._choice_first)
        for path, length in self._longest.items():
            found.sure[block.present(path) & (block.lengths(path) != length)] = False
        return block

    def arguments(self, values: Sequence[bytes | None]) -> tuple[UInt8, Int64, Paths, Found, Notes]:
        """What `scan` is called with."""
        texts: Sequence[bytes] = [value or b"" for value in values] if None in values else values  # type: ignore[assignment]
        text = np.frombuffer(bytearray(b"\0").join([*texts, b""]), np.uint8)
        if self._pool.shape[0] < text.shape[0]:
            self._pool = np.empty(2 * text.shape[0], np.int64)
        shape = (self._paths.kinds.shape[0], len(texts))
        numbers = np.empty(shape, np.int64)
        found = Found(
            kinds=np.empty(shape, np.uint8),
            values=numbers,
            floats=numbers.view(np.float64),
            spans=np.empty(shape, np.int64),
            pool=self._pool,
            pool_floats=self._pool.view(np.float64),
            sure=np.empty(len(texts), np.bool_),
        )
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) - 1
        return text, ends, self._paths, found, make_notes(self._paths)


class JsonBlock:
    """The columns of one block; what stands at records that are not sure means nothing."""

    def __init__(
        self, text: UInt8, ends: Int64, found: Found, numbers: Mapping[str, int], choice_first: Mapping[str, int]
    ) -> None:
        self._text = text
        self.sizes: Int64 = np.diff(ends, prepend=-1) - 1
        """int64[E]: bytes of each record."""
        self._found = found
        self._numbers = numbers
        self._choice_first = choice_first
        self.sure: Bool = found.sure
        """bool[E]: read in full; the others have to be read by somebody else."""

    def present(self, path: str) -> Bool:
        """bool[E]: whether there is a value, and not null."""
        present: Bool = self._found.kinds[self._numbers[path]] != 0
        return present

    def is_integer(self, path: str) -> Bool:
        """bool[E]: whether the value is an integer."""
        integer: Bool = self._found.kinds[self._numbers[path]] == INT
        return integer

    def choice(self, path: str) -> Int64:
        """int64[E]: which of the texts."""
        column: Int64 = self._found.values[self._numbers[path]] - self._choice_first[path]
        return column

    def integers(self, path: str) -> Int64:
        """int64[E]"""
        column: Int64 = self._found.values[self._numbers[path]]
        return column

    def floats(self, path: str) -> Float64:
        """float64[E]"""
        column: Float64 = self._found.floats[self._numbers[path]]
        return column

    def hashes(self, path: str, where: Int64) -> Int64:
        """int64[n]: xxh3_64 of the texts at the records `where`; an integer's are its digits."""
        return self.hashes_of(self._found.spans[self._numbers[path]][where])

    def lengths(self, path: str) -> Int64:
        """int64[E]: how long the list is."""
        column: Int64 = self._found.spans[self._numbers[path]]
        return column

    def list_starts(self, path: str) -> Int64:
        """int64[E]: where the list begins among the elements."""
        column: Int64 = self._found.values[self._numbers[path]]
        return column

    @property
    def elements(self) -> Int64:
        """The elements of all lists: integers, or texts as only `hashes_of` understands them."""
        return self._found.pool

    def float_elements(self, places: Int64) -> Float64:
        """float64[...]: floats among the elements."""
        column: Float64 = self._found.pool_floats[places]
        return column

    def hashes_of(self, spans: Int64) -> Int64:
        """int64[n]: xxh3_64 of texts."""
        hashes = np.zeros(spans.shape[0], np.uint64)
        hash_spans(self._text, spans, hashes)
        long = np.flatnonzero((spans & ((1 << SPAN_BITS) - 1)) > LONGEST)
        for i in long.tolist():
            at, size = int(spans[i]) >> SPAN_BITS, int(spans[i]) & ((1 << SPAN_BITS) - 1)
            hashes[i] = xxhash.xxh3_64_intdigest(self._text[at : at + size].tobytes())
        return hashes.view(np.int64)


def _tables(types: Mapping[str, str], choices: Mapping[str, Sequence[str]]) -> tuple[dict[str, int], Paths]:
    """The paths and their numbers: objects breadth first, the members of each one after the other."""
    number: dict[str, int] = {}
    members: list[list[str]] = [list(dict.fromkeys(path.split(".")[0] for path in types))]
    prefixes, is_choice = [""], [False]
    kinds, inner, bounds = list[int](), list[int](), list[tuple[float, float]]()
    for o, names in enumerate(members):
        for name in names:
            path = prefixes[o] + name
            type_name = "" if is_choice[o] else types.get(path, "")
            kind = 0 if is_choice[o] else KINDS.get(type_name, LIST | FLOAT) if type_name else OBJECT
            below: Sequence[str] = ()
            if kind == OBJECT:
                start = f"{path}."
                below = list(dict.fromkeys(p[len(start) :].split(".")[0] for p in types if p.startswith(start)))
            elif path in choices and not is_choice[o]:
                kind, start, below = CHOICE, "", choices[path]
            if not is_choice[o]:
                number[path] = len(kinds)
            kinds.append(kind)
            inner.append(len(members) if below else 0)
            bounds.append(BOUNDS.get("float" if kind == LIST | FLOAT else type_name, ANYTHING))
            if below:
                members.append(list(below))
                prefixes.append(start)
                is_choice.append(kind == CHOICE)
    low, high = np.array(bounds, np.float64).reshape(-1, 2).T
    encoded = [name.encode() for names in members for name in names]
    return number, Paths(
        names=np.frombuffer(b"".join(encoded), np.uint8),
        name_starts=np.cumsum([0, *map(len, encoded)]),
        is_plain=np.array([name.replace(b"_", b"").isalnum() for name in encoded]),
        first=np.cumsum([0, *map(len, members)]),
        kinds=np.array(kinds),
        inner=np.array(inner),
        low=np.ascontiguousarray(low),
        high=np.ascontiguousarray(high),
    )
