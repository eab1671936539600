"""A schema registry for tests: the three requests of Confluent's HTTP API that reading and writing need.

Source: docs.confluent.io/platform/current/schema-registry/develop/api. `RECD_TEST_REGISTRY` names a real one (a URL)
that the tests use in its place where they do not stop it.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote


class RegistryServer:
    """Schemas by id; survives `stop` and `start` on the same port."""

    def __init__(self) -> None:
        self.schemas: dict[int, str] = {}
        self.references: dict[int, list[dict[str, Any]]] = {}
        self.subjects: dict[str, int] = {}
        """Subject -> the schema that is its version 1."""
        self.requests = 0
        self.status = 0
        """An answer to give instead, for example 500."""
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def refer(self, subject: str, schema: str, *subjects: str) -> int:
        """The id of a schema that refers to version 1 of other subjects by their names."""
        number = self.subjects[subject] = self.register(schema)
        self.references[number] = [{"name": name, "subject": name, "version": 1} for name in subjects]
        return number

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
                parts = unquote(self.path.split("?")[0]).split("/")
                subject = parts[2] if parts[1] == "subjects" else ""
                number = registry.subjects.get(subject, 0) if subject else int(parts[-1])
                if number in registry.schemas:
                    body = {"schema": registry.schemas[number], "references": registry.references.get(number, [])}
                    self._answer(200, body | ({"subject": subject, "version": 1, "id": number} if subject else {}))
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
