"""Sorting more rows than memory holds: sorted runs on disk, merged while they are read."""

from __future__ import annotations

import heapq
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from stream.importers.rows import ImportFileError, Row

RUN_BYTES = 64 << 20
READ_BYTES = 32 << 20
"""Of all runs together while they are merged."""
ROW_OVERHEAD = 250
"""What a row costs in memory beside its bytes."""
_HEAD = struct.Struct("<qqqqI")


class Timed(NamedTuple):
    """A row and its time; sorts by time, and among equals as the file has them."""

    time_ms: int
    number: int
    line: int
    start: int
    raw: bytes


class RowSorter:
    """Takes rows in any order, gives them back by (time, number), as often as asked.

    What does not fit into memory lies in a temporary file that has no name, so that a killed process leaves nothing.
    """

    def __init__(self, *, folder: Path | None = None, run_bytes: int = RUN_BYTES) -> None:
        self._folder, self._run_bytes = folder, run_bytes
        self._held: list[Timed] = []
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []
        self.num_rows = 0

    def add(self, row: Row, *, time_ms: int) -> None:
        """Take one row. Raises ImportFileError where the disk is full."""
        self._held.append(Timed(time_ms, row.number, row.line, row.start, row.raw))
        self._held_bytes += len(row.raw) + ROW_OVERHEAD
        self.num_rows += 1
        if self._held_bytes > self._run_bytes:
            self._spill()

    def rows(self) -> Iterator[Timed]:
        """All rows in their order."""
        self._held.sort()
        if not self._runs:
            return iter(self._held)
        each = max(READ_BYTES // len(self._runs), 4096)
        return heapq.merge(*(self._run(begin, end, block=each) for begin, end in self._runs), self._held)

    def close(self) -> None:
        """Give memory and disk back."""
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        self._held.sort()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as the sorter
            begin = self._file.seek(0, os.SEEK_END)
            for row in self._held:
                self._file.write(_HEAD.pack(row.time_ms, row.number, row.line, row.start, len(row.raw)))
                self._file.write(row.raw)
            self._file.flush()
            self._runs.append((begin, self._file.tell()))
        except OSError as error:
            folder = self._folder or tempfile.gettempdir()
            raise ImportFileError(
                f"sorting by time needs about the size of the unpacked file on disk in {folder} ({error.strerror}): "
                "name a larger folder with --temp, or give --order file if the rows are in order of time"
            ) from None
        self._held.clear()
        self._held_bytes = 0

    def _run(self, begin: int, end: int, *, block: int) -> Iterator[Timed]:
        if self._file is None:
            return
        descriptor, held, at = self._file.fileno(), b"", 0
        while True:
            while len(held) - at < _HEAD.size or len(held) - at < _HEAD.size + _size(held, at):
                if begin == end:
                    return
                part = os.pread(descriptor, min(block, end - begin), begin)
                begin += len(part)
                held, at = held[at:] + part, 0
            time_ms, number, line, start, size = _HEAD.unpack_from(held, at)
            at += _HEAD.size
            yield Timed(time_ms, number, line, start, held[at : at + size])
            at += size


def _size(held: bytes, at: int) -> int:
    return int(_HEAD.unpack_from(held, at)[4])
