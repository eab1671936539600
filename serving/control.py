"""The server's ear on the control topic: `reload`, with a version or null for the newest."""

from __future__ import annotations

import logging
import threading

from serving.follower import Follower
from serving.telemetry import Telemetry
from stream.config import Config
from stream.control import ControlError, decode_control
from stream.kafka import KafkaError, Message, Reader, end_offsets
from trainer.versions import VersionError

logger = logging.getLogger("serving")

POLL_MS = 200
RETRY_S = 2.0


class ControlListener(threading.Thread):
    """Reads the control topic from its end on. Without a broker it waits for one; scoring never depends on it."""

    def __init__(self, config: Config, *, follower: Follower, telemetry: Telemetry) -> None:
        super().__init__(name="control", daemon=True)
        self._config = config
        self._follower = follower
        self._telemetry = telemetry
        self._ended = threading.Event()
        self._complaint = ""

    def stop(self) -> None:
        """End the thread; waits no longer than a look at the topic takes."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=5)

    def run(self) -> None:
        """Until `stop`; after an error, again from the end of the topic."""
        while not self._ended.is_set():
            try:
                self._listen()
            except KafkaError as error:
                self._complain(str(error))
                self._ended.wait(RETRY_S)

    def _listen(self) -> None:
        topic = self._config.topics.control
        with Reader(self._config.kafka, topic=topic, positions=end_offsets(self._config.kafka, topic)) as reader:
            if not self._ended.is_set():
                logger.info("control listening", extra={"topic": topic})
            while not self._ended.is_set():
                for message in reader.poll(max_messages=100, timeout_ms=POLL_MS):
                    self._obey(message)

    def _obey(self, message: Message) -> None:
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
