"""librdkafka settings that every client shares."""

from __future__ import annotations

import logging
from typing import Any

from stream.config import KafkaConfig

logger = logging.getLogger("stream.kafka")


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
