"""The tests' broker: besides the plain listener one that asks for a name and a password (SASL/PLAIN)."""

from __future__ import annotations

from typing import Any

from recd.embedded import EmbeddedKafka, free_port
from recd.server import HOST

USER, PASSWORD = "recd", "open sesame"


class SecuredKafka(EmbeddedKafka):
    """One node with two doors."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._secured_port = free_port()

    def secured_by_token(self) -> dict[str, Any]:
        """As `secured`, with a mechanism that librdkafka speaks and the project's Python client does not."""
        token = {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": f"principal={USER}"}
        options = {"security.protocol": "sasl_plaintext", "sasl.mechanisms": "OAUTHBEARER", **token}
        return {**self.secured(), "options": options}

    def secured(self) -> dict[str, Any]:
        """The section `kafka` of a configuration that comes in by the second one."""
        login = {"sasl.mechanisms": "PLAIN", "sasl.username": USER, "sasl.password": PASSWORD}
        options = {"security.protocol": "sasl_plaintext", **login}
        return {"bootstrap": f"{HOST}:{self._secured_port}", "options": options}

    def _properties(self, *, controller_port: int) -> str:
        doors = f"PLAINTEXT://{HOST}:{self.port},SASL_PLAINTEXT://{HOST}:{self._secured_port}"
        security = "org.apache.kafka.common.security"
        by_password, by_token = f"{security}.plain.PlainLoginModule", f"{security}.oauthbearer.OAuthBearerLoginModule"
        kinds = ("PLAINTEXT:PLAINTEXT", "SASL_PLAINTEXT:SASL_PLAINTEXT", "CONTROLLER:PLAINTEXT")
        settings = {
            "listeners": f"{doors},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": doors,
            "listener.security.protocol.map": ",".join(kinds),
            "sasl.enabled.mechanisms": "PLAIN,OAUTHBEARER",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{by_password} required user_{USER}="{PASSWORD}";',
            "listener.name.sasl_plaintext.oauthbearer.sasl.jaas.config": f"{by_token} required;",
        }
        return super()._properties(controller_port=controller_port) + "".join(f"{k}={v}\n" for k, v in settings.items())
