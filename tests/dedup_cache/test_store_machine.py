"""Two clients of a real Redis as a state machine, with MemoryStore as the oracle of every generation."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dedup_cache import MemoryStore, NearCache, check_bits
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedRedis

NUMBERS = st.lists(st.integers(0, 15), min_size=1, max_size=8)
GROUPS = st.sampled_from(["user", "item"])


def prints_of(numbers: list[int]) -> np.ndarray:
    return np.array([(number, number * 7) for number in numbers], np.uint64).reshape(-1, 2)


class StoreMachine(RuleBasedStateMachine):
    """`oracle` is None from a loss until the next assignment, which must begin a new generation."""

    server: EmbeddedRedis

    def __init__(self) -> None:
        super().__init__()
        self.oracle: MemoryStore | None = None
        self.given: dict[tuple[str, int], tuple[str, int]] = {}
        with redis.Redis.from_url(self.server.url) as client:
            client.flushall()
            client.save()
        self.clients = [RedisStore(self.server.url, namespace="test", timeout_ms=20_000) for _ in range(2)]
        self.near = NearCache(self.clients[0])

    def teardown(self) -> None:
        for client in self.clients:
            assert client.failures == 0
            client.close()

    @rule(at=st.integers(0, 1), group=GROUPS, numbers=NUMBERS)
    def assign(self, at: int, group: str, numbers: list[int]) -> None:
        prints = prints_of(numbers)
        made = self.clients[at].assign(group, prints)
        generations = {generation for generation, _ in self.given}
        if self.oracle is None:
            assert made.generation not in generations
            self.oracle = MemoryStore(made.generation)
        wanted = self.oracle.assign(group, prints)
        assert made.generation == wanted.generation
        assert made.ids.tolist() == wanted.ids.tolist()
        assert made.known.tolist() == wanted.known.tolist()
        for number, row_id in zip(numbers, made.ids.tolist(), strict=True):
            assert self.given.setdefault((made.generation, row_id), (group, number)) == (group, number)

    @precondition(lambda self: self.oracle is not None)
    @rule(group=GROUPS, numbers=NUMBERS)
    def assign_near(self, group: str, numbers: list[int]) -> None:
        """A near-cache knows the ids of its generation, whichever is current."""
        made = self.near.assign(group, prints_of(numbers))
        for number, row_id in zip(numbers, made.ids.tolist(), strict=True):
            assert self.given.setdefault((made.generation, row_id), (group, number)) == (group, number)
        if made.generation == self.oracle.generation:
            # It asks for what it does not remember, in an order of its own; ids tell that order.
            asked = [numbers[i] for i in np.argsort(made.ids, kind="stable").tolist()]
            assert sorted(made.ids.tolist()) == self.oracle.assign(group, prints_of(asked)).ids.tolist()

    @precondition(lambda self: self.given)
    @rule(data=st.data(), at=st.integers(0, 1))
    def mark_known(self, data: st.DataObject, at: int) -> None:
        """Ids of any generation, as after a commit that took long."""
        generation, row_id = data.draw(st.sampled_from(sorted(self.given)))
        group, number = self.given[generation, row_id]
        marked = (group, np.array([row_id]), prints_of([number]), [b"%d" % number])
        self.clients[at].mark_known(*marked, generation=generation)
        if self.oracle is not None:
            self.oracle.mark_known(*marked, generation=generation)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), at=st.integers(0, 1))
    def fetch(self, data: st.DataObject, at: int) -> None:
        generation, row_id = data.draw(st.sampled_from(sorted(self.given)))
        group, number = self.given[generation, row_id]
        wanted = (group, np.array([row_id]), check_bits(prints_of([number])))
        value = self.clients[at].fetch(*wanted, generation=generation)
        if self.oracle is not None and generation == self.oracle.generation:
            assert value == self.oracle.fetch(*wanted)
        assert value in ([None], [b"%d" % number])

    @rule()
    def flush(self) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            client.flushall()
        self.oracle = None

    @rule()
    def save(self) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            client.save()

    @rule()
    def kill_and_restore_the_last_snapshot(self) -> None:
        self.server.kill()
        self.server.start()
        self.oracle = None


@pytest.fixture
def snapshot_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "redis", appendonly=False) as server:
        yield server


def test_redis_agrees_with_memory(snapshot_redis: EmbeddedRedis) -> None:
    class Machine(StoreMachine):
        server = snapshot_redis

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],  # shrinking restarts the server hundreds of times
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
