"""The bytes of a file, unpacked where gzip, zstd or bz2 packed it, as rows with their positions."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import xxhash

from stream.importers.rows import BadRowError, ImportFileError, Mark, Row

LONGEST_LINE = 1 << 20
MOST_JOINED_LINES = 200
"""A quoted field may run over so many lines; a stray quotation mark costs its own line and no other."""
HEAD_BYTES = 4096
"""What names a file: it may grow behind them and still is the same."""
CHUNK, ZSTD_STEP = 1 << 20, 1 << 14
BOM = b"\xef\xbb\xbf"
GZIP, ZSTD, BZ2, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """One line with its end; `raw` is None where it is longer than LONGEST_LINE."""

    number: int
    start: int
    end: int
    raw: bytes | None


class TextRows:
    """The rows of a text file: its lines, or with `quote` what a CSV file with line breaks inside quotes has."""

    def __init__(self, path: Path, *, quote: bytes | None = None, has_header: bool = False) -> None:
        """Raises ImportFileError for what is no text file, and for an empty one that should have a header."""
        self._path, self._quote = path, quote
        self._line = 0
        self.fits: Callable[[bytes], bool] = bool
        """Whether several lines, joined because a quote was open, are one row."""
        with self._errors():
            self.size = path.stat().st_size
            self._file = path.open("rb", buffering=CHUNK)
            try:
                self._begin(has_header=has_header)
            except BaseException:
                self._file.close()
                raise

    def _begin(self, *, has_header: bool) -> None:
        self._stream = _unpacked(self._file)
        head = self._stream.read(HEAD_BYTES)
        self.identity = xxhash.xxh3_64_hexdigest(head)
        self._refuse(head)
        self._start = len(BOM) if head.startswith(BOM) else 0
        self._go_to(self._start)
        self.header, self._first_row = b"", Line(0, 0, self._start, b"")
        if has_header:
            self._first_row = self._header()

    def rows(self, after: Mark | None = None) -> Iterator[Row]:
        """See Source."""
        with self._errors():
            if after is None:
                self._go_to(self._first_row.end)
                lines = self._lines(number=self._first_row.number, start=self._first_row.end)
                yield from self._joined(lines, number=0)
                return
            self._go_to(after.start)
            found = self._joined(self._lines(number=after.line - 1, start=after.start), number=after.number - 1)
            last = next(found, None)
            if last is None or xxhash.xxh3_64_hexdigest(last.raw) != after.digest:
                raise ImportFileError(
                    f"{self._path}: begins as a file of which {after.number} rows were imported, but line {after.line} "
                    "is another one now: import it anew with --again, or restore the file"
                )
            yield from found

    def bytes_read(self) -> int:
        """See Source."""
        return 0 if self._file.closed else self._file.tell()

    def close(self) -> None:
        """See Source."""
        self._stream.close()
        self._file.close()

    def _header(self) -> Line:
        line = next(self._lines(number=0, start=self._start), None)
        if line is None or line.raw is None:
            raise ImportFileError(f"{self._path}: there is no header: the file is empty, or is no text")
        self.header = line.raw
        return line

    def _refuse(self, head: bytes) -> None:
        if head.startswith(UTF16):
            raise ImportFileError(f"{self._path}: UTF-16 text, expected UTF-8: convert it, for example with iconv")
        if head.startswith(ZIP):
            raise ImportFileError(
                f"{self._path}: a zip archive: unpack it first (gzip, zstd and bz2 are read as they are)"
            )

    def _go_to(self, offset: int) -> None:
        """A packed file is unpacked from its beginning up to there."""
        if self._file is self._stream:
            self._stream.seek(offset)
            return
        self._reopen()
        left = offset
        while left and (part := self._stream.read(min(left, CHUNK))):
            left -= len(part)

    def _reopen(self) -> None:
        self.close()
        self._file = self._path.open("rb", buffering=CHUNK)
        self._stream = _unpacked(self._file)

    def _lines(self, *, number: int, start: int) -> Iterator[Line]:
        readline = self._stream.readline
        while raw := readline(LONGEST_LINE):
            number += 1
            self._line = number
            end = start + len(raw)
            if len(raw) < LONGEST_LINE or raw.endswith(b"\n"):
                yield Line(number, start, end, raw)
            else:
                while part := readline(LONGEST_LINE):
                    end += len(part)
                    if part.endswith(b"\n"):
                        break
                yield Line(number, start, end, None)
            start = end

    def _joined(self, lines: Iterator[Line], *, number: int) -> Iterator[Row]:
        """Rows, blank lines left out."""
        waiting: deque[Line] = deque()
        while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
            raw, end = line.raw, line.end
            if raw is None:
                number += 1
                detail = f"longer than {LONGEST_LINE} bytes"
                yield Row(number, line.number, line.start, end, b"", BadRowError("too long", detail))
                continue
            if self._quote is not None and raw.count(self._quote) % 2:
                raw, end = self._closed(line, lines, waiting)
            if not raw.isspace():
                number += 1
                yield Row(number, line.number, line.start, end, raw)

    def _closed(self, first: Line, lines: Iterator[Line], waiting: deque[Line]) -> tuple[bytes, int]:
        """The row that begins with an open quote: up to where it closes, or the one line if it does not soon.

        Looks at no more lines and bytes than a row may have; what belongs to other rows goes to `waiting`.
        """
        quote = self._quote or b""
        looked: list[Line] = []
        size = len(first.raw or b"")
        while len(looked) < MOST_JOINED_LINES and size <= LONGEST_LINE:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                break
            looked.append(line)
            if line.raw is None:
                break
            size += len(line.raw)
            if line.raw.count(quote) % 2:
                joined = b"".join(one.raw or b"" for one in (first, *looked))
                if self.fits(joined):
                    return joined, line.end
                break
        waiting.extendleft(reversed(looked))
        return first.raw or b"", first.end

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            where = f" behind line {self._line}" if self._line else ""
            raise ImportFileError(f"{self._path}: cannot be read{where}: {error}") from None


class _Stepwise(io.RawIOBase):
    """Gives what can be unpacked before a tear, where `read` would lose it with the error."""

    def __init__(self, packed: gzip.GzipFile | bz2.BZ2File) -> None:
        self._packed = packed

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase`."""
        part = self._packed.read1(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    magic = file.read(4)
    file.seek(0)
    unpacked: Any
    if magic.startswith((GZIP, BZ2)):
        packed = gzip.GzipFile(fileobj=file) if magic.startswith(GZIP) else bz2.BZ2File(file)
        return io.BufferedReader(_Stepwise(packed), CHUNK)
    if magic.startswith(ZSTD):
        import pyarrow as pa

        # zstandard's own stream_reader takes the end of a torn file for the end of the text; Arrow's reports it.
        unpacked = pa.CompressedInputStream(file, "zstd")
        return io.BufferedReader(unpacked, ZSTD_STEP)
    return file
