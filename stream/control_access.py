"""How the control plane reaches the broker: `kafka.options`, which are librdkafka's, in Faust's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faust

from stream.kafka.security import connection_security

_TAKEN = ("security.protocol", "sasl.", "ssl.", "enable.ssl.certificate.verification", "client.id")
_PLAIN, _TLS = "PLAINTEXT", "SSL"


def broker_access(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Faust application. Raises RequestRefused for security options that it does not speak."""
    chosen: dict[str, Any] = {}
    if "client.id" in options:
        chosen["broker_client_id"] = str(options["client.id"])
    spoken = connection_security(options, refusal="the control topic cannot be read")
    protocol, context = spoken["security_protocol"], spoken.get("ssl_context")
    if protocol == _TLS:
        chosen["broker_credentials"] = faust.SSLCredentials(context)
    elif protocol != _PLAIN:
        chosen["broker_credentials"] = faust.SASLCredentials(
            username=spoken.get("sasl_plain_username"),
            password=spoken.get("sasl_plain_password"),
            mechanism=spoken.get("sasl_mechanism"),
            ssl_context=context,
        )
    return chosen


def without_effect(options: Mapping[str, Any]) -> list[str]:
    """Options that only the data path hears: librdkafka's own."""
    return sorted(name for name in options if not name.startswith(_TAKEN))
