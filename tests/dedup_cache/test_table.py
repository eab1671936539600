"""The table and the near-cache against a dictionary."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import MemoryStore, NearCache, StoreUnavailable, compiled
from dedup_cache.table import FingerprintTable
from stream.compiled import warm

HALVES = st.sampled_from([0, 1, 1023, 1024, 2048, 2**64 - 1])
KEYS = st.lists(st.tuples(HALVES, HALVES), max_size=30)


def column(keys: list[tuple[int, int]]) -> np.ndarray:
    return np.array(keys, np.uint64).reshape(-1, 2)


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "plain"], autouse=True)
def _form(request: pytest.FixtureRequest) -> Iterator[None]:
    warm.compile_now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda: request.param)
        yield


@settings(deadline=None)
@given(st.lists(st.tuples(KEYS, KEYS), max_size=8))
def test_table_is_a_dictionary(steps: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]) -> None:
    """Keys meet in few slots, so that they probe past each other."""
    table, plain = FingerprintTable(), {}
    for number, (put, find) in enumerate(steps):
        keys = list(dict.fromkeys(put))
        table.put(column(keys), 100 * number + np.arange(len(keys)))
        plain.update({key: 100 * number + at for at, key in enumerate(keys)})
        assert table.find(column(find)).tolist() == [plain.get(key, -1) for key in find]
        assert len(table) == len(plain)


def test_table_grows() -> None:
    random = np.random.default_rng(3)
    table = FingerprintTable()
    keys = random.integers(0, 2**63, (50_000, 2)).astype(np.uint64)
    for first in range(0, len(keys), 777):
        part = keys[first : first + 777]
        table.put(part, first + np.arange(len(part)))
    assert np.array_equal(table.find(keys), np.arange(len(keys)))
    assert (table.find(keys + np.uint64(1)) == -1).all()
    assert len(table) == len(keys)


def test_equal_keys_of_one_call_take_one_slot() -> None:
    table = FingerprintTable()
    table.put(column([(5, 6)] * 4), np.array([7, 7, 7, 7]))
    assert len(table) == 1
    assert table.find(column([(5, 6)])).tolist() == [7]


@settings(deadline=None)
@given(st.integers(2, 12), st.lists(st.lists(st.integers(0, 20), max_size=30), max_size=12))
def test_near_cache_forgets_without_harm(max_entries: int, calls: list[list[int]]) -> None:
    inner = MemoryStore("g")
    cache = NearCache(inner, max_entries=max_entries)
    oracle = MemoryStore("g")
    for numbers in calls:
        prints = column([(number, number) for number in numbers])
        assert cache.assign("user", prints).ids.tolist() == oracle.assign("user", prints).ids.tolist()
        assert len(cache) <= max_entries
    assert cache.hits + cache.misses == sum(map(len, calls))


def test_near_cache_keeps_what_is_used() -> None:
    cache = NearCache(MemoryStore("g"), max_entries=100)
    hot = column([(number, 0) for number in range(10)])
    for number in range(50):
        cache.assign("user", hot)
        cache.assign("user", column([(1000 + 10 * number + at, 0) for at in range(10)]))
    assert cache.misses == 10 + 500


class Restarting(MemoryStore):
    """A store whose server can lose everything."""

    def __init__(self) -> None:
        super().__init__("g1")
        self.calls: list[int] = []

    def assign(self, group: str, fingerprints: np.ndarray) -> object:
        self.calls.append(len(fingerprints))
        return super().assign(group, fingerprints)

    def lose_everything(self) -> None:
        super().__init__("g2")


def test_near_cache_never_mixes_generations() -> None:
    store = Restarting()
    cache = NearCache(store)
    cache.assign("user", column([(1, 1), (2, 2), (3, 3)]))
    store.lose_everything()
    assert cache.assign("user", column([(2, 2), (3, 3)])).generation == "g1"
    mixed = cache.assign("user", column([(3, 3), (4, 4)]))
    assert mixed.generation == cache.generation == "g2"
    assert sorted(mixed.ids.tolist()) == [0, 1]
    assert mixed.ids.tolist() == store.assign("user", column([(3, 3), (4, 4)])).ids.tolist()


def test_only_unseen_fingerprints_go_over_the_wire() -> None:
    store = Restarting()
    cache = NearCache(store)
    cache.assign("user", column([(1, 1), (2, 2)]))
    cache.assign("user", column([(1, 1), (2, 2), (3, 3), (2, 2)]))
    cache.assign("user", column([(3, 3)]))
    cache.assign("item", column([(3, 3)]))
    assert store.calls == [2, 1, 1]
    assert (cache.hits, cache.misses) == (4, 4)


def test_near_cache_knows_what_committed_while_the_store_was_away() -> None:
    class Away(MemoryStore):
        def mark_known(self, *_: object, **__: object) -> None:
            raise StoreUnavailable("away")

    cache = NearCache(Away("g"))
    made = cache.assign("user", column([(1, 1), (2, 2)]))
    with pytest.raises(StoreUnavailable):
        cache.mark_known("user", made.ids[:1], column([(1, 1)]), [b"one"], generation="g")
    assert cache.assign("user", column([(1, 1), (2, 2)])).known.tolist() == [True, False]
