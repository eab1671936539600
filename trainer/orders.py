"""What the trainer is told over the `control` topic; heard by rank 0, obeyed by all at a step boundary."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stream.config import KafkaConfig
from stream.control import ControlError, ControlMessage, decode_control
from stream.kafka import KafkaError, Reader, end_offsets
from trainer.durable import replace_file

logger = logging.getLogger("trainer.orders")

ACTIONS = ("pause", "resume", "checkpoint", "publish", "reload", "rates", "release")
RETRY_S = 1.0
POLL_MS = 200


STANDING = "orders.json"


class _Standing(msgspec.Struct, frozen=True):
    paused: bool = False


class StandingOrders:
    """What was ordered and holds until something else is: kept beside the cuts, in force again after a restart."""

    def __init__(self, root: Path) -> None:
        self._path = root / STANDING
        self.paused = False
        try:
            self.paused = msgspec.json.decode(self._path.read_bytes(), type=_Standing).paused
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("standing orders are lost", extra={"path": str(self._path), "reason": str(error)})
        if self.paused:
            logger.warning("paused before the restart, and still: `recd control trainer resume` ends it")

    def keep(self, *, paused: bool) -> None:
        """Remember it; a disk that refuses is reported, and the order is obeyed all the same."""
        self.paused = paused
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, msgspec.json.encode(_Standing(paused)))
        except OSError as error:
            text = "an order will be forgotten at the next restart"
            logger.warning(text, extra={"path": str(self._path), "reason": str(error)})


@dataclass(frozen=True)
class Order:
    """One order; `version` belongs to `reload`, `rates` to `rates`."""

    action: str
    id: str = ""
    version: int = 0
    rates: Mapping[str, float | None] = field(default_factory=dict)


class Orders:
    """A thread that listens from now on. Orders that are not understood are counted and logged."""

    def __init__(self, kafka: KafkaConfig, *, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._heard: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._stop = threading.Event()
        self.refused = 0
        self._thread = threading.Thread(target=self._run, name="orders", daemon=True)
        self._thread.start()

    def next(self) -> Order | None:
        """The oldest order that was not handed out yet."""
        try:
            return self._heard.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        positions: dict[int, int] = {}
        while not self._stop.is_set():
            try:
                positions = positions or end_offsets(self._kafka, self._topic)
                with Reader(self._kafka, topic=self._topic, positions=positions) as reader:
                    self._listen(reader)
            except KafkaError as error:
                logger.warning("cannot listen to orders", extra={"topic": self._topic, "reason": str(error)})
                positions = {}
                self._stop.wait(RETRY_S)

    def _listen(self, reader: Reader) -> None:
        while not self._stop.is_set():
            for message in reader.poll(max_messages=16, timeout_ms=POLL_MS):
                self._take(message.value)

    def take(self, value: bytes) -> str | None:
        """An order that came by another way than the topic; why it was refused, None where it was taken."""
        try:
            message = decode_control(value)
        except ControlError as error:
            self.refused += 1
            return str(error)
        if not message.is_for("trainer") or not _is_whole(message):
            self.refused += 1
            known = f"{', '.join(ACTIONS)} (`reload` with a version above 0, `rates` with `rates`)"
            return f"the trainer knows {known}, not '{message.action}' as it came"
        self._heard.put(Order(message.action, message.id, message.version or 0, message.rates or {}))
        return None

    def _take(self, value: bytes | None) -> None:
        try:
            message = decode_control(value)
        except ControlError as error:
            self.refused += 1
            logger.warning("an order was not understood", extra={"reason": str(error)})
            return
        if not message.is_for("trainer"):
            return
        if not _is_whole(message):
            # An order to everyone may be meant for the others.
            if message.target == "trainer":
                self.refused += 1
                logger.warning("an order was refused", extra={"action": message.action, "version": message.version})
            return
        self._heard.put(Order(message.action, message.id, message.version or 0, message.rates or {}))


def _is_whole(message: ControlMessage) -> bool:
    missing = {"reload": not (message.version or 0) > 0, "rates": not message.rates}
    return message.action in ACTIONS and not missing.get(message.action, False)
