"""What one thread has made ahead of another: a queue bounded by count and by bytes."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Items in their order. One larger than `max_bytes` is taken when nothing else waits, so that none is stuck."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def num_bytes(self) -> int:
        """Of the items that wait."""
        return self._bytes

    def put(self, item: T, *, num_bytes: int, timeout_s: float) -> bool:
        """False where there was no room for it in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(num_bytes), timeout=timeout_s):
                return False
            self._items.append((item, num_bytes))
            self._bytes += num_bytes
            self._changed.notify_all()
            return True

    def get(self, *, timeout_s: float) -> T | None:
        """The oldest item; None where there was none in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items), timeout=timeout_s):
                return None
            item, num_bytes = self._items.popleft()
            self._bytes -= num_bytes
            self._changed.notify_all()
            return item

    def _has_room(self, num_bytes: int) -> bool:
        few = len(self._items) < self._max_items
        return not self._items or (few and self._bytes + num_bytes <= self._max_bytes)
