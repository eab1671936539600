"""librdkafka's security options in aiokafka's words, as far as there are any."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiokafka.helpers import create_ssl_context

from stream.kafka.errors import KafkaError

_LOGIN = {"sasl.mechanism": "sasl_mechanism", "sasl.mechanisms": "sasl_mechanism"}
_LOGIN |= {"sasl.username": "sasl_plain_username", "sasl.password": "sasl_plain_password"}
_CERTIFICATES = {"ssl.ca.pem": "cadata", "ssl.certificate.location": "certfile"}
_CERTIFICATES |= {"ssl.key.location": "keyfile", "ssl.key.password": "password"}
_AUTHORITIES, _VERIFY = "ssl.ca.location", "enable.ssl.certificate.verification"
_IDENTIFY = "ssl.endpoint.identification.algorithm"
_WITHOUT_EFFECT = ("ssl.cipher.suites", "ssl.curves.list", "ssl.sigalgs.list")
"""What both sides agree on without them; where they cannot, the handshake says so."""
_SPOKEN = {*_CERTIFICATES, _AUTHORITIES, _IDENTIFY, *_WITHOUT_EFFECT}
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


ASKING = "who has a transaction open cannot be asked"


class RequestRefused(KafkaError):
    """The broker does not answer this request, or not to this user, or cannot be asked with these options."""


def connection_security(options: Mapping[str, Any], *, refusal: str = ASKING) -> dict[str, Any]:
    """Arguments of an aiokafka connection. Raises RequestRefused for what it does not speak or cannot read.

    `refusal` says what cannot be done then.
    """
    chosen = {own: options[theirs] for theirs, own in _LOGIN.items() if theirs in options}
    protocol = str(options.get("security.protocol", "plaintext")).upper()
    mechanism = str(chosen.get("sasl_mechanism", "GSSAPI"))
    if protocol.startswith("SASL") and mechanism not in _MECHANISMS:
        raise RequestRefused(f"{refusal} with sasl.mechanism {mechanism}")
    if protocol.endswith("SSL"):
        chosen["ssl_context"] = _context(options, refusal=refusal)
    return {"security_protocol": protocol, **chosen}


def _context(options: Mapping[str, Any], *, refusal: str) -> ssl.SSLContext:
    foreign = sorted(name for name in options if name.startswith("ssl.") and name not in _SPOKEN)
    if foreign:
        raise RequestRefused(f"{refusal} with {', '.join(foreign)}")
    named = {own: options[theirs] for theirs, own in _CERTIFICATES.items() if theirs in options}
    authorities = str(options.get(_AUTHORITIES, "probe"))
    if authorities != "probe":
        named["capath" if Path(authorities).is_dir() else "cafile"] = authorities
    try:
        context: ssl.SSLContext = create_ssl_context(**named)
    except (OSError, ValueError, TypeError) as error:
        raise RequestRefused(f"{refusal} with these ssl options: {error}") from None
    verified = str(options.get(_VERIFY, True)).lower() not in ("false", "0", "f")
    context.check_hostname = verified and str(options.get(_IDENTIFY, "https")).lower() != "none"
    if not verified:
        context.verify_mode = ssl.CERT_NONE
    return context
