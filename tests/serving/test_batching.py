"""Requests that are scored together get what they would get alone; who waits too long, or too many, are told so."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from serving.batcher import BatchDone, Batcher
from serving.errors import ScoringError
from serving.model import ScoredBatch, ServedModel
from serving.requests import ScoreRequest
from serving.server import Server
from tests.serving.served_world import ITEMS, new_model, request, snapshot
from tests.serving.service import DEADLINE_S, server_config
from trainer.versions import TableShard, Version, VersionStore

BODY = msgspec.json.encode(request())


class GatedModel(ServedModel):
    """Scores when it is let; remembers what it was given together."""

    def __init__(self, version: Version) -> None:
        super().__init__(version)
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.sizes: list[int] = []

    def score_all(self, requests: Sequence[ScoreRequest], *, dedup: bool = True) -> ScoredBatch:
        self.sizes.append(len(requests))
        self.begun.set()
        assert self.gate.wait(DEADLINE_S)
        return super().score_all(requests, dedup=dedup)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VersionStore:
    """Versions 1 and 2; in version 3 every tag is without end."""
    made = VersionStore(str(tmp_path_factory.mktemp("versions")), keep=10)
    for seed in (1, 2):
        made.publish(snapshot(new_model(seed)))
    good = snapshot(new_model(3))
    shards = [
        TableShard(s.table, s.rows, s.dim, 0, 0, np.full_like(s.weights, np.inf)) if "tags" in s.table else s
        for s in good.shards
    ]
    made.publish(replace(good, shards=shards))
    return made


def asked(model: ServedModel, **features: Any) -> ScoreRequest:
    given = request()
    given["features"].update(features)
    return model.recipe.bodies.decode(msgspec.json.encode(given))


def several(model: ServedModel) -> list[ScoreRequest]:
    """Users and candidates of all kinds: shared, of their own, none at all."""
    more: list[dict[str, Any]] = [
        request(),
        {"features": {"user": "bob", "history": [1, 2]}, "candidates": [{"item": 5, "tags": ["news"]}]},
        {"features": {"user": "bob"}, "candidates": []},
        {"candidates": [{"user": name, "item": ITEMS[0]["item_id"], "age": 20.0} for name in ("ada", "eve", "eve")]},
        {"features": {"user": "ada", "item": 7}, "candidates": [{}, {}, {"seen": [1, 2, 3]}]},
    ]
    return [model.recipe.bodies.decode(msgspec.json.encode(each)) for each in more]


@pytest.mark.parametrize("dedup", [True, False])
def test_together_is_as_alone(store: VersionStore, dedup: bool) -> None:
    model = ServedModel(store.load(1))
    requests = several(model)
    together = model.score_all(requests, dedup=dedup)
    alone = [model.score_all([each]) for each in requests]
    assert [scores.shape for scores in together.scores if isinstance(scores, np.ndarray)] == [
        (2, each.num_candidates) for each in requests
    ]
    for scores, batch in zip(together.scores, alone, strict=True):
        np.testing.assert_allclose(scores, batch.scores[0], rtol=0, atol=1e-6)  # type: ignore[arg-type]
    assert together.rows == sum(batch.rows for batch in alone) == 3 * 11
    if dedup:
        assert together.distinct < sum(batch.distinct for batch in alone), "requests share rows"
    else:
        assert together.distinct == together.rows


@asynccontextmanager
async def batching(**options: Any) -> AsyncIterator[tuple[Batcher, list[BatchDone]]]:
    done: list[BatchDone] = []
    given = {"threads": 1, "max_candidates": 100, "delay_s": 0.0, "dedup": True} | options
    batcher = Batcher(**given, done=done.append)
    batcher.start()
    try:
        yield batcher, done
    finally:
        await asyncio.to_thread(batcher.stop)


async def begun(model: GatedModel) -> None:
    assert await asyncio.to_thread(model.begun.wait, DEADLINE_S)


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the event loop run until it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)


def test_what_waits_is_scored_together_version_by_version(store: VersionStore) -> None:
    """While the first is scored, others wait: up to 12 candidates of one version are one batch, in order."""

    async def run() -> None:
        one, two = GatedModel(store.load(1)), GatedModel(store.load(2))
        async with batching(max_candidates=12) as (batcher, done):
            first = asyncio.ensure_future(batcher.score(asked(one), one))
            await begun(one)
            models = [one, one, one, one, two, two, one]
            rest = [asyncio.ensure_future(batcher.score(asked(m, age=10.0 + i), m)) for i, m in enumerate(models)]
            await asyncio.sleep(0)
            one.gate.set()
            two.gate.set()
            answers = await asyncio.gather(first, *rest)
        assert [answer.version for answer in answers] == [1, 1, 1, 1, 1, 2, 2, 1]
        assert (one.sizes, two.sizes) == ([1, 3, 1, 1], [2])
        assert [batch.requests for batch in done] == [1, 3, 1, 2, 1]
        for i, (model, answer) in enumerate(zip(models, answers[1:], strict=True)):
            [alone] = model.score_all([asked(model, age=10.0 + i)]).scores
            np.testing.assert_allclose(answer.scores, alone, rtol=0, atol=1e-6)  # type: ignore[arg-type]

    asyncio.run(run())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_request_may_wait_for_others(store: VersionStore, threads: int) -> None:
    """With a delay that never ends, a batch begins as soon as it is full."""

    async def run() -> None:
        model = ServedModel(store.load(1))
        async with batching(max_candidates=8, delay_s=1e6, threads=threads) as (batcher, done):
            await asyncio.gather(*(batcher.score(asked(model), model) for _ in range(6)))
        assert [batch.requests for batch in done] == [2, 2, 2]
        assert all(len(batch.waited_s) == 2 for batch in done)

    asyncio.run(run())


def test_no_model_is_kept_after_its_requests(store: VersionStore) -> None:
    """Its weights are changed into those of a later version when nobody holds it any more."""

    async def run() -> None:
        model = ServedModel(store.load(1))
        held = weakref.ref(model)
        async with batching(threads=2) as (batcher, _):
            await batcher.score(asked(model), model)
            del model
            await eventually(lambda: held() is None)

    asyncio.run(run())


def test_one_request_without_a_score_fails_no_other(store: VersionStore) -> None:
    async def run() -> list[Any]:
        model = GatedModel(store.load(3))
        async with batching() as (batcher, _):
            first = asyncio.ensure_future(batcher.score(asked(model), model))
            await begun(model)
            rest = [asyncio.ensure_future(batcher.score(each, model)) for each in several(model)]
            await asyncio.sleep(0)
            model.gate.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

    failed = [isinstance(answer, ScoringError) for answer in asyncio.run(run())]
    assert failed == [True, True, True, False, False, False], "only those with tags"


class Breaking(GatedModel):
    """Cannot do anything with two candidates."""

    def score_all(self, requests: Sequence[ScoreRequest], *, dedup: bool = True) -> ScoredBatch:
        batch = super().score_all(requests, dedup=dedup)
        if any(each.num_candidates == 1 for each in requests):
            raise RuntimeError("no memory")
        return batch


def test_a_batch_that_fails_is_tried_one_by_one(store: VersionStore) -> None:
    async def run() -> list[Any]:
        model = Breaking(store.load(1))
        async with batching() as (batcher, _):
            first = asyncio.ensure_future(batcher.score(asked(model), model))
            await begun(model)
            rest = [asyncio.ensure_future(batcher.score(each, model)) for each in several(model)]
            await asyncio.sleep(0)
            model.gate.set()
            answers = await asyncio.gather(first, *rest, return_exceptions=True)
            assert model.sizes == [1, 5, 1, 1, 1, 1, 1]
            return answers

    answers = asyncio.run(run())
    assert [isinstance(answer, Exception) for answer in answers] == [False, False, True, False, False, False]
    assert str(answers[2]) == "version 1: RuntimeError: no memory"


@asynccontextmanager
async def serving(
    folder: Path, model: ServedModel, **options: Any
) -> AsyncIterator[tuple[Server, TestClient[Any, Any]]]:
    server = Server(server_config(folder, threads=1, **options))
    server.follower.model = model
    server.intake.start()
    async with TestClient(TestServer(server.application())) as client:
        try:
            yield server, client
        finally:
            await asyncio.to_thread(server.stop)


async def post(client: TestClient[Any, Any], body: bytes = BODY) -> tuple[int, dict[str, str], Any]:
    async with client.post("/score", data=body) as answer:
        return answer.status, dict(answer.headers), await answer.json()


def test_beyond_the_limit_a_request_is_sent_away(store: VersionStore, tmp_path: Path) -> None:
    async def run() -> None:
        model = GatedModel(store.load(1))
        async with serving(tmp_path, model, max_waiting=2) as (server, client):
            taken = [asyncio.ensure_future(post(client)) for _ in range(2)]
            await begun(model)
            await eventually(lambda: server.intake.under_way == 2)
            code, headers, body = await post(client)
            assert (code, headers["Retry-After"]) == (503, "1")
            assert "serving.max_waiting" in body["error"]
            model.gate.set()
            assert [code for code, _, _ in await asyncio.gather(*taken)] == [200, 200]
            assert (await post(client))[0] == 200
            assert b'recd_serving_requests_total{outcome="overloaded"} 1.0' in server.telemetry.exposition()

    asyncio.run(run())


def test_a_deadline_ends_the_wait_and_leaves_no_work_behind(store: VersionStore, tmp_path: Path) -> None:
    async def run() -> None:
        model = GatedModel(store.load(1))
        async with serving(tmp_path, model, deadline_ms=200) as (server, client):
            first = asyncio.ensure_future(post(client))
            await begun(model)
            answers = await asyncio.gather(first, *(post(client) for _ in range(3)))
            assert [(code, body) for code, _, body in answers] == [(504, {"error": "no scores within 200 ms"})] * 4
            assert server.intake.under_way == server.intake.waiting == 0
            model.gate.set()
        assert model.sizes == [1], "those that waited behind the first were not scored any more"

    asyncio.run(run())


def test_a_body_beyond_the_limit_is_refused_packed_or_not(store: VersionStore, tmp_path: Path) -> None:
    async def run() -> None:
        model = ServedModel(store.load(1))
        async with serving(tmp_path, model, max_request_bytes=len(BODY)) as (_, client):
            assert (await post(client))[0] == 200
            code, _, body = await post(client, BODY + b" ")
            assert code == 413
            assert f"larger than {len(BODY)} bytes (serving.max_request_bytes)" in body["error"]
            async with client.post("/score", data=b" " * 100 * len(BODY), compress="gzip") as answer:
                assert answer.status == 413

    asyncio.run(run())


def test_a_body_read_aside_is_scored_the_same(
    store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        model = ServedModel(store.load(1))
        async with serving(tmp_path, model) as (_, client):
            inline = await post(client)
            monkeypatch.setattr("serving.intake.READ_ASIDE_BYTES", 0)
            aside = await post(client)
            assert (inline[0], inline[2]) == (aside[0], aside[2])
            assert (await post(client, b'{"candidates": 5}'))[0] == 400

    asyncio.run(run())
