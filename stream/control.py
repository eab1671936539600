"""Orders to running services, over the low-rate `control` topic."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from stream.config import Config
from stream.kafka import Writer

FLUSH_TIMEOUT_MS = 10_000
Target = Literal["stream", "trainer", "serving", "all"]


class ControlError(Exception):
    """A control message that cannot be understood."""


class ControlMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One order; fields that a target does not know are ignored by it."""

    target: Target
    action: str
    id: str = ""
    version: int | None = None
    rates: dict[str, float | None] | None = None
    """Trainer, `rates`: learning rates by part; null goes back to the config's."""

    def is_for(self, service: str) -> bool:
        """Whether the service has to obey."""
        return self.target in (service, "all")


def send(
    config: Config,
    *,
    target: str,
    action: str,
    version: int | None = None,
    rates: Mapping[str, float | None] | None = None,
) -> str:
    """Write one order to the control topic; returns its id. Raises KafkaError, ControlError."""
    order_id = secrets.token_hex(8)
    body: dict[str, Any] = {"target": target, "action": action, "id": order_id, "version": version}
    if rates is not None:
        body["rates"] = dict(rates)
    decode_control(data := msgspec.json.encode(body))
    with Writer(config.kafka, compression="none", linger_ms=0) as writer:
        writer.send(config.topics.control, data)
        writer.flush(FLUSH_TIMEOUT_MS)
    return order_id


def decode_control(data: bytes | None) -> ControlMessage:
    """Raises ControlError."""
    try:
        return msgspec.json.decode(data or b"", type=ControlMessage)
    except msgspec.MsgspecError as error:
        raise ControlError(f"control message: {error}") from None
