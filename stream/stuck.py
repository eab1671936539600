"""Notices transactions that never end, in the topics of a job: nobody would read on, and nothing else would say why."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mode import Service

from stream.config import Config
from stream.kafka import KafkaError, TopicMissing
from stream.kafka.admin import Place
from stream.kafka.hanging import OFFSETS_LOG, Unread, find_hanging, offsets_place, unread

logger = logging.getLogger("stream.stuck")

LOOK_EVERY_S = 5.0
SLACK_MS = 5_000
"""Beyond the transaction timeout, before anybody is asked."""
ASK_EVERY_MS = 30_000


def own_topics(config: Config) -> tuple[str, ...]:
    """Topics that transactions of a job's workers write, and the one that they read."""
    topics = config.topics
    named = (topics.interactions, topics.batches, topics.values, topics.late, topics.quarantine, topics.journal)
    return (*named, topics.snapshots) if config.stream.snapshot_every_events else named


@dataclass(slots=True)
class Standing:
    """For how long each partition's last stable offset has stood still behind its end."""

    patience_ms: int
    _since_ms: dict[Unread, int] = field(default_factory=dict)

    def look(self, now: Iterable[Unread], *, now_ms: int, unasked: str = "") -> list[Place]:
        """Partitions that have stood still for longer than a transaction of ours may last.

        Those of the topic `unasked`, which could not be asked now, count as they did.
        """
        kept = {one: since_ms for one, since_ms in self._since_ms.items() if one.place[0] == unasked}
        self._since_ms = kept | {one: self._since_ms.get(one, now_ms) for one in now}
        return [one.place for one, since_ms in self._since_ms.items() if now_ms - since_ms > self.patience_ms]


class StuckWatch(Service):
    """Looks every few seconds, whatever the data path does; asks who it is only where something stands still."""

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._config = config
        self._standing = Standing(config.stream.transaction_timeout_ms + SLACK_MS)
        self._asked: tuple[int, list[Place]] = (0, [])
        self._warned = ""
        self._ending = threading.Event()
        self.messages: tuple[str, ...] = ()
        """What an operator must know and do; empty while all is well."""
        self.refusal = ""
        """Why it cannot look everywhere at the moment, if so."""

    async def on_start(self) -> None:
        """Called by mode. The thread is a daemon: nobody waits for a broker's answer in order to end."""
        threading.Thread(target=self._watch, name="stuck-watch", daemon=True).start()

    async def on_stop(self) -> None:
        """Called by mode."""
        self._ending.set()

    def _watch(self) -> None:
        while not self._ending.wait(LOOK_EVERY_S):
            try:
                self.look(now_ms=time.monotonic_ns() // 1_000_000)
            except KafkaError as error:
                self._note_refusal(str(error))
            except Exception:
                logger.exception("the watch over transactions failed")

    def look(self, *, now_ms: int) -> None:
        """One look, at a moment of the monotonic clock. Raises KafkaError."""
        kafka = self._config.kafka
        now, refusal = self._unread()
        places = self._standing.look(now, now_ms=now_ms, unasked=OFFSETS_LOG if refusal else "")
        asked_ms, before = self._asked
        if places and (places != before or now_ms - asked_ms > ASK_EVERY_MS):
            self._asked = (now_ms, places)
            self._say(tuple(one.message(kafka.bootstrap) for one in find_hanging(kafka, places)))
        elif not places:
            self._asked = (now_ms, [])
            self._say(())
        self._note_refusal(refusal)

    def _unread(self) -> tuple[list[Unread], str]:
        """And why the group's offsets could not be looked at, if so."""
        kafka = self._config.kafka
        found = unread(kafka, own_topics(self._config))
        try:
            place = offsets_place(kafka, self._config.stream.group_id)
            return found + [one for one in unread(kafka, [place[0]]) if one.place == place], ""
        except TopicMissing:  # no group ever committed anything
            return found, ""
        except KafkaError as error:  # not everybody may look there
            return found, str(error)

    def _say(self, messages: tuple[str, ...]) -> None:
        for message in messages:
            if message not in self.messages:
                logger.error("hanging transaction", extra={"reason": message})
        if self.messages and not messages:
            logger.info("no transaction hangs any more")
        self.messages = messages

    def _note_refusal(self, reason: str) -> None:
        """In the log once each: it cannot look, which says nothing about transactions."""
        self.refusal = reason
        if reason and reason != self._warned:
            logger.warning("cannot look for hanging transactions", extra={"reason": reason})
            self._warned = reason
