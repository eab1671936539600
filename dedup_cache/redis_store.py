"""The index shared by all workers, in Redis. The only module that knows the redis client.

Keys: `{namespace}:index` is a hash of the generation (a nonce and a part of the server's run id), the run id, when it
began, the counter, the groups, and the generation before; `{namespace}:index:<generation>:ids:<group>` maps
fingerprints to entries (2 * id + known), and `...:values:<group>` maps entries to check and value. Both scripts compare
the run id first: a server that was restarted, perhaps from an old snapshot, starts a new generation and never hands out
an id twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dedup_cache.arrays import Int64, UInt32, UInt64
from dedup_cache.assign import Assignment, Waits, mismatch, unpack
from dedup_cache.breaker import Breaker
from dedup_cache.clock import monotonic_ms
from dedup_cache.errors import EvictionPolicyError, StoreUnavailable
from dedup_cache.fingerprint import check_bits

FINGERPRINTS_PER_CALL = 8192
VALUES_PER_CALL = 1000
VALUE_BYTES_PER_CALL = 1 << 22
CHECK_BYTES = 4


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a generation is over, and what is kept of it; together with `values`' retention what bounds the growth."""

    generation_ms: int = 86_400_000
    """So long after its first id, by the server's clock."""
    generation_ids: int = 10_000_000
    """After so many ids; a call may hand out more than are left."""
    keep_values_ms: int = 86_400_000
    """The values of the generation before this one stay so long, those of older ones not at all."""


class RedisStore:
    """An IndexStore in Redis; see the module for its keys, IndexStore for its methods. One thread at a time.

    No call waits much longer than `timeout_ms`. After a failure, or when waiting takes too much of the time, calls are
    refused at once (StoreUnavailable) until the breaker lets one try again. A server that may evict keys is refused
    with EvictionPolicyError. Nothing is sent before the first call.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str,
        timeout_ms: int = 250,
        lifetime: Lifetime = Lifetime(),
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
        self._limits = (lifetime.keep_values_ms, lifetime.generation_ms, lifetime.generation_ids)
        self._breaker = breaker or Breaker()
        self._clock_ms = clock_ms
        self._assign = self._client.register_script(_script("assign.lua"))
        self._mark_known = self._client.register_script(_script("mark_known.lua"))
        self._policy_checked = False
        self._generation = ""
        self._deadline_ms = 0
        self.waits = Waits()
        self.failures = 0
        self.outdated_marks = 0

    @property
    def generation(self) -> str:
        """The generation of the last assignment; empty before the first one."""
        return self._generation

    def assign(self, group: str, fingerprints: UInt64) -> Assignment:
        """See IndexStore."""
        if not len(fingerprints):
            return unpack(np.empty(0, np.int64), self._generation)
        return self.assign_groups({group: fingerprints})[group]

    def assign_groups(self, wanted: Mapping[str, UInt64]) -> dict[str, Assignment]:
        """See IndexStore; one script call for every 8192 fingerprints, whatever their groups."""
        prints = {group: np.ascontiguousarray(part, "<u8") for group, part in wanted.items()}
        calls = list(_calls(prints)) or [[]]
        with self._call("assign"):
            generations, answers = self._assign_all(calls)
            if len(generations) > 1:  # a new generation began between two calls
                generations, answers = self._assign_all(calls)
            if len(generations) > 1:
                raise redis.ConnectionError("the server's generation changes with every call")
        self._generation = generations.pop()
        entries: dict[str, list[bytes]] = {group: [] for group in prints}
        for (group, _), packed in zip((part for call in calls for part in call), answers, strict=True):
            entries[group].append(packed)
        return {
            group: unpack(np.frombuffer(b"".join(parts), "<i8").astype(np.int64), self._generation)
            for group, parts in entries.items()
        }

    def _assign_all(self, calls: Sequence[Sequence[tuple[str, bytes]]]) -> tuple[set[str], list[bytes]]:
        generations, entries = set(), []
        for call in calls:
            self._check_deadline()
            parts = [one for part in call for one in part]
            answer = self._assign(keys=[self._index], args=[secrets.token_hex(8), *self._limits, *parts])
            generation, *packed = cast("list[bytes]", answer)
            generations.add(generation.decode())
            entries += packed
        return generations, entries

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
        if refusal := self._breaker.refusal(began_ms := self._clock_ms()):
            self.waits.refused += 1
            raise StoreUnavailable(f"{name}: {refusal}")
        self._deadline_ms = began_ms + self._timeout_ms
        try:
            self._check_policy()
            yield
        except (redis.RedisError, OSError) as error:
            self.failures += 1
            self._policy_checked = False
            self._breaker.failed(self._clock_ms())
            raise StoreUnavailable(f"{name}: Redis: {type(error).__name__}: {error}") from error
        else:
            self._breaker.succeeded()
        finally:
            waited_ms = (now_ms := self._clock_ms()) - began_ms
            self._breaker.waited(waited_ms, now_ms=now_ms)
            self.waits.calls += 1
            self.waits.waited_ms += waited_ms

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


def _calls(prints: Mapping[str, UInt64]) -> Iterator[list[tuple[str, bytes]]]:
    """Yield (group, bytes of fingerprints) of each call: at most FINGERPRINTS_PER_CALL fingerprints together."""
    call: list[tuple[str, bytes]] = []
    room = FINGERPRINTS_PER_CALL
    for group, part in prints.items():
        first = 0
        while first < len(part):
            taken = part[first : first + room]
            call.append((group, taken.tobytes()))
            first, room = first + len(taken), room - len(taken)
            if not room:
                yield call
                call, room = [], FINGERPRINTS_PER_CALL
    if call:
        yield call


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
