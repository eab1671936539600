"""What the Kafka clients say again and again is said seldom; everything else is said."""

from __future__ import annotations

import logging
from itertools import pairwise

from stream.log import REPEAT_MS, SeldomRepeated


def record(message: str, *, at_ms: int, logger: str = "stream.kafka") -> logging.LogRecord:
    made = logging.LogRecord(logger, logging.WARNING, "", 0, message, None, None)
    made.created = at_ms / 1_000
    return made


def refused(*, client: int, took_ms: int) -> str:
    return (
        f"FAIL [recd#consumer-{client}] [thrd:kafka-1:9092/1]: kafka-1:9092/1: Connect to ipv4#10.0.0.1:9092 failed: "
        f"Connection refused (after {took_ms}ms in state CONNECT, {took_ms} identical error(s) suppressed)"
    )


def test_a_connection_that_is_refused_is_said_once_in_ten_seconds() -> None:
    seldom = SeldomRepeated()
    said = [at for at in range(0, 25_000, 13) if seldom.filter(record(refused(client=at, took_ms=at), at_ms=at))]
    assert len(said) == 3
    assert min(b - a for a, b in pairwise(said)) >= REPEAT_MS


def test_different_messages_and_brokers_are_all_said() -> None:
    seldom = SeldomRepeated()
    first = refused(client=1, took_ms=0)
    for message in (first, first.replace("kafka-1", "kafka-2"), "something else"):
        assert seldom.filter(record(message, at_ms=0))
        assert not seldom.filter(record(message, at_ms=1))
    assert seldom.filter(record("something else", at_ms=2, logger="aiokafka.conn"))
    assert not seldom.filter(record("something else", at_ms=3, logger="aiokafka.conn"))


def test_our_own_events_are_never_held_back() -> None:
    seldom = SeldomRepeated()
    assert all(seldom.filter(record("trouble", at_ms=0, logger="stream.worker")) for _ in range(3))
