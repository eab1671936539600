"""`steps.jsonl`: one line per trained batch, so that anyone can recompute NE over any stretch."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from trainer.durable import sync_file

MAX_PENDING_LINES = 100_000
MAX_BYTES = 256 << 20
"""A file that has grown beyond this becomes `*.old`, in place of the former one."""


class StepLog:
    """Lines in the order of training, never beyond what is in force.

    A full disk costs no training: lines wait in memory (a bounded number), and are written when there is room again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING_LINES)
        self.failures = 0
        self.last_error = ""

    def keep_until(self, step: int) -> None:
        """Drop the lines of later steps (they were trained after the cut that is in force) and a torn last line."""
        for path in (self._old(), self._path):
            if not path.exists():
                continue
            temporary = path.with_name(path.name + ".tmp")
            with path.open("rb") as old, temporary.open("wb") as new:
                new.writelines(line for line in old if _step_of(line, default=step + 1) <= step)
            temporary.replace(path)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line; it has `step`."""
        self._pending.append(msgspec.json.encode(line) + b"\n")
        self._write()

    def flush(self) -> None:
        """Write what waits, if there is room again."""
        self._write()

    def sync(self) -> None:
        """Wait until all written lines are on the disk; any thread may call it."""
        # The older file too: it may have been rotated since the last time.
        for path in (self._old(), self._path):
            try:
                sync_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note(error)

    def _write(self) -> None:
        data = b"".join(self._pending)
        if not data:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._rotate()
            with self._path.open("ab", buffering=0) as file:
                size = file.tell()
                if file.write(data) != len(data):
                    file.truncate(size)
                    raise OSError(f"{self._path}: no room for {len(data)} bytes")
        except OSError as error:
            self._note(error)
        else:
            self._pending.clear()

    def _rotate(self) -> None:
        if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
            self._path.replace(self._old())

    def _old(self) -> Path:
        return self._path.with_name(self._path.name + ".old")

    def _note(self, error: OSError) -> None:
        self.failures += 1
        self.last_error = str(error)


def steps_path(root: Path, *, rank: int) -> Path:
    """The file of a rank."""
    return root / ("steps.jsonl" if rank == 0 else f"steps-{rank}.jsonl")


class _Line(msgspec.Struct):
    step: int


def _step_of(line: bytes, *, default: int) -> int:
    try:
        return msgspec.json.decode(line, type=_Line).step
    except (msgspec.DecodeError, UnicodeDecodeError):
        return default
