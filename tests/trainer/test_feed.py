"""The feed: what is read ahead is what would be read in place, bounded, and its errors come out where they are due."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from dedup_cache import MemoryStore, decode, encode
from recd.embedded import EmbeddedKafka
from stream.config import KafkaConfig
from stream.kafka import Writer, create_topic
from tests.trainer.made_batches import World, make_config
from tests.trainer.reference import Reference, tensors
from trainer.ahead import Ahead
from trainer.feed import BatchReader, FedBatch, Feed, FeedError, FeedLimits, FeedSource, UndecodableBatch
from trainer.ikjt import group_specs
from trainer.resolver import Resolver, ValuesLog

CONFIG = make_config()
ROOMY = FeedLimits(batches=100, num_bytes=1 << 30)
PATIENCE_S = 60


def test_items_come_out_in_their_order_and_within_the_bounds():
    ahead: Ahead[int] = Ahead(max_items=3, max_bytes=10)
    assert all(ahead.put(item, num_bytes=5, timeout_s=0) for item in (1, 2))
    assert not ahead.put(3, num_bytes=1, timeout_s=0)
    assert [ahead.get(timeout_s=0), ahead.num_bytes, len(ahead)] == [1, 5, 1]
    assert all(ahead.put(item, num_bytes=1, timeout_s=0) for item in (3, 4))
    assert not ahead.put(5, num_bytes=0, timeout_s=0)
    assert [ahead.get(timeout_s=0) for _ in range(4)] == [2, 3, 4, None]


def test_an_item_larger_than_all_room_waits_only_for_the_others():
    ahead: Ahead[str] = Ahead(max_items=3, max_bytes=10)
    assert ahead.put("small", num_bytes=1, timeout_s=0)
    with ThreadPoolExecutor(1) as thread:
        putting = thread.submit(ahead.put, "large", num_bytes=99, timeout_s=PATIENCE_S)
        assert ahead.get(timeout_s=0) == "small"
        assert putting.result(PATIENCE_S)
    assert ahead.get(timeout_s=0) == "large"
    assert ahead.num_bytes == 0


@contextmanager
def fed(kafka: KafkaConfig, topic: str, *, partitions: int, limits: FeedLimits = ROOMY) -> Iterator[Feed]:
    log = ValuesLog(kafka, topic="values")
    resolver = Resolver(World(CONFIG).schema, store=MemoryStore(), log=log)
    reader = BatchReader(World(CONFIG).schema, group_specs(CONFIG.features, CONFIG.trainer.model), True, resolver)
    source = FeedSource(kafka, topic, dict.fromkeys(range(partitions), 0))
    feed = Feed(source, reader=reader, limits=limits, stop=threading.Event())
    try:
        yield feed
    finally:
        feed.close()
        assert not feed._thread.is_alive()


@pytest.fixture
def topic(kafka: EmbeddedKafka, topic_prefix: str) -> tuple[KafkaConfig, str]:
    config = KafkaConfig(bootstrap=kafka.bootstrap)
    create_topic(config, name := f"{topic_prefix}batches", partitions=2)
    return config, name


def write(topic: tuple[KafkaConfig, str], records: list[tuple[int, bytes]]) -> None:
    with Writer(topic[0]) as writer:
        for partition, value in records:
            writer.send(topic[1], value, partition=partition)
        writer.flush(10_000)


def encoded(count: int, *, samples: int = 64) -> list[bytes]:
    world = World(CONFIG, samples=samples)
    return [encode(batch, world.schema) for batch in world.batches(count)]


def take(feed: Feed) -> FedBatch:
    deadline_s = time.monotonic() + PATIENCE_S
    while (batch := feed.get(timeout_s=0.1)) is None:
        assert time.monotonic() < deadline_s
    return batch


def eventually(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize("limits", [ROOMY, FeedLimits(batches=1, num_bytes=1)], ids=["far ahead", "one ahead"])
def test_training_from_the_feed_is_training_in_place_to_the_bit(topic: tuple[KafkaConfig, str], limits: FeedLimits):
    payloads = encoded(12)
    write(topic, [(number % 2, payload) for number, payload in enumerate(payloads)])
    in_place, from_feed = Reference(CONFIG), Reference(CONFIG)
    schema = World(CONFIG).schema
    expected = [in_place.step([tensors(decode(payload, schema), config=CONFIG)]) for payload in payloads]
    with fed(*topic, partitions=2, limits=limits) as feed:
        assert [from_feed.step([take(feed).tensors]) for _ in payloads] == expected
        eventually(lambda: feed.idle)
    for key, value in in_place.model.state_dict().items():
        assert torch.equal(from_feed.model.state_dict()[key], value), key


def test_bytes_bound_what_is_read_ahead(topic: tuple[KafkaConfig, str]):
    payloads = encoded(12, samples=200)
    write(topic, [(0, payload) for payload in payloads])
    schema = World(CONFIG).schema
    sizes = [tensors(decode(payload, schema), config=CONFIG).num_bytes for payload in payloads]
    limit = sum(sizes[:3]) + 1
    with fed(*topic, partitions=1, limits=FeedLimits(batches=100, num_bytes=limit)) as feed:
        eventually(lambda: len(feed._ahead) == 3)
        for number in range(len(payloads)):
            assert feed._ahead.num_bytes <= limit
            assert take(feed).offset == number
        assert feed.stalled_s >= 0


def test_an_error_in_the_thread_comes_out_by_name_after_what_was_before_it(topic: tuple[KafkaConfig, str]):
    write(topic, [(0, encoded(1)[0]), (0, b"no batch"), (0, encoded(1)[0])])
    with fed(*topic, partitions=1) as feed:
        assert take(feed).offset == 0
        with pytest.raises(UndecodableBatch, match=rf"{topic[1]}\[0\]@1: .* the trainer stops before it"):
            take(feed)
        with pytest.raises(UndecodableBatch):
            feed.get(timeout_s=0)


def test_a_position_that_is_gone_is_named(topic: tuple[KafkaConfig, str]):
    source = FeedSource(*topic, {0: 99})
    resolver = Resolver(World(CONFIG).schema, store=MemoryStore(), log=ValuesLog(topic[0], topic="values"))
    reader = BatchReader(World(CONFIG).schema, group_specs(CONFIG.features, CONFIG.trainer.model), True, resolver)
    feed = Feed(source, reader=reader, limits=ROOMY, stop=threading.Event())
    with pytest.raises(FeedError, match="no longer in the topic"):
        take(feed)
    feed.close()


def test_a_rank_without_partitions_is_idle_at_once(topic: tuple[KafkaConfig, str]):
    with fed(*topic, partitions=0) as feed:
        assert feed.idle
        assert feed.get(timeout_s=0) is None
        assert feed.lag_batches == 0
