"""Secured clusters: what cannot be asked is refused by name, and nothing else escapes."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from stream.config import KafkaConfig
from stream.kafka.admin import Address
from stream.kafka.security import RequestRefused, connection_security
from stream.kafka.wire import wire

TLS = {"security.protocol": "ssl"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ssl.keystore.location": "a.p12"}, "ssl.keystore.location"),
        ({"ssl.crl.location": "a.crl"}, "ssl.crl.location"),
        ({"ssl.ca.location": "/nowhere/ca.pem"}, "No such file"),
        ({"ssl.ca.pem": "not a certificate"}, "ssl options"),
        ({"security.protocol": "sasl_ssl"}, "GSSAPI"),
    ],
)
def test_what_is_not_spoken_is_refused(options: dict[str, str], word: str) -> None:
    with pytest.raises(RequestRefused, match=word):
        connection_security({**TLS, **options})


def test_looser_checks_are_taken_over(tmp_path: Path) -> None:
    strict = connection_security({**TLS, "ssl.ca.location": "probe"})["ssl_context"]
    nameless = connection_security({**TLS, "ssl.endpoint.identification.algorithm": "none"})["ssl_context"]
    blind = connection_security({**TLS, "enable.ssl.certificate.verification": False})["ssl_context"]
    folder = connection_security({**TLS, "ssl.ca.location": str(tmp_path)})["ssl_context"]
    checks = [(one.check_hostname, one.verify_mode) for one in (strict, nameless, blind, folder)]
    required = ssl.CERT_REQUIRED
    assert checks == [(True, required), (False, required), (False, ssl.CERT_NONE), (True, required)]


@pytest.mark.parametrize("answer", [b"no TLS here", b""])
def test_a_handshake_that_fails_is_a_refusal(answer: bytes) -> None:
    async def answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(answer_plainly, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server, wire(KafkaConfig(bootstrap=f"{host}:{port}", options=TLS)) as asked:
            await asked.producers(Address(host, port), [("t", 0)])

    with pytest.raises(RequestRefused, match=r"cannot be asked with these kafka\.options"):
        asyncio.run(ask())
