"""What every request for scores goes through, whatever its protocol: admission, body, version, deadline, counting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from serving.batcher import Answer, Batcher
from serving.errors import DeadlineError, NotReadyError, OverloadedError, RequestError, ServingError, TooLargeError
from serving.follower import Follower
from serving.model import ServedModel
from serving.requests import ScoreRequest
from serving.telemetry import Telemetry
from serving.tensors import Inference
from stream.config import ServingConfig

READ_ASIDE_BYTES = 64 << 10
"""A body that is longer is read on a thread: on the event loop it would hold up the others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body that was read: the request, and what its protocol says of time and answer."""

    request: ScoreRequest
    timeout_s: float | None = None
    inference: Inference | None = None


Read = Callable[[bytes, ServedModel], Asked]


class Intake:
    """Takes requests in as long as fewer than `max_waiting` are under way, and sees each to its end.

    A request is read and scored by the version that is in service when its body is there. Whatever goes wrong is a
    ServingError with the status to answer, and counted.
    """

    def __init__(self, config: ServingConfig, *, follower: Follower, telemetry: Telemetry) -> None:
        self._config = config
        self._follower = follower
        self._telemetry = telemetry
        self._batcher = Batcher(
            threads=config.threads,
            max_candidates=config.batch_candidates,
            delay_s=config.batch_delay_ms / 1000,
            dedup=config.dedup,
            done=telemetry.batch_scored,
        )
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._idle = asyncio.Event()
        self._idle.set()
        self.under_way = 0
        """Requests that were taken in and not answered yet."""

    @property
    def waiting(self) -> int:
        """Requests that no thread has begun with."""
        return self._batcher.waiting

    def start(self) -> None:
        """Begin to score."""
        self._batcher.start()

    def stop(self) -> None:
        """End the threads; nothing may be under way any more."""
        self._batcher.stop()
        self._readers.shutdown()

    async def drained(self, *, timeout_s: float) -> None:
        """Wait until no request is under way, one whose body is still arriving included."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def scored(self, request: web.Request, read: Read) -> tuple[Asked, Answer]:
        """The scores that a request asks for; `read` makes sense of its body."""
        try:
            if self.under_way >= self._config.max_waiting:
                text = (
                    f"{self.under_way} requests are under way, as many as serving.max_waiting allows: come back later"
                )
                raise OverloadedError(text)
            return await self._counted(request, read)
        except ServingError as error:
            self._telemetry.failed(error.outcome)
            raise
        except asyncio.CancelledError:
            self._telemetry.failed("cancelled")
            raise
        except Exception:
            self._telemetry.failed("error")
            raise

    async def _counted(self, request: web.Request, read: Read) -> tuple[Asked, Answer]:
        self.under_way += 1
        self._idle.clear()
        try:
            return await self._in_time(request, read)
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def _in_time(self, request: web.Request, read: Read) -> tuple[Asked, Answer]:
        allowed_s = self._config.deadline_ms / 1000
        arrived_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(allowed_s) as deadline:
                body = await self._body(request)
                begin = time.perf_counter()
                model = self._follower.model
                if model is None:
                    text = "no version is in service yet: is the trainer running, and trainer.versions_url right?"
                    raise NotReadyError(text)
                asked = await self._read(body, model, read)
                if asked.timeout_s is not None and asked.timeout_s < allowed_s:
                    allowed_s = asked.timeout_s
                    deadline.reschedule(arrived_s + allowed_s)
                answer = await self._batcher.score(asked.request, model)
        except TimeoutError:
            raise DeadlineError(f"no scores within {1000 * allowed_s:g} ms") from None
        self._telemetry.scored(answer.scores.shape[1], elapsed_s=time.perf_counter() - begin)
        return asked, answer

    async def _body(self, request: web.Request) -> bytes:
        """At most `max_request_bytes`, unpacked."""
        most = self._config.max_request_bytes
        told = f"the body is larger than {most} bytes (serving.max_request_bytes)"
        if (request.content_length or 0) > most:
            raise TooLargeError(told)
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise TooLargeError(told) from None
        except (web.RequestPayloadError, OSError) as error:
            raise RequestError(f"the body cannot be read: {error}") from None

    async def _read(self, body: bytes, model: ServedModel, read: Read) -> Asked:
        if len(body) <= READ_ASIDE_BYTES:
            return read(body, model)
        return await asyncio.get_running_loop().run_in_executor(self._readers, read, body, model)
