"""A thread that hears a topic from its end on."""

from __future__ import annotations

import logging
import threading

from stream.config import KafkaConfig
from stream.kafka import KafkaError, Message, Reader, end_offsets

logger = logging.getLogger("serving")

RETRY_S = 2.0


class TopicEar(threading.Thread):
    """Without a broker it waits for one; scoring never depends on it. Subclasses say what records mean."""

    poll_ms = 200
    """How soon it hears that it has to end; a record is heard when it arrives."""
    patience_s = 5.0
    """How long `stop` waits for it."""

    def __init__(self, kafka: KafkaConfig, *, topic: str, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._kafka = kafka
        self._topic = topic
        self._ended = threading.Event()

    def stop(self) -> None:
        """End the thread; waits no longer than a look at the topic takes."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=self.patience_s)

    def run(self) -> None:
        """Until `stop`; after an error, again from the end of the topic."""
        while not self._ended.is_set():
            try:
                self._listen()
            except KafkaError as error:
                self._complain(str(error))
            self._deaf()
            self._ended.wait(RETRY_S)

    def _listen(self) -> None:
        positions = end_offsets(self._kafka, self._topic)
        with Reader(self._kafka, topic=self._topic, positions=positions) as reader:
            if not self._ended.is_set():
                self._listening()
                logger.info("%s listening", self.name, extra={"topic": self._topic})
            while not self._ended.is_set():
                for message in reader.poll(max_messages=100, timeout_ms=self.poll_ms):
                    self._hear(message)

    def _listening(self) -> None:
        """Nothing that is written from now on is missed."""

    def _deaf(self) -> None:
        """Until it listens again."""

    def _hear(self, message: Message) -> None:
        raise NotImplementedError

    def _complain(self, reason: str) -> None:
        raise NotImplementedError
