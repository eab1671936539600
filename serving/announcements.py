"""The server's ear on the topic of versions: an announcement makes the follower look at once."""

from __future__ import annotations

import logging

from serving.ear import TopicEar
from serving.follower import Follower
from stream.config import Config
from stream.kafka import Message
from trainer.announcements import AnnouncementError, decode_announcement

logger = logging.getLogger("serving")


class AnnouncementListener(TopicEar):
    """Reads the topic from its end on. Until something is announced, the follower looks at the store by itself."""

    poll_ms = 500
    patience_s = 1.0

    def __init__(self, config: Config, *, follower: Follower) -> None:
        super().__init__(config.kafka, topic=config.topics.versions, name="announcements")
        self._key = config.trainer.model_name.encode()
        self._follower = follower
        self._complaint = ""

    def _listening(self) -> None:
        self._follower.look()  # for what was announced before this ear was there
        self._complaint = ""

    def _deaf(self) -> None:
        self._follower.is_told = False

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
