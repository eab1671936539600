"""The index against a real Redis that is killed, restored, flushed, stopped, filled and interrupted."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from dedup_cache import EvictionPolicyError, StoreUnavailable, check_bits
from dedup_cache.breaker import Breaker
from dedup_cache.redis_store import Lifetime, RedisStore
from recd.embedded import EmbeddedRedis


def prints_of(*numbers: int) -> np.ndarray:
    return np.array([(number, number * 7) for number in numbers], np.uint64).reshape(-1, 2)


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


@contextmanager
def client_of(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(server.url)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def store_of(server: EmbeddedRedis, namespace: str = "test", **options: object) -> Iterator[RedisStore]:
    store = RedisStore(server.url, namespace=namespace, **{"timeout_ms": 5_000, **options})  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


def test_a_server_restored_from_an_old_snapshot_hands_out_no_id_twice(tmp_path: Path) -> None:
    given: dict[tuple[str, int], int] = {}

    def assign(store: RedisStore, numbers: range) -> str:
        made = store.assign("user", prints_of(*numbers))
        for number, row_id in zip(numbers, made.ids.tolist(), strict=True):
            assert given.setdefault((made.generation, row_id), number) == number
        return made.generation

    with EmbeddedRedis(tmp_path / "redis", appendonly=False) as server, store_of(server) as store:
        before = assign(store, range(1000))
        with client_of(server) as client:
            client.save()
        assert assign(store, range(900, 1100)) == before
        server.kill()
        server.start()
        with client_of(server) as client:
            assert client.hget("{test}:index", "next") == b"1000"
        after = assign(store, range(2000, 2200))
        assert after != before
        server.kill()
        server.start()
        with store_of(server) as other:
            assert assign(other, range(3000, 3300)) not in {before, after}
        assign(store, range(3100, 3400))


def test_a_restart_begins_a_generation_even_with_the_same_nonce(
    private_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    with store_of(private_redis) as store:
        before = store.assign("user", prints_of(1)).generation
        private_redis.kill()
        private_redis.start()
        assert store.assign("user", prints_of(2)).generation != before


def test_an_old_generation_keeps_its_values_for_a_while(private_redis: EmbeddedRedis) -> None:
    with (
        store_of(private_redis, lifetime=Lifetime(keep_values_ms=100_000)) as store,
        client_of(private_redis) as client,
    ):
        made = store.assign("user", prints_of(1, 2))
        store.mark_known("user", made.ids, prints_of(1, 2), [b"one", b"two"])
        private_redis.stop()
        private_redis.start()
        assert not store.assign("user", prints_of(2, 1)).known.any()
        assert store.fetch("user", made.ids, check_bits(prints_of(1, 2)), generation=made.generation) == [
            b"one",
            b"two",
        ]
        prefix = f"{{test}}:index:{made.generation}"
        assert client.exists(f"{prefix}:ids:user") == 0
        assert 0 < client.pttl(f"{prefix}:values:user") <= 100_000
        store.mark_known("user", made.ids, prints_of(1, 2), [b"one", b"two"], generation=made.generation)
        assert store.outdated_marks == 2
        assert not store.assign("user", prints_of(2, 1)).known.any()


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB", "DEL {test}:index", "HDEL {test}:index next"])
def test_a_lost_counter_begins_a_generation(private_redis: EmbeddedRedis, command: str) -> None:
    with store_of(private_redis) as store, client_of(private_redis) as client:
        before = store.assign("user", prints_of(1, 2))
        client.execute_command(*command.split())
        after = store.assign("user", prints_of(2, 1))
        assert after.generation != before.generation
        assert after.ids.tolist() == [0, 1]


@pytest.mark.parametrize("lost", ["connections", "scripts"])
def test_lost_connections_and_scripts_do_not_show(private_redis: EmbeddedRedis, lost: str) -> None:
    with store_of(private_redis) as store, client_of(private_redis) as client:
        before = store.assign("user", prints_of(1, 2))
        if lost == "connections":
            client.client_kill_filter(_type="normal", skipme=True)
        else:
            client.script_flush()
        assert store.assign("user", prints_of(2, 3)).generation == before.generation
        assert store.failures == 0


def test_a_server_that_may_evict_is_refused(private_redis: EmbeddedRedis) -> None:
    with client_of(private_redis) as client, store_of(private_redis) as store:
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(EvictionPolicyError, match=r"allkeys-lru.*set it to noeviction"):
            store.assign("user", prints_of(1))
        client.config_set("maxmemory-policy", "noeviction")
        assert store.assign("user", prints_of(1)).ids.tolist() == [0]


def test_a_full_server_is_unavailable_and_loses_nothing(private_redis: EmbeddedRedis) -> None:
    clock = Clock()
    with client_of(private_redis) as client, store_of(private_redis, clock_ms=clock) as store:
        before = store.assign("user", prints_of(1))
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="OOM"):
            store.assign("user", prints_of(1, 2))
        client.config_set("maxmemory", 0)
        clock.now_ms += 60_000
        after = store.assign("user", prints_of(1, 2))
        assert after.generation == before.generation
        assert after.ids.tolist() == [0, 1]


def test_a_dead_server_is_asked_at_growing_intervals(tmp_path: Path) -> None:
    clock = Clock()
    server = EmbeddedRedis(tmp_path / "redis")
    with server, store_of(server, clock_ms=clock, breaker=Breaker(first_ms=100, max_ms=350)) as store:
        store.assign("user", prints_of(1))
        server.kill()
        asked_at = []
        for clock.now_ms in range(0, 2000, 10):
            failures = store.failures
            with pytest.raises(StoreUnavailable):
                store.assign("user", prints_of(1))
            if store.failures > failures:
                asked_at.append(clock.now_ms)
        assert asked_at == [0, 100, 300, 650, 1000, 1350, 1700]
        server.start()
        clock.now_ms = 2050
        assert store.assign("user", prints_of(1)).ids.tolist() == [0]
        server.kill()
        with pytest.raises(StoreUnavailable):
            store.assign("user", prints_of(1))
        with pytest.raises(StoreUnavailable, match="next trial in 100 ms"):
            store.fetch("user", np.array([0]), check_bits(prints_of(1)))


def test_a_server_that_hangs_costs_one_timeout(private_redis: EmbeddedRedis) -> None:
    clock = Clock()
    with store_of(private_redis, timeout_ms=100, clock_ms=clock) as store:
        before = store.assign("user", prints_of(1))
        os.kill(private_redis.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="Timeout"):
                store.assign("user", prints_of(1, 2))
            for _ in range(1000):
                with pytest.raises(StoreUnavailable, match="next trial"):
                    store.assign("user", prints_of(1, 2))
        finally:
            os.kill(private_redis.pid, signal.SIGCONT)
        assert store.failures == 1
        clock.now_ms += 60_000
        after = store.assign("user", prints_of(1, 2))
        assert (after.generation, after.ids.tolist()) == (before.generation, [0, 1])


def test_a_large_call_gives_up_between_two_parts(private_redis: EmbeddedRedis) -> None:
    class Slow(Clock):
        def __call__(self) -> int:
            self.now_ms += 400
            return self.now_ms

    prints = np.random.default_rng(5).integers(0, 2**63, (40_000, 2)).astype(np.uint64)
    with store_of(private_redis, clock_ms=Slow(), timeout_ms=1_000) as store:
        with pytest.raises(StoreUnavailable, match="slower than 1000 ms"):
            store.assign("user", prints)
        assert store.failures == 1


@contextmanager
def talks_nonsense(answer: bytes) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-7\r\nxx", b"\xff" * 100, b"*3\r\n:1\r\n"]
)
def test_something_else_than_redis_is_unavailable(answer: bytes) -> None:
    with talks_nonsense(answer) as url:
        store = RedisStore(url, namespace="test", timeout_ms=200)
        with pytest.raises(StoreUnavailable):
            store.assign("user", prints_of(1))
        store.close()


def test_a_key_of_someone_else_is_unavailable(private_redis: EmbeddedRedis) -> None:
    with client_of(private_redis) as client, store_of(private_redis) as store:
        client.set("{test}:index", "mine")
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            store.assign("user", prints_of(1))


def test_workers_see_the_same_ids_at_the_same_time(redis_server: EmbeddedRedis, topic_prefix: str) -> None:
    workers, values = 4, 3_000

    def work(seed: int) -> tuple[str, dict[int, int]]:
        seen: dict[int, int] = {}
        order = np.random.default_rng(seed).permutation(values)
        with store_of(redis_server, topic_prefix, timeout_ms=30_000) as store:
            for first in range(0, values, 37):
                numbers = order[first : first + 37].tolist()
                seen.update(zip(numbers, store.assign("user", prints_of(*numbers)).ids.tolist(), strict=True))
            return store.generation, seen

    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(work, range(workers)))
    assert all(answer == answers[0] for answer in answers)
    assert sorted(answers[0][1].values()) == list(range(values))


def test_only_redis_store_needs_redis() -> None:
    code = "import sys, dedup_cache; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"redis", "torch", "confluent_kafka", "faust", "numba"} & set(loaded)


@pytest.mark.parametrize("make", [lambda b: b.wait_ms(0), lambda b: (b.succeeded(), b.wait_ms(5))[1]])
def test_a_closed_breaker_lets_calls_pass(make: Callable[[Breaker], int]) -> None:
    assert make(Breaker()) == 0
