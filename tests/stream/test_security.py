"""Secured clusters: what cannot be asked is refused by name, and nothing else escapes."""

from __future__ import annotations

import asyncio
import queue
import ssl
from pathlib import Path

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from stream.config import Config, KafkaConfig
from stream.control_access import broker_access, without_effect
from stream.control_plane import ControlPlane
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


def test_the_control_topic_is_reached_as_the_others_are() -> None:
    login = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "me", "sasl.password": "secret"}
    assert broker_access({"socket.timeout.ms": 9}) == {}
    assert broker_access({"client.id": "a"}) == {"broker_client_id": "a"}
    tls, both, plain = (
        credentials_to_aiokafka_auth(broker_access(options)["broker_credentials"])
        for options in (
            TLS,
            {"security.protocol": "SASL_SSL", **login},
            {"security.protocol": "sasl_plaintext", **login},
        )
    )
    assert (tls["security_protocol"], tls["ssl_context"].verify_mode) == ("SSL", ssl.CERT_REQUIRED)
    assert (both["security_protocol"], both["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert both["ssl_context"].check_hostname
    assert (both["sasl_plain_username"], both["sasl_plain_password"]) == ("me", "secret")
    assert (plain["security_protocol"], plain["ssl_context"]) == ("SASL_PLAINTEXT", None)
    with pytest.raises(RequestRefused, match=r"the control topic cannot be read with sasl.mechanism OAUTHBEARER"):
        broker_access({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"})
    assert without_effect({**TLS, **login, "socket.timeout.ms": 9}) == ["socket.timeout.ms"]


def test_a_worker_whose_orders_cannot_be_heard_says_so_and_is_ready() -> None:
    kafka = KafkaConfig(options={"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"})
    control = ControlPlane(Config(kafka=kafka), name="w", commands=queue.SimpleQueue())

    async def start_and_stop() -> None:
        await control.start()
        for _ in range(1_000):
            await asyncio.sleep(0 if control.refusal else 0.01)
        assert control.ready
        await control.stop()

    assert not control.ready
    asyncio.run(start_and_stop())
    assert "with sasl.mechanism OAUTHBEARER; records flow on" in control.refusal


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
