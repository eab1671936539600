"""librdkafka settings that every client shares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import confluent_kafka as ck

from stream.config import KafkaConfig
from stream.kafka.errors import OptionRefused, named

logger = logging.getLogger("stream.kafka")
_Client = TypeVar("_Client")


def _heard_elsewhere(error: object) -> None:
    """Without it a fatal error is raised in the middle of `poll` or `flush`, and the callbacks after it run into it."""


_DEFAULTS: dict[str, Any] = {
    "error_cb": _heard_elsewhere,
    "client.id": "recd",
    "socket.keepalive.enable": True,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
    "log.connection.close": False,
}
_QUIET: dict[str, Any] = {"log_level": 0}
"""For clients whose failures come back as errors anyway."""

MAX_RECORD_BYTES = 256 * 1024 * 1024
"""The client's own limit; the topic's `max.message.bytes` is the one that counts."""


def settings(kafka: KafkaConfig, *, required: dict[str, Any], quiet: bool = False) -> dict[str, Any]:
    """Settings of one client: defaults, then the user's options, then what correctness requires."""
    voice: dict[str, Any] = _QUIET if quiet else {"logger": logger}
    return {**_DEFAULTS, "bootstrap.servers": kafka.bootstrap, **kafka.options, **voice, **required}


def consumer_settings(kafka: KafkaConfig, *, required: dict[str, Any]) -> dict[str, Any]:
    """Settings of a consumer that sees committed records only and never guesses a position."""
    base = {
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 50,
        "receive.message.max.bytes": 2 * MAX_RECORD_BYTES,
    }
    return settings(kafka, required={**base, **required})


def connected(kind: Callable[[dict[str, Any]], _Client], kafka: KafkaConfig, chosen: dict[str, Any]) -> _Client:
    """A client of this kind with these settings. Raises OptionRefused for what it does not take."""
    try:
        return kind(chosen)
    except ck.KafkaException as error:
        options, reason = ", ".join(kafka.options), error.args[0].str().strip()
        raise OptionRefused(f"kafka.options ({options}): {reason}; correct it or leave it out") from None


@contextmanager
def named_errors(kafka: KafkaConfig, *, doing: str) -> Iterator[None]:
    """What the client raises within leaves as the project's own error."""
    try:
        yield
    except ck.KafkaException as error:
        raise named(error, doing=doing, kafka=kafka) from None
