"""What one server process holds and answers: HTTP in front, scoring in threads, the follower of versions beside."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec
import torch
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from serving.control import ControlListener
from serving.errors import NotReadyError, RequestError, ScoringError
from serving.follower import Follower
from serving.model import Scored
from serving.telemetry import Telemetry
from stream.config import Config
from trainer.versions import VersionError, VersionStore

logger = logging.getLogger("serving")

MAX_REQUEST_BYTES = 16 << 20


class Reload(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /reload`: a version to stay at, or null to follow the newest."""

    version: int | None


class Server:
    """All that one server process holds. Scores with one version from a request's start to its end.

    Requests are scored at the same time by as many threads as `serving.threads` says, each with one torch thread of
    its own, off the event loop.
    """

    def __init__(self, config: Config) -> None:
        """VersionError where the place of the versions cannot be opened."""
        self.telemetry = Telemetry()
        self._stopping = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        store = VersionStore(config.trainer.versions_url, keep=config.trainer.keep_versions)
        self.follower = Follower(
            store, poll_ms=config.serving.poll_ms, telemetry=self.telemetry, clock_ms=lambda: time.time_ns() // 10**6
        )
        self.control = ControlListener(config, follower=self.follower, telemetry=self.telemetry)
        self._pool = ThreadPoolExecutor(config.serving.threads, thread_name_prefix="score")

    def start(self) -> None:
        """Begin to follow versions and to listen."""
        torch.set_num_threads(1)
        self.follower.start()
        self.control.start()

    def announce_stop(self) -> None:
        """No longer ready, so that a load balancer sends no more; requests are still answered."""
        self._stopping = True

    def stop(self) -> None:
        """End the threads; the HTTP side must have ended before."""
        self.control.stop()
        self.follower.stop()
        self._pool.shutdown()

    def application(self) -> web.Application:
        """The HTTP interface."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
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
        return app

    async def drain(self, *, timeout_s: float) -> None:
        """Wait until no request is under way, one whose body is still arriving included."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def score(self, request: web.Request) -> web.Response:
        """400 for a body that does not fit, 503 while nothing is in service."""
        self._under_way += 1
        self._idle.clear()
        try:
            answer = await self._answer(request)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        if self._stopping:
            answer.force_close()
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            body = await request.read()
            begin = time.perf_counter()
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._score, body)
        except NotReadyError as error:
            self.telemetry.failed("not_ready")
            return _json({"error": str(error)}, status=503)
        except RequestError as error:
            self.telemetry.failed("invalid")
            return _json({"error": str(error)}, status=400)
        except web.HTTPRequestEntityTooLarge:
            self.telemetry.failed("invalid")
            return _json({"error": f"the body is larger than {MAX_REQUEST_BYTES} bytes"}, status=413)
        except ScoringError as error:
            self.telemetry.failed("error")
            return _json({"error": str(error)}, status=500)
        except Exception:
            self.telemetry.failed("error")
            raise
        self.telemetry.scored(answer, elapsed_s=time.perf_counter() - begin)
        return _json({"version": answer.version, "scores": answer.scores})

    def _score(self, body: bytes) -> Scored:
        model = self.follower.model
        if model is None:
            raise NotReadyError("no version is in service yet: is the trainer running, and trainer.versions_url right?")
        return model.score(body)

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
                "stream_time_ms": model.manifest.stream_time_ms if model else None,
                "counters": self.telemetry.counters(),
                "weights_to_server_ms": self.telemetry.weights_to_server_ms.percentiles(),
                "latency_ms": self.telemetry.latency_ms.percentiles(),
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
