"""The Kafka edge: the only place that imports confluent_kafka. What leaves it are our own types and errors."""

from stream.kafka.admin import (
    begin_offsets,
    create_topic,
    end_offsets,
    offsets_at,
    partition_count,
    topic_id,
    topic_settings,
    wait_for_broker,
)
from stream.kafka.bookmarks import Bookmarks
from stream.kafka.errors import (
    BrokerUnavailable,
    DeliveryFailed,
    Fenced,
    IdentityTaken,
    KafkaError,
    OffsetOutOfRange,
    OptionRefused,
    TopicExists,
    TopicMissing,
    TransactionAborted,
)
from stream.kafka.group import Committed, GroupConsumer, GroupMetadata, Polled, Rebalance
from stream.kafka.probe import EndProbe, Ends
from stream.kafka.reader import Message, Reader
from stream.kafka.transaction import TransactionalWriter
from stream.kafka.writer import Writer

__all__ = [
    "Bookmarks",
    "BrokerUnavailable",
    "Committed",
    "DeliveryFailed",
    "EndProbe",
    "Ends",
    "Fenced",
    "GroupConsumer",
    "GroupMetadata",
    "IdentityTaken",
    "KafkaError",
    "Message",
    "OffsetOutOfRange",
    "OptionRefused",
    "Polled",
    "Reader",
    "Rebalance",
    "TopicExists",
    "TopicMissing",
    "TransactionAborted",
    "TransactionalWriter",
    "Writer",
    "begin_offsets",
    "create_topic",
    "end_offsets",
    "offsets_at",
    "partition_count",
    "topic_id",
    "topic_settings",
    "wait_for_broker",
]
