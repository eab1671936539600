"""Rows by reference come from memory, from a real Redis, from a real `values` topic, or not at all, by name."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from confluent_kafka import Producer

from dedup_cache import Batch, Group, Held, Pool, Rows, check_bits, decode, encode, expand
from dedup_cache.assign import MemoryStore
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.config import KafkaConfig
from stream.indexer import Indexer, ReferencePolicy, ShippedValue
from stream.kafka import Writer, create_topic
from tests.trainer.made_batches import World, make_config
from trainer.feed import BatchReader, Feed, FeedLimits, FeedSource
from trainer.ikjt import group_specs
from trainer.resolver import Resolver, Stopping, UnresolvedReference, ValuesLog

pytestmark = pytest.mark.kafka

VALUES_PARTITIONS = 2
EVERYTHING = ReferencePolicy(inline_bytes=0, max_value_bytes=1 << 20)


class Shipped:
    """Batches whose rows all stand by reference, made as a stream worker makes them."""

    def __init__(self, store: RedisStore | MemoryStore) -> None:
        self.world = World(make_config())
        self._slicing = {group.name: group.slicing for group in self.world.schema.groups}
        self.indexer = Indexer(self.world.schema, store=store, policy=EVERYTHING)

    def next(self) -> tuple[Batch, Batch, list[ShippedValue]]:
        """A batch, the same by reference, and the values that have to be shipped for it."""
        plain = self.world.batch()
        held = {name: self._held(name, expand(group)) for name, group in plain.groups.items()}
        indexed = self.indexer.index(held)
        groups, named = {}, {}
        for name, one in held.items():
            chosen, inverse = one.pick(0, plain.num_samples)
            references = indexed.references(name, chosen)
            assert references is not None
            ids, inline = references
            rows = one.pool.take(chosen, slicing=self._slicing[name], inline=inline)
            groups[name] = Group(rows, inverse, ids, check_bits(one.fingerprints[chosen]), inline)
            named[name] = ids[~inline]
        values = self.indexer.values(indexed, named)
        self.indexer.ship(values)
        meta = plain.meta.__class__(
            **{name: getattr(plain.meta, name) for name in plain.meta.__slots__ if name != "generation"},
            generation=indexed.generation,
        )
        fields = {name: getattr(plain, name) for name in plain.__slots__ if name not in ("groups", "meta")}
        referring = Batch(**fields, groups=groups, meta=meta)
        return plain, decode(encode(referring, self.world.schema), self.world.schema), values

    def _held(self, name: str, rows: Rows) -> Held:
        pool = Pool.of([rows])
        return Held(pool, pool.fingerprints(salt=self.indexer.salt(name)))


@pytest.fixture
def topic(kafka: EmbeddedKafka, topic_prefix: str) -> tuple[KafkaConfig, str]:
    config = KafkaConfig(bootstrap=kafka.bootstrap)
    create_topic(config, f"{topic_prefix}values", partitions=VALUES_PARTITIONS, settings={"cleanup.policy": "compact"})
    return config, f"{topic_prefix}values"


def write(topic: tuple[KafkaConfig, str], values: list[ShippedValue]) -> None:
    with Writer(topic[0]) as writer:
        for value in values:
            writer.send(topic[1], value.blob, key=value.key, partition=value.row_id % VALUES_PARTITIONS)
        writer.flush(10_000)


def same(resolved: Batch, plain: Batch) -> None:
    for name, group in plain.groups.items():
        found, wanted = expand(resolved.groups[name]), expand(group)
        np.testing.assert_array_equal(found.dense, wanted.dense)
        for feature, column in wanted.lists.items():
            for one, other in zip(found.lists[feature].rows(), column.rows(), strict=True):
                np.testing.assert_array_equal(one, other)


def resolver(shipped: Shipped, topic: tuple[KafkaConfig, str], **options: int) -> Resolver:
    nowhere = RedisStore("redis://127.0.0.1:1/0", namespace="none", timeout_ms=50)
    return Resolver(shipped.world.schema, store=nowhere, log=ValuesLog(topic[0], topic=topic[1]), **options)


def test_redis_has_what_was_committed(redis_server: EmbeddedRedis, topic: tuple[KafkaConfig, str], topic_prefix: str):
    store = RedisStore(redis_server.url, namespace=topic_prefix, timeout_ms=2_000)
    shipped = Shipped(store)
    reading = RedisStore(redis_server.url, namespace=topic_prefix, timeout_ms=2_000)
    resolving = Resolver(shipped.world.schema, store=reading, log=ValuesLog(topic[0], topic=topic[1]))
    for _ in range(3):
        plain, referring, _ = shipped.next()
        shipped.indexer.committed()
        same(resolving.resolve(referring), plain)
        same(resolving.resolve(referring), plain)
    assert resolving.from_store > 0
    assert resolving.from_memory >= resolving.from_store
    assert resolving.from_log == 0


def test_without_redis_the_topic_has_everything(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore())
    made = [shipped.next() for _ in range(4)]
    resolving = resolver(shipped, topic)
    write(topic, [*made[0][2], *made[1][2]])
    for plain, referring, _ in made[:2]:
        same(resolving.resolve(referring), plain)
    write(topic, [*made[2][2], *made[3][2]])
    for plain, referring, _ in made[2:]:
        same(resolving.resolve(referring), plain)
    assert resolving.store_failures > 0
    assert resolving.from_log > 0


def test_a_value_behind_an_open_transaction_is_waited_for(topic: tuple[KafkaConfig, str]):
    """What a batch names may be committed and yet not visible: another worker's transaction is open before it."""
    shipped = Shipped(MemoryStore())
    plain, referring, values = shipped.next()
    other = Producer({"bootstrap.servers": topic[0].bootstrap, "transactional.id": f"{topic[1]}-other"})
    other.init_transactions(30)
    other.begin_transaction()
    for partition in range(VALUES_PARTITIONS):
        other.produce(topic[1], b"not yet decided", key=b"gen/group/1", partition=partition)
    other.flush(30)
    write(topic, values)
    with ThreadPoolExecutor(1) as thread:
        resolved = thread.submit(resolver(shipped, topic).resolve, referring)
        with pytest.raises(TimeoutError):
            resolved.result(1.5)
        other.abort_transaction(30)
        same(resolved.result(60), plain)


def test_what_was_forgotten_is_read_again(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore())
    made = [shipped.next() for _ in range(3)]
    write(topic, [value for _, _, values in made for value in values])
    resolving = resolver(shipped, topic, memory_bytes=500)
    for plain, referring, _ in [*made, *made]:
        same(resolving.resolve(referring), plain)
    assert resolving.from_memory < resolving.from_log


def test_a_value_that_is_nowhere_is_named(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore("gen"))
    _, referring, values = shipped.next()
    write(topic, values[:-1])
    missing = values[-1]
    with pytest.raises(UnresolvedReference, match=rf"'gen'.*'{missing.group}'.*row_id={missing.row_id}\b.*neither"):
        resolver(shipped, topic).resolve(referring)


def test_another_value_in_its_place_is_an_error(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore("gen"))
    _, referring, values = shipped.next()
    users = [value for value in values if value.group == "user"]
    swapped = {users[0].row_id: users[1].blob, users[1].row_id: users[0].blob}
    with Writer(topic[0]) as writer:
        for value in values:
            blob = swapped.get(value.row_id, value.blob) if value.group == "user" else value.blob
            writer.send(topic[1], blob, key=value.key, partition=0)
        writer.flush(10_000)
    with pytest.raises(UnresolvedReference, match="another value stands in its place"):
        resolver(shipped, topic).resolve(referring)


def test_a_damaged_value_is_an_error(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore("gen"))
    _, referring, values = shipped.next()
    damaged = bytes([*values[0].blob[:-9], values[0].blob[-9] ^ 1, *values[0].blob[-8:]])
    write(topic, values[1:])
    with Writer(topic[0]) as writer:
        writer.send(topic[1], damaged, key=values[0].key, partition=0)
        writer.send(topic[1], b"what is this", key=b"no/such/key", partition=0)
        writer.flush(10_000)
    with pytest.raises(UnresolvedReference, match=r"generation gen: group '.*', row 0 of .* damaged"):
        resolver(shipped, topic).resolve(referring)


def test_a_batch_without_references_passes_as_it_is(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore())
    plain = shipped.world.batch()
    assert resolver(shipped, topic).resolve(plain) is plain


NO_BROKER = KafkaConfig(bootstrap="127.0.0.1:1")


def test_a_search_that_is_told_to_stop_blames_no_batch():
    shipped, stop = Shipped(MemoryStore()), threading.Event()
    log = ValuesLog(NO_BROKER, topic="values", stopping=stop.is_set)
    _, referring, _ = shipped.next()
    with ThreadPoolExecutor(1) as thread:
        resolving = thread.submit(Resolver(shipped.world.schema, store=MemoryStore(), log=log).resolve, referring)
        stop.set()
        with pytest.raises(Stopping):
            resolving.result(60)


def test_a_search_that_is_stopped_half_way_blames_no_batch(topic: tuple[KafkaConfig, str]):
    shipped = Shipped(MemoryStore())
    _, referring, values = shipped.next()
    write(topic, values)
    log = ValuesLog(topic[0], topic=topic[1], stopping=iter([False] * 2 + [True] * 99).__next__)
    with pytest.raises(Stopping):
        Resolver(shipped.world.schema, store=MemoryStore(), log=log).resolve(referring)


def test_a_feed_that_waits_for_values_ends_when_closed(kafka: EmbeddedKafka, topic_prefix: str):
    config, stop, waits = KafkaConfig(bootstrap=kafka.bootstrap), threading.Event(), threading.Event()
    create_topic(config, f"{topic_prefix}batches", partitions=1)
    shipped = Shipped(MemoryStore())
    _, referring, _ = shipped.next()
    with Writer(config) as writer:
        writer.send(f"{topic_prefix}batches", encode(referring, shipped.world.schema), partition=0)
        writer.flush(10_000)
    log = ValuesLog(NO_BROKER, topic="values", stopping=lambda: waits.set() or stop.is_set())
    resolving = Resolver(shipped.world.schema, store=MemoryStore(), log=log)
    made = make_config()
    reader = BatchReader(shipped.world.schema, group_specs(made.features, made.trainer.model), True, resolving)
    feed = Feed(FeedSource(config, f"{topic_prefix}batches", {0: 0}), reader=reader, limits=FeedLimits(1, 1), stop=stop)
    assert waits.wait(60)
    feed.close()
    assert feed.get(timeout_s=0) is None
