"""The index shared by all workers, in Redis. The only module that knows the redis client.

Keys: `{namespace}:index` is a hash of the generation (a nonce and a part of the server's run id), the run id, the
counter and the groups; `{namespace}:index:<generation>:ids:<group>` maps fingerprints to entries (2 * id + known), and
`...:values:<group>` maps entries to check and value. Both scripts compare the run id first: a server that was
restarted, perhaps from an old snapshot, starts a new generation and never hands out an id twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, cast

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dedup_cache.arrays import Int64, UInt32, UInt64
from dedup_cache.assign import Assignment, mismatch, unpack
from dedup_cache.breaker import Breaker
from dedup_cache.errors import EvictionPolicyError, StoreUnavailable
from dedup_cache.fingerprint import check_bits

FINGERPRINTS_PER_CALL = 8192
VALUES_PER_CALL = 1000
VALUE_BYTES_PER_CALL = 1 << 22
CHECK_BYTES = 4


def monotonic_ms() -> int:
    """Return the clock that waits are measured by."""
    return time.monotonic_ns() // 1_000_000


class RedisStore:
    """An IndexStore in Redis; see the module for its keys, IndexStore for its methods. One thread at a time.

    No call waits much longer than `timeout_ms`. After a failure, calls are refused at once (StoreUnavailable) until the
    breaker lets one try again. A server that may evict keys is refused with EvictionPolicyError. Values of a generation
    that is over are kept for `keep_values_ms`. Nothing is sent before the first call.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str,
        timeout_ms: int = 250,
        keep_values_ms: int = 86_400_000,
        breaker: Breaker | None = None,
        clock_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_ms / 1000,
            socket_connect_timeout=timeout_ms / 1000,
            # A connection that the server closed meanwhile is opened again, once; a timeout is not tried again.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._index = f"{{{namespace}}}:index"
        self._timeout_ms = timeout_ms
        self._keep_values_ms = keep_values_ms
        self._breaker = breaker or Breaker()
        self._clock_ms = clock_ms
        self._assign = self._client.register_script(_script("assign.lua"))
        self._mark_known = self._client.register_script(_script("mark_known.lua"))
        self._policy_checked = False
        self._generation = ""
        self._deadline_ms = 0
        self.failures = 0
        self.outdated_marks = 0

    @property
    def generation(self) -> str:
        """The generation of the last assignment; empty before the first one."""
        return self._generation

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        """See IndexStore; one script call for every 8192 fingerprints."""
        prints = np.ascontiguousarray(fingerprints, "<u8")
        with self._call("assign"):
            generations, entries = self._assign_all(group, prints)
            if len(generations) > 1:  # a new generation began between two calls
                generations, entries = self._assign_all(group, prints)
            if len(generations) > 1:
                raise redis.ConnectionError("the server's generation changes with every call")
        if generations:
            self._generation = generations.pop()
        return unpack(np.frombuffer(entries, "<i8").astype(np.int64), self._generation)

    def _assign_all(self, group: str, prints: UInt64) -> tuple[set[str], bytes]:
        generations, entries = set(), []
        for first in range(0, len(prints), FINGERPRINTS_PER_CALL):
            self._check_deadline()
            part = prints[first : first + FINGERPRINTS_PER_CALL].tobytes()
            answer = self._assign(keys=[self._index], args=[group, secrets.token_hex(8), part, self._keep_values_ms])
            generation, packed = cast("list[bytes]", answer)
            generations.add(generation.decode())
            entries.append(packed)
        return generations, b"".join(entries)

    def mark_known(
        self,
        group: str,
        ids: Int64,
        fingerprints: UInt64,
        blobs: Sequence[bytes],
        *,
        generation: str | None = None,
    ) -> None:
        """See IndexStore; what belongs to a generation that is over is counted in `outdated_marks`."""
        prints = np.ascontiguousarray(fingerprints, "<u8")
        checks = _fields(check_bits(prints).astype("<u4"), CHECK_BYTES)
        values = [check + blob for check, blob in zip(checks, blobs, strict=True)]
        with self._call("mark_known"):
            for part in _parts([len(value) for value in values]):
                self._check_deadline()
                entries = (2 * ids[part]).astype("<i8").tobytes()
                head: list[bytes | str] = [group, generation or self._generation, prints[part].tobytes(), entries]
                if self._mark_known(keys=[self._index], args=[*head, *values[part]]) == -1:
                    self.outdated_marks += part.stop - part.start

    def fetch(self, group: str, ids: Int64, checks: UInt32, *, generation: str | None = None) -> list[bytes | None]:
        """See IndexStore; needs no earlier `assign` when the generation is given."""
        generation = generation or self._generation
        key = f"{self._index}:{generation}:values:{group}"
        fields = _fields((2 * ids).astype("<i8"), 8)
        stored: list[bytes | None] = []
        with self._call("fetch"):
            for first in range(0, len(fields), VALUES_PER_CALL):
                self._check_deadline()
                stored += cast("list[bytes | None]", self._client.hmget(key, fields[first : first + VALUES_PER_CALL]))
        wanted = _fields(checks.astype("<u4"), CHECK_BYTES)
        for value, check, row_id in zip(stored, wanted, ids.tolist(), strict=True):
            if value is not None and value[:CHECK_BYTES] != check:
                raise mismatch(generation, group, row_id)
        return [None if value is None else value[CHECK_BYTES:] for value in stored]

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._client.close()

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        """Turn everything the client raises into StoreUnavailable, and keep the breaker."""
        wait_ms = self._breaker.wait_ms(self._clock_ms())
        if wait_ms:
            raise StoreUnavailable(f"{name}: Redis did not answer, next trial in {wait_ms} ms")
        self._deadline_ms = self._clock_ms() + self._timeout_ms
        try:
            self._check_policy()
            yield
        except (redis.RedisError, OSError) as error:
            self.failures += 1
            self._policy_checked = False
            self._breaker.failed(self._clock_ms())
            raise StoreUnavailable(f"{name}: Redis: {type(error).__name__}: {error}") from error
        self._breaker.succeeded()

    def _check_deadline(self) -> None:
        if self._clock_ms() > self._deadline_ms:
            raise redis.TimeoutError(f"slower than {self._timeout_ms} ms")

    def _check_policy(self) -> None:
        if self._policy_checked:
            return
        policy = self._client.info("memory").get("maxmemory_policy", "unknown")
        if policy != "noeviction":
            raise EvictionPolicyError(
                f"Redis has maxmemory-policy {policy}: it may evict assigned ids; set it to noeviction, "
                "or give the dedup cache a server of its own"
            )
        self._policy_checked = True


def _script(name: str) -> str:
    return files("dedup_cache").joinpath(name).read_text(encoding="utf-8")


def _fields(column: np.ndarray[Any, np.dtype[Any]], width: int) -> list[bytes]:
    """Cut an array's bytes into pieces of one number each."""
    data = column.tobytes()
    return [data[at : at + width] for at in range(0, len(data), width)]


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield slices of at most VALUES_PER_CALL values and, but for a single larger one, VALUE_BYTES_PER_CALL bytes."""
    first, total = 0, 0
    for at, size in enumerate(sizes):
        if at > first and (at - first == VALUES_PER_CALL or total + size > VALUE_BYTES_PER_CALL):
            yield slice(first, at)
            first, total = at, 0
        total += size
    if first < len(sizes):
        yield slice(first, len(sizes))
