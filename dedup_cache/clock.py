"""The clock that waits are measured by."""

from __future__ import annotations

import time


def monotonic_ms() -> int:
    """Milliseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000
