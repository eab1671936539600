"""How records of `interactions` are read."""

from __future__ import annotations

from typing import Literal

from stream.config.section import Positive, Section


class FieldsConfig(Section, frozen=True):
    """The user's own field names; a dot descends into a nested object (`user.id`). None: the field does not exist."""

    event_id: str | None = "event_id"
    key: str = "user_id"
    """The session key. Records of one key must lie in one partition."""
    time: str = "event_time_ms"
    type: str = "type"
    item: str = "item_id"
    impression_id: str | None = "impression_id"
    """On engagements: the impression they belong to. Where it is absent the join is by (key, item)."""
    request_id: str | None = "request_id"


class RegistryConfig(Section, frozen=True):
    """The schema registry (Confluent's API) of Avro records."""

    url: str = "http://localhost:8081"
    options: dict[str, str] = {}
    """Further options of Confluent's client (basic.auth.user.info, ssl.ca.location)."""


class EventsConfig(Section, frozen=True):
    """How a record of `interactions` is read."""

    format: Literal["json", "avro"] = "json"
    """avro: with a schema registry, in Confluent's wire format."""
    registry: RegistryConfig = RegistryConfig()
    """Only for avro."""
    fields: FieldsConfig = FieldsConfig()
    time_unit: Literal["ms", "s"] = "ms"
    impressions: tuple[str, ...] = ("impression",)
    """Values of the type field that mean: one candidate was shown."""
    engagements: tuple[str, ...] = ("click",)
    """Values of the type field that mean: the user did something with it. Any other value is quarantined."""
    max_bytes: Positive = 1_048_576
    """A larger record is quarantined unread."""
