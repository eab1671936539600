"""The server's ear on the topic of versions: an announcement makes the follower look at once."""

from __future__ import annotations

import logging
import threading

from serving.follower import Follower
from stream.config import Config
from stream.kafka import KafkaError, Message, Reader, end_offsets
from trainer.announcements import AnnouncementError, decode_announcement

logger = logging.getLogger("serving")

POLL_MS = 500
"""How soon it hears that it has to end; an announcement is heard when it arrives."""
RETRY_S = 2.0


class AnnouncementListener(threading.Thread):
    """Reads the topic from its end on. Until something is announced, the follower looks at the store by itself."""

    def __init__(self, config: Config, *, follower: Follower) -> None:
        super().__init__(name="announcements", daemon=True)
        self._config = config
        self._key = config.trainer.model_name.encode()
        self._follower = follower
        self._ended = threading.Event()
        self._complaint = ""

    def stop(self) -> None:
        """End the thread; waits no longer than a look at the topic takes."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=1)

    def run(self) -> None:
        """Until `stop`; after an error, again from the end of the topic."""
        while not self._ended.is_set():
            try:
                self._listen()
            except KafkaError as error:
                self._complain(str(error))
            self._follower.is_told = False
            self._ended.wait(RETRY_S)

    def _listen(self) -> None:
        topic = self._config.topics.versions
        with Reader(self._config.kafka, topic=topic, positions=end_offsets(self._config.kafka, topic)) as reader:
            self._follower.look()  # for what was announced before this ear was there
            self._complaint = ""
            logger.info("announcements listening", extra={"topic": topic})
            while not self._ended.is_set():
                for message in reader.poll(max_messages=100, timeout_ms=POLL_MS):
                    self._hear(message)

    def _hear(self, message: Message) -> None:
        if message.key != self._key:
            return
        try:
            decode_announcement(message.value)
        except AnnouncementError as error:
            self._complain(f"{message.topic}[{message.partition}]@{message.offset}: {error}")
            self._follower.look()
        else:
            self._follower.told()

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            logger.warning("no announcements", extra={"reason": reason})
        self._complaint = reason
