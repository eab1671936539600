"""Texts and numbers of files into milliseconds since 1970."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

from stream.event_schema import MAX_TIME_MS
from stream.importers.rows import BadRowError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS_PER_UNIT = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
TimeParser = Callable[[Any], int]
"""A cell -> milliseconds since 1970. Raises ValueError."""


def time_ms(value: Any, parse: TimeParser, *, column: str, expected: str) -> int:
    """A time between 1970 and the year 9999. Raises BadRowError."""
    try:
        found = parse(value)
    except (ValueError, TypeError, OverflowError):
        found = -1
    if not 0 <= found <= MAX_TIME_MS:
        raise BadRowError("time", f"{column}: expected {expected}, got {str(value)[:40]!r}")
    return found


def whole(value: Any) -> int:
    """A number of milliseconds, digits only."""
    text = str(value).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(text)
    return int(text)


def seconds(value: Any) -> int:
    """A number of seconds, digits only."""
    return whole(value) * 1000


def us_clock(text: str) -> int:
    """`11/15/2019 9:05:58 AM`, month first, taken as UTC."""
    day, clock, half = text.split()
    month, of_month, year = day.split("/")
    hour, minute, second = map(whole, clock.split(":"))
    if not (1 <= hour <= 12 and minute < 60 and second < 60 and half in ("AM", "PM")):
        raise ValueError(text)
    hour = hour % 12 + 12 * (half == "PM")
    return _midnight_ms(year, month, of_month) + ((hour * 60 + minute) * 60 + second) * 1000


def utc_clock(text: str) -> int:
    """`2019-10-01 00:00:00 UTC`; the word may be missing."""
    day, clock = text.removesuffix(" UTC").split()
    hour, minute, second = map(whole, clock.split(":"))
    if not (hour < 24 and minute < 60 and second < 60):
        raise ValueError(text)
    return _midnight_ms(*day.split("-")) + ((hour * 60 + minute) * 60 + second) * 1000


def number_in(unit: str) -> TimeParser:
    """Numbers since 1970 in s, ms, us or ns, fractions allowed; a typed time (Parquet) counts as itself."""
    factor = MS_PER_UNIT[unit]

    def parse(value: Any) -> int:
        text = str(value).strip()
        number = int(text) if text.isdecimal() else float(text)
        if type(number) is int and unit in ("us", "ns"):
            return number // (1000 if unit == "us" else 1_000_000)
        return round(number * factor)

    return parse


def iso(value: Any) -> int:
    """ISO 8601; without an offset, UTC."""
    return _since_1970_ms(datetime.fromisoformat(str(value).strip()))


def in_format(pattern: str) -> TimeParser:
    """`datetime.strptime` with this pattern; without an offset, UTC."""

    @lru_cache(maxsize=4096)
    def parse(value: Any) -> int:
        # The zone, where the text has none, is set below.
        return _since_1970_ms(datetime.strptime(str(value).strip(), pattern))  # noqa: DTZ007

    return parse


def _since_1970_ms(time: datetime) -> int:
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(milliseconds=1)


@lru_cache(maxsize=4096)
def _midnight_ms(year: str, month: str, day: str) -> int:
    return (date(whole(year), whole(month), whole(day)).toordinal() - 719_163) * 86_400_000
