"""A schema registry for tests: the two requests of Confluent's HTTP API that reading and writing need.

Source: docs.confluent.io/platform/current/schema-registry/develop/api. `RECD_TEST_REGISTRY` names a real one (a URL)
that the tests use in its place where they do not stop it.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class RegistryServer:
    """Schemas by id; survives `stop` and `start` on the same port."""

    def __init__(self) -> None:
        self.schemas: dict[int, str] = {}
        self.requests = 0
        self.status = 0
        """An answer to give instead, for example 500."""
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def register(self, schema: str) -> int:
        """The id of a schema."""
        for number, text in self.schemas.items():
            if text == schema:
                return number
        self.schemas[len(self.schemas) + 1] = schema
        return len(self.schemas)

    def start(self) -> Self:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.requests += 1
                number = int(self.path.split("?")[0].rpartition("/")[2])
                if number in registry.schemas:
                    self._answer(200, {"schema": registry.schemas[number]})
                else:
                    self._answer(404, {"error_code": 40403, "message": "Schema not found"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(200, {"id": registry.register(body["schema"])})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(registry.status or status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
