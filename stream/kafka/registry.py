"""The schema registry, by Confluent's client. What leaves it are schemas as text and our own errors."""

from __future__ import annotations

from functools import cache

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

    def schema(self, schema_id: int) -> str | None:
        """The text of a schema with what it refers to; None where the registry knows no such id.

        Raises RegistryUnavailable.
        """
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            found = self._client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == UNKNOWN_SCHEMA:
                return None
            raise self._unavailable(error, doing=f"asking for schema {schema_id}") from None
        except Exception as error:  # noqa: BLE001 - the client lets its HTTP library's errors through
            raise self._unavailable(error, doing=f"asking for schema {schema_id}") from None
        return str(found.schema_str)

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
