"""Kernels that numba compiles, for loops over short rows that cost numpy more in calls than in work.

Nobody waits for them: until somebody has loaded them (`declare_ready`), numpy does the same.
"""

from __future__ import annotations

import threading

_ready = threading.Event()


def ready() -> bool:
    """Whether the kernels can be called now without waiting; imports nothing."""
    return _ready.is_set()


def declare_ready() -> None:
    """Every kernel has been called once."""
    _ready.set()
