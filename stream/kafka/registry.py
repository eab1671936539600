"""The schema registry, by Confluent's client. What leaves it are schemas as text and our own errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from stream.config import ConfigError, RegistryConfig
from stream.kafka.errors import KafkaError

TIMEOUT_S = 5
RETRIES = 1
UNKNOWN_SCHEMA = 404
INSTALL = "events.format: avro needs the extra: pip install 'recd-stream[avro]'"


class RegistryUnavailable(KafkaError):
    """The registry gave no answer, or none that settles anything. Trying again may help."""


class SchemaRegistry:
    """Asks a registry for schemas by id, and registers those of a writer."""

    def __init__(self, config: RegistryConfig) -> None:
        """Raises ConfigError for options that the client refuses, and without the extra."""
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError:
            raise ConfigError(INSTALL) from None
        self._url = config.url
        settings = {"url": config.url, "timeout": TIMEOUT_S, "max.retries": RETRIES, **config.options}
        try:
            self._client = SchemaRegistryClient(settings)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"events.registry: {error}") from None

    def schema(self, schema_id: int) -> tuple[str, ...] | None:
        """The texts of all schemas that it refers to, each behind those of its own, and last its own text.

        None where the registry knows no such id. Raises RegistryUnavailable.
        """
        doing = f"asking for schema {schema_id}"
        found = self._ask(lambda: self._client.get_schema(schema_id), doing=doing)
        return None if found is None else tuple(self._texts(found, doing=doing, known=set()))

    def _texts(self, schema: Any, *, doing: str, known: set[tuple[str, int]]) -> Iterator[str]:
        """Depth first; what two of them refer to comes once."""
        for reference in schema.references or ():
            place = (reference.subject, reference.version)
            if place in known:
                continue
            known.add(place)
            asking = f"{doing}, which refers to version {place[1]} of '{place[0]}',"
            found = self._ask(partial(self._client.get_version, *place), doing=asking)
            if found is None:
                raise RegistryUnavailable(
                    f"{asking} at the schema registry {self._url}: it has no such version; register it again"
                )
            yield from self._texts(found.schema, doing=doing, known=known)
        yield str(schema.schema_str)

    def _ask(self, what: Callable[[], Any], *, doing: str) -> Any:
        """The answer; None where the registry says that it has none. Raises RegistryUnavailable."""
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            return what()
        except SchemaRegistryError as error:
            if error.http_status_code == UNKNOWN_SCHEMA:
                return None
            raise self._unavailable(error, doing=doing) from None
        except Exception as error:  # noqa: BLE001 - the client lets its HTTP library's errors through
            raise self._unavailable(error, doing=doing) from None

    def register(self, subject: str, schema: str) -> int:
        """The id of a schema, made if it is new. Raises RegistryUnavailable, also where the registry refuses it."""
        from confluent_kafka.schema_registry import Schema

        try:
            return int(self._client.register_schema(subject, Schema(schema, "AVRO")))
        except Exception as error:  # noqa: BLE001 - the client lets its HTTP library's errors through
            raise self._unavailable(error, doing=f"registering '{subject}'") from None

    def _unavailable(self, error: Exception, *, doing: str) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"{doing} at the schema registry {self._url}: {str(error) or type(error).__name__}; start it, or correct "
            "events.registry"
        )


@cache
def shared_registry(url: str, options: tuple[tuple[str, str], ...]) -> SchemaRegistry:
    """One client of a registry for the whole process: it remembers schemas, which never change."""
    return SchemaRegistry(RegistryConfig(url=url, options=dict(options)))


def registry_of(config: RegistryConfig) -> SchemaRegistry:
    """The process's client for this registry."""
    return shared_registry(config.url, tuple(sorted(config.options.items())))
