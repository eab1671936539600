"""Generations that end by age and by size, in a real Redis: what it holds is bounded, and ids are never confused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import redis

from dedup_cache import MemoryStore, NearCache, StoreUnavailable, check_bits
from dedup_cache.near_cache import CONFIRM_MS
from dedup_cache.redis_store import Lifetime, RedisStore
from recd.embedded import EmbeddedRedis


def prints_of(numbers: range) -> np.ndarray:
    return np.array([(number, number * 7) for number in numbers], np.uint64).reshape(-1, 2)


def blobs_of(numbers: range) -> list[bytes]:
    return [b"value %d" % number for number in numbers]


@contextmanager
def store_of(server: EmbeddedRedis, prefix: str, **lifetime: int) -> Iterator[RedisStore]:
    store = RedisStore(server.url, namespace=prefix, timeout_ms=20_000, lifetime=Lifetime(**lifetime))
    yield store
    store.close()


def keys_of(server: EmbeddedRedis, prefix: str) -> list[str]:
    with redis.Redis.from_url(server.url) as client:
        return sorted(key.decode() for key in client.keys(f"{{{prefix}}}*"))


def test_redis_holds_two_generations_at_most(redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    generations = []
    with store_of(redis_server, topic_prefix, generation_ids=100) as store:
        for first in range(0, 1_000, 40):
            numbers = range(first, first + 40)
            made = store.assign_groups({"user": prints_of(numbers), "item": prints_of(numbers)})
            assert made["user"].generation == made["item"].generation
            for group, answer in made.items():
                assert answer.ids.max() < 160, "the counter begins anew"
                store.mark_known(group, answer.ids, prints_of(numbers), blobs_of(numbers), generation=answer.generation)
            generations.append(made["user"].generation)
            fetched = store.fetch("user", made["user"].ids, check_bits(prints_of(numbers)), generation=generations[-1])
            assert fetched == blobs_of(numbers)
            held = {key.split(":")[2] for key in keys_of(redis_server, topic_prefix) if key.count(":") > 1}
            assert held <= {*dict.fromkeys(generations[-4:])}
            assert len(held) <= 2
    assert len(set(generations)) == 13, "two calls of 80 ids fill a generation"
    assert generations == sorted(generations, key=generations.index), "none comes back"


def test_the_generation_before_can_still_be_fetched(redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    """What is known under the old one is not known under the new one, whatever its id."""
    with store_of(redis_server, topic_prefix, generation_ids=10, keep_values_ms=100_000) as store:
        numbers = range(20)
        old = store.assign("user", prints_of(numbers))
        store.mark_known("user", old.ids, prints_of(numbers), blobs_of(numbers), generation=old.generation)
        new = store.assign("user", prints_of(numbers[::-1]))
        assert new.generation != old.generation
        assert not new.known.any()
        checks = check_bits(prints_of(numbers))
        assert store.fetch("user", old.ids, checks, generation=old.generation) == blobs_of(numbers)
        assert store.fetch("user", old.ids, checks, generation=new.generation) == [None] * 20


def test_a_generation_ends_by_the_clock_of_the_server(redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    with (
        store_of(redis_server, topic_prefix, generation_ms=300) as store,
        store_of(redis_server, topic_prefix) as other,
    ):
        first = store.assign("user", prints_of(range(3)))
        assert other.assign("user", prints_of(range(3))).generation == first.generation
        time.sleep(0.4)
        assert other.assign("user", prints_of(range(3))).generation == first.generation, "its limit is another one"
        assert store.assign("user", prints_of(range(3))).generation != first.generation


def test_a_near_cache_that_needs_nothing_asks_whether_the_generation_goes_on() -> None:
    class Store(MemoryStore):
        away = False

        def assign_groups(self, wanted):  # type: ignore[no-untyped-def]
            if self.away:
                raise StoreUnavailable("away")
            asked.append(sum(map(len, wanted.values())))
            return super().assign_groups(wanted)

        @property
        def generation(self) -> str:
            return current[0]

    asked: list[int] = []
    current = ["one"]
    now_ms = [0]
    store = Store("one")
    near = NearCache(store, clock_ms=lambda: now_ms[0])
    for now_ms[0] in range(0, 3 * CONFIRM_MS, CONFIRM_MS // 4):
        near.assign("user", prints_of(range(5)))
    assert asked == [5, 0, 0], "the values once, then whether they still count"
    store.away = True
    now_ms[0] += CONFIRM_MS
    with pytest.raises(StoreUnavailable):
        near.assign("user", prints_of(range(5)))
    store.away, current[0], store._generation = False, "two", "two"
    assert near.assign("user", prints_of(range(5))).generation == "two"
    assert asked[-1] == 5
