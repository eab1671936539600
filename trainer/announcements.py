"""What is said on the topic of versions: one compacted record a model, the version in force."""

from __future__ import annotations

import logging
import threading
from typing import Literal

import msgspec

from stream.config import KafkaConfig
from stream.kafka import KafkaError, TopicExists, Writer, create_topic
from trainer.manifest import Manifest

logger = logging.getLogger("trainer.announcements")

FLUSH_MS = 5_000
RETRY_S = 1.0
SETTINGS = {"cleanup.policy": "compact", "segment.ms": "3600000"}


class AnnouncementError(Exception):
    """A record that is no announcement."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """The version in force of one model; fields that a reader does not know are ignored."""

    format: Literal[1] = 1
    version: int
    kind: Literal["full", "delta"]
    base: int
    """What a delta builds on."""
    lineage: str
    stream_time_ms: int
    weights_ms: int
    url: str
    """Where the trainer writes versions; a server may reach the same place by another name."""
    digest: str
    """Of the manifest."""


def announcement_of(manifest: Manifest, *, url: str) -> Announcement:
    """What is said of a version."""
    return Announcement(
        version=manifest.version,
        kind=manifest.kind,
        base=manifest.base,
        lineage=manifest.lineage,
        stream_time_ms=manifest.stream_time_ms,
        weights_ms=manifest.weights_ms,
        url=url,
        digest=manifest.digest,
    )


def decode_announcement(value: bytes | None) -> Announcement:
    """Raises AnnouncementError."""
    try:
        return msgspec.json.decode(value or b"", type=Announcement)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AnnouncementError(f"announcement of a version: {error}") from None


class Announcer:
    """Says the newest version on the topic, from a thread of its own: a broker that is away delays no version.

    What was not said when a newer version came is never said: servers want the newest.
    """

    def __init__(self, kafka: KafkaConfig, *, topic: str, model: str, replication: int = 1) -> None:
        """`model` is the record's key. The topic is made, compacted, where it is missing."""
        self._kafka = kafka
        self._topic = topic
        self._key = model.encode()
        self._replication = replication
        self._newest: Announcement | None = None
        self._changed = threading.Condition()
        self._closing = False
        self.announced = 0
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._thread.start()

    def announce(self, manifest: Manifest, *, url: str) -> None:
        """Say it soon; returns at once."""
        with self._changed:
            self._newest = announcement_of(manifest, url=url)
            self._changed.notify()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Say what is left to say, for so long at most, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing or self._newest is not None:
            try:
                self._make_topic()
                with Writer(self._kafka, compression="none", linger_ms=0) as writer:
                    self._write(writer)
            except KafkaError as error:
                self.failures += 1
                logger.warning("versions are not announced", extra={"topic": self._topic, "reason": str(error)})
                if self._closing:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_S)

    def _write(self, writer: Writer) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closing)
                said = self._newest
            if said is None:
                return
            writer.send(self._topic, msgspec.json.encode(said), key=self._key)
            writer.flush(FLUSH_MS)
            self.announced += 1
            with self._changed:
                if self._newest is said:
                    self._newest = None

    def _make_topic(self) -> None:
        try:
            create_topic(self._kafka, self._topic, partitions=1, replication=self._replication, settings=SETTINGS)
        except TopicExists:
            return
