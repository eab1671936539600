"""A Redis that answers, but late: waiting for it takes a bounded share of the time."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from bench.slow_proxy import SlowProxy
from dedup_cache import NearCache, StoreUnavailable
from dedup_cache.breaker import Breaker, WaitBound
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedRedis


@given(
    share=st.sampled_from([0.1, 0.25, 0.9]),
    calls=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300)), max_size=60),
)
def test_waits_are_a_share_of_any_stretch_of_time(share: float, calls: list[tuple[int, int]]) -> None:
    """Calls as (work before it, length), made whenever the bound lets one pass; every stretch is looked at."""
    bound, now_ms = WaitBound(share=share, burst_ms=500), 10_000
    waits: list[tuple[int, int]] = []
    for work_ms, length_ms in calls:
        now_ms += work_ms
        if not bound.wait_ms(now_ms):
            now_ms += length_ms
            bound.waited(length_ms, now_ms=now_ms)
            waits.append((now_ms - length_ms, now_ms))
    for i, (begin, _) in enumerate(waits):
        waited = 0
        for start, end in waits[i:]:
            waited += end - start
            assert waited <= share * (end - begin) + 500 + 300 + 1
    refused_ms = bound.wait_ms(now_ms)
    assert not bound.wait_ms(now_ms + refused_ms), "it says how long it refuses"


def test_a_fast_server_is_never_refused_and_time_without_calls_is_no_credit() -> None:
    bound = WaitBound(share=0.25, burst_ms=1_000)
    for now_ms in range(0, 100_000, 20):
        assert not bound.wait_ms(now_ms)
        bound.waited(4, now_ms=now_ms + 4)
    bound.waited(1_100, now_ms=10_000_000)
    assert bound.wait_ms(10_000_000) > 300


def test_a_slow_server_takes_a_share_of_the_time(redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    """A real one, every answer 40 ms late; each round is 4 ms of work and one question."""
    bound = WaitBound(share=0.2, burst_ms=100)
    with SlowProxy(redis_server.port, delay_ms=0) as proxy:
        store = RedisStore(proxy.url, namespace=topic_prefix, timeout_ms=20_000, breaker=Breaker(waits=bound))
        near = NearCache(store)
        ask(near, 0)
        proxy.delay_ms = 40
        before, began = near.waits.waited_ms, time.monotonic()
        waits_ms, inline, rounds, said = [before], 0, 0, ""
        while near.waits.calls < 8:
            rounds += 1
            time.sleep(0.004)
            try:
                ask(near, rounds)
            except StoreUnavailable as error:
                inline += 1
                said = str(error)
            waits_ms.append(near.waits.waited_ms)
        elapsed_ms = 1000 * (time.monotonic() - began)
        assert near.waits.waited_ms - before <= 0.2 * elapsed_ms + 100 + max(np.diff(waits_ms))
        assert near.waits.refused == inline > 14, "most rounds did not wait"
        assert "Redis is slow: waiting for it would take more than 20% of the time" in said
        store.close()


def ask(store: NearCache, number: int) -> None:
    store.assign("user", np.array([[number, 1]], np.uint64))


def test_without_a_bound_every_round_waits(redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    with SlowProxy(redis_server.port, delay_ms=20) as proxy:
        store = RedisStore(proxy.url, namespace=topic_prefix, timeout_ms=20_000)
        for number in range(10):
            store.assign("user", np.array([[number, 1]], np.uint64))
        assert (store.waits.refused, store.waits.calls) == (0, 10)
        assert store.waits.waited_ms >= 10 * 20
        store.close()


def test_silence_and_slowness_are_told_apart() -> None:
    breaker = Breaker(first_ms=100, waits=WaitBound(share=0.1, burst_ms=10))
    breaker.waited(50, now_ms=1_000)
    assert breaker.refusal(1_000).startswith("Redis is slow")
    breaker.failed(1_000)
    assert breaker.refusal(1_000).startswith("Redis did not answer")
    assert breaker.refusal(1_150).startswith("Redis is slow"), "the silence is over"
    assert not breaker.refusal(2_000)
