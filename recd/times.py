"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime


class TimeError(ValueError):
    """A text that is no time; the message says what one looks like."""


def parse_time_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 date or date and time; without an offset from UTC it is UTC.

    Raises TimeError.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise TimeError(
            f"{text!r} is not a time: write 2026-11-01, 2026-11-01T09:30 (UTC) or 2026-11-01T09:30+01:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def show_time(time_ms: int) -> str:
    """To the second, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
