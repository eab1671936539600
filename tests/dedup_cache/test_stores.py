"""What every IndexStore promises: in memory, in Redis, behind a near-cache."""

from collections.abc import Iterator

import numpy as np
import pytest

from dedup_cache import IndexStore, MemoryStore, NearCache, ReferenceMismatch, check_bits
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedRedis


def prints_of(*numbers: int) -> np.ndarray:
    return np.array([(number, number * 7) for number in numbers], np.uint64).reshape(-1, 2)


@pytest.fixture(params=["memory", "redis", "near memory", "near redis"])
def store(request: pytest.FixtureRequest, topic_prefix: str) -> Iterator[IndexStore]:
    if "memory" in request.param:
        inner: IndexStore = MemoryStore()
        yield NearCache(inner) if "near" in request.param else inner
        return
    server: EmbeddedRedis = request.getfixturevalue("redis_server")
    redis_store = RedisStore(server.url, namespace=topic_prefix, timeout_ms=5_000)
    yield NearCache(redis_store) if "near" in request.param else redis_store
    redis_store.close()


def test_ids_count_up_in_order_of_first_appearance(store: IndexStore) -> None:
    first = store.assign("user", prints_of(5, 6, 5, 7))
    assert first.ids.tolist() == [0, 1, 0, 2]
    assert not first.known.any()
    assert store.assign("user", prints_of(8, 6, 5)).ids.tolist() == [3, 1, 0]
    assert store.assign("item", prints_of(5, 9)).ids.tolist() == [4, 5]
    assert first.generation == store.generation != ""
    assert first.ids.dtype == np.int64
    assert first.known.dtype == np.bool_


def test_nothing_is_an_answer_to_nothing(store: IndexStore) -> None:
    assert store.assign("user", prints_of()).ids.tolist() == []
    assert store.fetch("user", np.empty(0, np.int64), np.empty(0, np.uint32)) == []
    store.mark_known("user", np.empty(0, np.int64), prints_of(), [])


def test_known_is_what_was_marked_in_its_group(store: IndexStore) -> None:
    made = store.assign("user", prints_of(1, 2, 3))
    store.assign("item", prints_of(1))
    store.mark_known("user", made.ids[:2], prints_of(1, 2), [b"one", b""], generation=made.generation)
    assert store.assign("user", prints_of(1, 2, 3)).known.tolist() == [True, True, False]
    assert store.assign("item", prints_of(1)).known.tolist() == [False]
    assert store.fetch("user", made.ids, check_bits(prints_of(1, 2, 3))) == [b"one", b"", None]
    store.mark_known("user", made.ids[:1], prints_of(1), [b"one"])
    assert store.assign("user", prints_of(1)).known.tolist() == [True]


def test_a_reference_to_another_value_is_an_error(store: IndexStore) -> None:
    made = store.assign("user", prints_of(1, 2))
    store.mark_known("user", made.ids, prints_of(1, 2), [b"one", b"two"])
    with pytest.raises(ReferenceMismatch, match=r"group 'user', id 1"):
        store.fetch("user", made.ids, check_bits(prints_of(1, 3)))


def test_marks_of_another_generation_are_ignored(store: IndexStore) -> None:
    made = store.assign("user", prints_of(1))
    store.mark_known("user", made.ids, prints_of(1), [b"one"], generation="another")
    assert store.assign("user", prints_of(1)).known.tolist() == [False]
    assert store.fetch("user", made.ids, check_bits(prints_of(1))) == [None]
    assert store.fetch("user", made.ids, check_bits(prints_of(1)), generation="another") == [None]


def test_many_at_once(store: IndexStore) -> None:
    random = np.random.default_rng(4)
    prints = random.integers(0, 2**63, (20_000, 2)).astype(np.uint64)
    repeated = prints[random.integers(0, len(prints), 30_000)]
    made = store.assign("user", repeated)
    places: dict[bytes, int] = {}
    assert made.ids.tolist() == [places.setdefault(row.tobytes(), len(places)) for row in repeated]
    blobs = [row.tobytes() * 10 for row in repeated]
    store.mark_known("user", made.ids, repeated, blobs)
    assert store.fetch("user", made.ids, check_bits(repeated)) == blobs
    assert store.assign("user", repeated).known.all()


def test_marks_of_an_id_that_the_value_does_not_have_are_ignored(store: IndexStore) -> None:
    store.assign("user", prints_of(1, 2))
    store.mark_known("user", np.array([1, 5]), prints_of(1, 9), [b"one", b"nine"])
    inner = getattr(store, "_store", store)
    assert inner.assign("user", prints_of(1, 2)).known.tolist() == [False, False]
    assert inner.fetch("user", np.array([1, 5]), check_bits(prints_of(1, 9)), generation=store.generation) == [
        None,
        None,
    ]
    assert inner.assign("user", prints_of(9)).ids.tolist() == [2]
