"""The server's ear on the control topic: `reload`, with a version or null for the newest."""

from __future__ import annotations

import logging

from serving.ear import TopicEar
from serving.follower import Follower
from serving.telemetry import Telemetry
from stream.config import Config
from stream.control import ControlError, decode_control
from stream.kafka import Message
from trainer.versions import VersionError

logger = logging.getLogger("serving")


class ControlListener(TopicEar):
    """Hears orders."""

    def __init__(self, config: Config, *, follower: Follower, telemetry: Telemetry) -> None:
        super().__init__(config.kafka, topic=config.topics.control, name="control")
        self._follower = follower
        self._telemetry = telemetry
        self._complaint = ""

    def _hear(self, message: Message) -> None:
        try:
            order = decode_control(message.value)
            if order.is_for("serving") and order.action == "reload":
                self._follower.go_to(order.version)
        except (ControlError, VersionError) as error:
            self._complain(f"{_place(message)}: {error}")
        except Exception as error:  # noqa: BLE001 - an order must not end the ear; counted and logged
            self._complain(f"{_place(message)}: {type(error).__name__}: {error}")

    def _complain(self, reason: str) -> None:
        self._telemetry.control_errors.inc()
        if reason != self._complaint:
            logger.warning("control failed", extra={"reason": reason})
        self._complaint = reason


def _place(message: Message) -> str:
    return f"{message.topic}[{message.partition}]@{message.offset}"
