"""What a guard says of a batch, and the file that remembers it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from trainer.durable import replace_file

logger = logging.getLogger("trainer.guards")

ALARMS = "alarms.jsonl"
SKIPS = "skip.json"


class Place(NamedTuple):
    """A batch: where it lies, and the step that read it."""

    partition: int
    offset: int
    step: int


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One guard on one batch."""

    reason: str
    """loss, gradient, features, ne, calibration, user, move."""
    label: str = ""
    """Of ne and calibration."""
    topic: str = ""
    partition: int
    offset: int
    step: int
    value: float | None = None
    """What was measured; None where it was not finite."""
    limit: float | None = None


class AlarmFile:
    """`alarms.jsonl` beside the cuts: one line an alarm. A full disk costs no training, only lines."""

    def __init__(self, root: Path) -> None:
        self._path = root / ALARMS

    def append(self, alarms: Iterable[Alarm]) -> None:
        """Add lines."""
        data = b"".join(msgspec.json.encode(alarm) + b"\n" for alarm in alarms)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(data)
        except OSError as error:
            logger.warning("alarms are in the log alone", extra={"reason": str(error)})


def read_alarms(root: Path) -> list[Alarm]:
    """All alarms so far, oldest first; a torn line is left out."""
    try:
        lines = (root / ALARMS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Alarm))
        except msgspec.DecodeError:
            continue
    return found


class Skips:
    """Which batches are passed over: offsets of the topic of batches by partition."""

    def __init__(self, root: Path, *, ranges: Iterable[str] = ()) -> None:
        """`skip.json` and `ranges` (`partition:first-last`) together. A damaged file is a ValueError."""
        self._path = root / SKIPS
        self._given = [_range(text) for text in ranges]
        self._filed: dict[int, set[int]] = {}
        if self._path.exists():
            stored = msgspec.json.decode(self._path.read_bytes(), type=dict[int, list[int]])
            self._filed = {partition: set(offsets) for partition, offsets in stored.items()}

    def __contains__(self, place: tuple[int, int]) -> bool:
        partition, offset = place
        given = any(p == partition and first <= offset <= last for p, first, last in self._given)
        return given or offset in self._filed.get(partition, ())

    def add(self, batches: Iterable[tuple[int, int]]) -> None:
        """Remember (partition, offset) in the file."""
        for partition, offset in batches:
            self._filed.setdefault(partition, set()).add(offset)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, msgspec.json.encode(_sorted(self._filed)))


def _sorted(offsets: Mapping[int, set[int]]) -> dict[str, list[int]]:
    return {str(partition): sorted(offsets[partition]) for partition in sorted(offsets)}


def _range(text: str) -> tuple[int, int, int]:
    partition, _, offsets = text.partition(":")
    first, _, last = offsets.partition("-")
    return int(partition), int(first), int(last or first)
