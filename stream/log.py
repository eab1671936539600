"""Logs are events with fields: one JSON object a line, on standard error."""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; the others are the event's fields."""

_LOUD = {"aiokafka": logging.CRITICAL, "faust": logging.WARNING, "mode": logging.ERROR, "asyncio": logging.WARNING}
"""Libraries that say too much at the level of the application, and from which level on they may speak."""


REPEAT_MS = 10_000
"""How long a client's message that was just said is not said again."""
MAX_REMEMBERED = 1_000
_CLIENTS = ("aiokafka", "stream.kafka")
"""Loggers of the Kafka clients: while the broker is down they say the same thing many times a second."""
_VARYING = re.compile(r"\[\S+#(?:consumer|producer)-\d+\]|\(after \d+ms.*")
"""What librdkafka's messages about one thing differ in: the client's number, the time that it took."""


class SeldomRepeated(logging.Filter):
    """Lets each distinct message of the Kafka clients through at most once in `REPEAT_MS`."""

    def __init__(self) -> None:
        super().__init__()
        self._said_ms: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be said."""
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in _CLIENTS):
            return True
        now_ms, message = record.created * 1_000, (record.name, _VARYING.sub("", record.getMessage()))
        said_ms = self._said_ms.get(message)
        if said_ms is not None and 0 <= now_ms - said_ms < REPEAT_MS:
            return False
        if len(self._said_ms) >= MAX_REMEMBERED:
            self._said_ms.clear()
        self._said_ms[message] = now_ms
        return True


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "event": <message>, <fields>}`"""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure_logging(service: str = "recd", *, level: int = logging.INFO) -> None:
    """Send everything that is logged in this process to standard error, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    handler.addFilter(SeldomRepeated())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, threshold in _LOUD.items():
        logging.getLogger(name).setLevel(threshold)
