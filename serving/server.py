"""What one server process holds and answers: HTTP in front, scoring in threads, the follower of versions beside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
import torch
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from serving.announcements import AnnouncementListener
from serving.control import ControlListener
from serving.errors import ServingError
from serving.follower import Follower
from serving.inference import InferenceProtocol
from serving.intake import Asked, Intake
from serving.model import ServedModel
from serving.telemetry import Telemetry
from stream.compiled import warm
from stream.config import Config
from trainer.versions import VersionError, VersionStore

RETRY_AFTER_S = "1"
PATHS = "POST /score, /reload and GET /v2, /health, /ready, /status, /metrics"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Reload(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /reload`: a version to stay at, or null to follow the newest."""

    version: int | None


class Server:
    """All that one server process holds. Scores with one version from a request's start to its end.

    Requests that wait are scored together, by as many threads as `serving.threads` says, each with one torch thread of
    its own, off the event loop.
    """

    def __init__(self, config: Config) -> None:
        """VersionError where the place of the versions cannot be opened."""
        self.telemetry = Telemetry()
        self._config = config
        self._stopping = False
        store = VersionStore(config.trainer.versions_url, keep=config.trainer.keep_versions)
        self.follower = Follower(
            store, poll_ms=config.serving.poll_ms, telemetry=self.telemetry, clock_ms=lambda: time.time_ns() // 10**6
        )
        self.control = ControlListener(config, follower=self.follower, telemetry=self.telemetry)
        self.intake = Intake(config.serving, follower=self.follower, telemetry=self.telemetry)
        self.telemetry.show_waiting(lambda: self.intake.under_way)
        self.announcements = AnnouncementListener(config, follower=self.follower)

    def start(self) -> None:
        """Begin to follow versions and to listen."""
        torch.set_num_threads(1)
        warm.start()
        self.follower.start()
        self.control.start()
        self.intake.start()
        if self._config.trainer.announce:
            self.announcements.start()

    def announce_stop(self) -> None:
        """No longer ready, so that a load balancer sends no more; requests are still answered."""
        self._stopping = True

    def stop(self) -> None:
        """End the threads; the HTTP side must have ended before."""
        self.announcements.stop()
        self.control.stop()
        self.follower.stop()
        self.intake.stop()

    def application(self) -> web.Application:
        """The HTTP interface."""
        app = web.Application(client_max_size=self._config.serving.max_request_bytes, middlewares=[self._answer])
        app.add_routes(
            [
                web.post("/score", self.score),
                web.post("/reload", self.reload),
                web.get("/health", self.health),
                web.get("/ready", self.ready),
                web.get("/status", self.status),
                web.get("/metrics", self.metrics),
            ]
        )
        protocol = InferenceProtocol(
            self._config.serving.model_name,
            intake=self.intake,
            follower=self.follower,
            is_ready=lambda: self._state == "running",
        )
        app.add_routes(protocol.routes())
        return app

    async def drain(self, *, timeout_s: float) -> None:
        """Wait until no request is under way."""
        await self.intake.drained(timeout_s=timeout_s)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as JSON, with their status; the connection ends where the server does."""
        try:
            answer = await handler(request)
        except ServingError as error:
            answer = _json({"error": str(error)}, status=error.status)
            if error.status is HTTPStatus.SERVICE_UNAVAILABLE:
                answer.headers["Retry-After"] = RETRY_AFTER_S
        except web.HTTPException as error:
            told = f"{error.reason}: {request.method} {request.path}; there are {PATHS}"
            answer = _json({"error": told}, status=error.status)
            answer.headers.update({name: value for name, value in error.headers.items() if name == "Allow"})
        if self._stopping:
            answer.force_close()
        return answer

    async def score(self, request: web.Request) -> web.Response:
        """The simple protocol: what is shared, what each candidate has; one list of scores a label."""

        def read(body: bytes, model: ServedModel) -> Asked:
            return Asked(model.recipe.bodies.decode(body))

        _, answer = await self.intake.scored(request, read)
        scores = dict(zip(answer.labels, answer.scores.tolist(), strict=True))
        return _json({"version": answer.version, "scores": scores})

    async def reload(self, request: web.Request) -> web.Response:
        """Pin a version or follow the newest; 409 where the version cannot be taken, then nothing changes."""
        try:
            wanted = msgspec.json.decode(await request.read(), type=Reload).version
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _json({"error": str(error).replace("`", "")}, status=400)
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.follower.go_to, wanted)
        except VersionError as error:
            return _json({"error": str(error)}, status=409)
        return _json({"version": self._version, "pinned": self.follower.pinned})

    async def health(self, _request: web.Request) -> web.Response:
        """The process lives."""
        return _json({"ok": True})

    async def ready(self, _request: web.Request) -> web.Response:
        """200 while requests are scored."""
        ready = self._state == "running"
        return _json({"ready": ready}, status=200 if ready else 503)

    async def status(self, _request: web.Request) -> web.Response:
        """What this server does and has done."""
        model = self.follower.model
        return _json(
            {
                "service": "serving",
                "state": self._state,
                "version": self._version,
                "pinned": self.follower.pinned,
                "model": self._config.serving.model_name,
                "under_way": self.intake.under_way,
                "stream_time_ms": model.manifest.stream_time_ms if model else None,
                "counters": self.telemetry.counters(),
                "weights_to_server_ms": self.telemetry.weights_to_server_ms.percentiles(),
                "latency_ms": self.telemetry.latency_ms.percentiles(),
                "waited_ms": self.telemetry.waited_ms.percentiles(),
                "batch_requests": self.telemetry.batch_requests.percentiles(),
            }
        )

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus' text form."""
        return web.Response(body=self.telemetry.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @property
    def _version(self) -> int | None:
        model = self.follower.model
        return model.version if model else None

    @property
    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        return "running" if self.follower.model else "waiting"


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
