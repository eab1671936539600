"""The shared index as a worker uses it, and what it says when that is slow or silent."""

from __future__ import annotations

import logging

from dedup_cache import NearCache, RedisStore
from dedup_cache.assign import Waits
from dedup_cache.breaker import Breaker, WaitBound
from dedup_cache.redis_store import Lifetime
from stream.config import Config

logger = logging.getLogger("stream.index")

AGAIN_MS = 60_000
"""A trouble that lasts is said again so often, and is over after so long without it."""


def open_store(config: Config) -> NearCache:
    """The index in Redis behind the worker's own memory. Nothing is sent before the first call."""
    redis, dedup = config.redis, config.dedup
    store = RedisStore(
        redis.url,
        namespace=redis.namespace,
        timeout_ms=redis.timeout_ms,
        lifetime=Lifetime(generation_ms=dedup.generation_ms, generation_ids=dedup.generation_ids),
        breaker=Breaker(waits=WaitBound(share=redis.max_wait_share)),
    )
    return NearCache(store, max_entries=dedup.near_cache_entries)


class IndexWatch:
    """Tells the operator that values stand inline: when it begins, once a minute, and when it is over."""

    def __init__(self) -> None:
        self._errors = 0
        self._said_at_ms: int | None = None
        self._last_at_ms = 0

    def saw(self, errors: int, *, reason: str, waits: Waits, now_ms: int) -> None:
        """After a commit: so many batches and commits got no answer since the last one, the last for `reason`."""
        self._errors += errors
        if errors:
            self._last_at_ms = now_ms
            if self._said_at_ms is None or now_ms - self._said_at_ms >= AGAIN_MS:
                fields = {"reason": reason, "errors": self._errors}
                cost = {"calls": waits.calls, "waited_ms": waits.waited_ms, "refused": waits.refused}
                logger.warning("values stand inline", extra=fields | cost)
                self._said_at_ms, self._errors = now_ms, 0
        elif self._said_at_ms is not None and now_ms - self._last_at_ms >= AGAIN_MS:
            logger.info("values go by reference again")
            self._said_at_ms, self._errors = None, 0
