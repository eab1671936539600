"""The four paths that every service answers, from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import msgspec

JSON = "application/json"
MAX_ORDER_BYTES = 1 << 16
METRICS = "text/plain; version=0.0.4; charset=utf-8"


class PortTakenError(Exception):
    """The address cannot be listened on; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one path says."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Pages:
    """The four paths of a service: `/health` (it lives), `/ready` (it does its work), `/status`, `/metrics`."""

    status: Callable[[], Mapping[str, Any]]
    ready: Callable[[], bool]
    metrics: Callable[[], bytes] = lambda: b""
    order: Callable[[bytes], str | None] | None = None
    """Takes an order; says why not. None: the service takes none by HTTP."""

    def answer_post(self, path: str, body: bytes) -> Answer:
        """Answer a POST: 202 for an order that was taken, 400 for another."""
        if path != "/control" or self.order is None:
            return _json(404, {"error": f"nothing is taken at {path}"})
        reason = self.order(body)
        return _json(202, {"ok": True}) if reason is None else _json(400, {"error": reason})

    def answer(self, path: str) -> Answer:
        """Answer a GET; 503 while the service is not ready."""
        path = path.split("?", 1)[0]
        if path == "/health":
            return _json(200, {"ok": True})
        if path == "/ready":
            ready = self.ready()
            return _json(200 if ready else 503, {"ready": ready})
        if path == "/status":
            return _json(200, self.status())
        if path == "/metrics":
            return Answer(200, METRICS, self.metrics())
        return _json(404, {"error": f"no such path: {path}; there are /health, /ready, /status, /metrics"})


class StatusServer:
    """A small HTTP server on `host:port`; port 0 picks a free one, see `port`. Raises PortTakenError."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        status: Callable[[], Mapping[str, Any]],
        ready: Callable[[], bool],
        metrics: Callable[[], bytes] = lambda: b"",
        order: Callable[[bytes], str | None] | None = None,
    ) -> None:
        """`order` takes the body of `POST /control`."""
        pages = Pages(status, ready, metrics, order)

        class Handler(BaseHTTPRequestHandler):
            """Answers GET, and orders by POST."""

            def do_GET(self) -> None:
                """Send what `pages` says."""
                self._send(pages.answer(self.path))

            def do_POST(self) -> None:
                """Hand over an order."""
                size = self.headers.get("Content-Length", "")
                if not size.isdigit() or int(size) > MAX_ORDER_BYTES:
                    self._send(_json(413, {"error": f"an order has a Content-Length of at most {MAX_ORDER_BYTES}"}))
                    return
                self._send(pages.answer_post(self.path, self.rfile.read(int(size))))

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Say nothing."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise PortTakenError(f"cannot listen on {host}:{port}: {error.strerror}; set another port, or 0") from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="status-server", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _json(status: int, body: Mapping[str, Any]) -> Answer:
    return Answer(status, JSON, msgspec.json.encode(body, enc_hook=str))
