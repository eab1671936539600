"""Requests that wait are scored together: one forward pass on a thread of its own, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dedup_cache.arrays import Float32
from serving.errors import ScoringError
from serving.model import ScoredBatch, ServedModel
from serving.requests import ScoreRequest

logger = logging.getLogger("serving")


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The scores of one request, float32[labels, K], all by one version."""

    version: int
    labels: tuple[str, ...]
    scores: Float32


@dataclass(frozen=True, slots=True)
class BatchDone:
    """What became of the requests that were scored together, for the counters."""

    requests: int
    candidates: int
    rows: int
    distinct: int
    elapsed_s: float
    waited_s: list[float]
    """Of each request, from its arrival in the queue to the start of the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    request: ScoreRequest
    model: ServedModel
    """In service when the request began; it stays with it to the end."""
    future: asyncio.Future[Answer]
    since_s: float = field(default_factory=time.perf_counter)


class Batcher:
    """A queue of requests, and threads that score what waits in it.

    A thread that is free takes the first request and those behind it, up to `max_candidates` candidates, as long as
    they began with the same version. It waits for more, `delay_s` at most, only where less than that waits. A request
    whose future is done (its deadline has passed) is left out. `done` is called on the event loop.
    """

    def __init__(
        self, *, threads: int, max_candidates: int, delay_s: float, dedup: bool, done: Callable[[BatchDone], object]
    ) -> None:
        self._max_candidates = max_candidates
        self._delay_s = delay_s
        self._dedup = dedup
        self._done = done
        self._queue: deque[_Work] = deque()
        self._candidates = 0
        self._changed = threading.Condition()
        self._ended = False
        self._threads = [threading.Thread(target=self._run, name=f"score-{i}", daemon=True) for i in range(threads)]

    def start(self) -> None:
        """Begin to score."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Score what waits, then end the threads."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def score(self, request: ScoreRequest, model: ServedModel) -> Answer:
        """The scores by `model`; ScoringError where they are no numbers. Cancelled, it leaves the queue."""
        work = _Work(request, model, asyncio.get_running_loop().create_future())
        with self._changed:
            self._queue.append(work)
            self._candidates += request.num_candidates
            self._changed.notify_all()
        try:
            return await work.future
        finally:
            if work.future.cancelled():
                self._forget(work)

    def _forget(self, work: _Work) -> None:
        with self._changed, suppress(ValueError):
            self._queue.remove(work)
            self._candidates -= work.request.num_candidates

    def _run(self) -> None:
        while works := self._next():
            try:
                self._score(works)
            except Exception:
                # Nobody foresaw it: the thread must live, and those who wait must hear of it.
                logger.exception("batch failed")
                _tell(works, [ScoringError("the scores could not be delivered")] * len(works))
            # While it waits it holds no model: a version's weights are used again when nobody has it any more.
            del works

    def _next(self) -> list[_Work]:
        """The next requests to score together; nothing at the end."""
        works: list[_Work] = []
        candidates = 0
        with self._changed:
            while not self._queue and not self._ended:
                self._changed.wait_for(lambda: self._queue or self._ended)
                self._wait_for_more()
            while self._queue and (not works or self._fits(works[0], candidates)):
                work = self._queue.popleft()
                candidates += work.request.num_candidates
                works.append(work)
            self._candidates -= candidates
        return works

    def _wait_for_more(self) -> None:
        """Until the first request is `delay_s` old, a full batch waits, or another thread took what there was."""
        if self._delay_s and self._queue:
            left_s = self._queue[0].since_s + self._delay_s - time.perf_counter()
            self._changed.wait_for(
                lambda: self._ended or not self._queue or self._candidates >= self._max_candidates,
                timeout=max(0.0, left_s),
            )

    def _fits(self, first: _Work, candidates: int) -> bool:
        following = self._queue[0]
        return following.model is first.model and candidates + following.request.num_candidates <= self._max_candidates

    def _score(self, works: list[_Work]) -> None:
        works = [work for work in works if not work.future.done()]
        if not works:
            return
        begin_s = time.perf_counter()
        model, requests = works[0].model, [work.request for work in works]
        batches = self._batches(model, requests)
        results: list[Answer | Exception] = []
        for batch in batches:
            if isinstance(batch, Exception):
                results.append(batch)
                continue
            for scores in batch.scores:
                error = isinstance(scores, ScoringError)
                results.append(scores if error else Answer(batch.version, batch.labels, scores))  # type: ignore[arg-type]
        scored = [batch for batch in batches if isinstance(batch, ScoredBatch)]
        done = BatchDone(
            requests=len(works),
            candidates=sum(r.scores.shape[1] for r in results if isinstance(r, Answer)),
            rows=sum(batch.rows for batch in scored),
            distinct=sum(batch.distinct for batch in scored),
            elapsed_s=time.perf_counter() - begin_s,
            waited_s=[begin_s - work.since_s for work in works],
        )
        _tell(works, results, then=lambda: self._done(done))

    def _batches(self, model: ServedModel, requests: list[ScoreRequest]) -> Sequence[ScoredBatch | Exception]:
        """All in one pass; where that fails, each by itself, so that one request never fails another."""
        try:
            return [model.score_all(requests, dedup=self._dedup)]
        except Exception as error:
            if len(requests) == 1:
                logger.exception("request failed")
                return [ScoringError(f"version {model.version}: {type(error).__name__}: {error}")]
        return [self._batches(model, [request])[0] for request in requests]


def _tell(works: Sequence[_Work], results: Sequence[Answer | Exception], then: Callable[[], object] = int) -> None:
    """Deliver the results on the event loop, in one turn of it."""

    def deliver() -> None:
        for work, result in zip(works, results, strict=True):
            if work.future.done():
                continue
            if isinstance(result, Exception):
                work.future.set_exception(result)
            else:
                work.future.set_result(result)
        then()

    try:
        works[0].future.get_loop().call_soon_threadsafe(deliver)
    except RuntimeError:  # the loop has ended, and with it everybody who waited
        logger.info("nobody waits any more", extra={"requests": len(works)})
