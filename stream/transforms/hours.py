"""GetLocalHour: the hour of the day at a place, daylight saving time included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import Int64
from stream.transforms.operation import Ids, Kind, Operation

BLOCK_S = 900
"""Offsets of today change at quarters of an hour; a block whose ends disagree is asked second by second."""
DAY_S, HOUR_S = 86_400, 3_600
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_S = int((datetime(1, 1, 3, tzinfo=UTC) - EPOCH).total_seconds())
LAST_S = int((datetime(9999, 12, 29, tzinfo=UTC) - EPOCH).total_seconds())


class GetLocalHour(Operation, frozen=True):
    """Each id, read as a time since 1970 in UTC, to the hour 0 to 23 in `timezone` (DPP).

    Daylight saving time follows the IANA data of the machine, which must be the same where training and serving run.
    Times outside the years 1 to 9999 count with the offset of the nearest.
    """

    timezone: str
    unit: Literal["ms", "s"] = "ms"

    def __post_init__(self) -> None:
        """The zone is known here."""
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"unknown timezone '{self.timezone}', expected an IANA name like Europe/Berlin") from None

    def kind(self, ids: Ids) -> Kind:
        """As many ids, 24 different ones."""
        return Ids(ids.max_length, 24)

    def run(self, column: Jagged) -> Jagged:
        """Slices stay slices."""
        seconds = np.floor_divide(column.values, 1_000) if self.unit == "ms" else column.values
        of_day = np.mod(seconds, DAY_S) + self._offsets(np.clip(seconds, FIRST_S, LAST_S))
        return Jagged(np.mod(of_day, DAY_S) // HOUR_S, column.starts, column.lengths)

    def _offsets(self, seconds: Int64) -> Int64:
        """Seconds that the zone is ahead of UTC at each of int64[N] times."""
        blocks, inverse = np.unique(seconds // BLOCK_S, return_inverse=True)
        first = self._at((blocks * BLOCK_S).tolist())
        last = self._at((blocks * BLOCK_S + BLOCK_S - 1).tolist())
        offsets = first[inverse]
        torn = np.flatnonzero((first != last)[inverse])
        offsets[torn] = self._at(seconds[torn].tolist())
        return offsets

    def _at(self, seconds: list[int]) -> Int64:
        return np.array([_offset(self.timezone, second) for second in seconds], np.int64)


@lru_cache(maxsize=1 << 16)
def _offset(timezone: str, second: int) -> int:
    moment = (EPOCH + timedelta(seconds=second)).astimezone(ZoneInfo(timezone))
    offset = moment.utcoffset()
    return 0 if offset is None else int(offset.total_seconds())
