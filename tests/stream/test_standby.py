"""What a worker remembers without a broker: a member without partitions, and orders that outlive the worker."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dedup_cache import NearCache
from stream.ageing import CLOSE_REACHES_MS, Ageing, CloseOrder
from stream.config import Config
from stream.context import Clock, Command, WorkerContext
from stream.kafka import EndProbe, Ends, Fenced, GroupMetadata, Polled
from stream.status import Mode
from stream.worker import StreamWorker


class CalmProbe:
    """A broker that answers every question at once."""

    def __init__(self) -> None:
        self._ends: Ends | None = None

    def ask(self, partitions: Iterable[int], *, now_ms: int) -> None:
        if asked := list(partitions):
            self._ends = Ends(now_ms, dict.fromkeys(asked, 0))

    def answer(self) -> Ends | None:
        ends, self._ends = self._ends, None
        return ends


class EmptyConsumer:
    """A member of the group that is given nothing; its first poll tells of a trouble."""

    def __init__(self) -> None:
        self._errors = ["1/1 brokers are down"]

    def poll(self, **_: int) -> Polled:
        errors, self._errors = self._errors, []
        return Polled([], {}, errors, {})

    def group_metadata(self) -> GroupMetadata:
        return GroupMetadata(5, b"")

    def pause(self, partitions: Iterable[int]) -> None:
        """Nothing to hold back."""


def context_at(now_ms: list[int]) -> WorkerContext:
    clock = Clock(lambda: now_ms[0], lambda: now_ms[0])
    return WorkerContext(transactional_id="w", clock=clock, store=cast("NearCache", None))


def joined_worker(context: WorkerContext) -> StreamWorker:
    worker = StreamWorker(Config(), context)
    edges: Any = SimpleNamespace(consumer=EmptyConsumer(), ageing=Ageing(cast("EndProbe", CalmProbe()), 250))
    worker._edges = edges
    worker._joined = True
    worker._health.mode = Mode.RUNNING
    return worker


def test_a_member_without_partitions_is_ready_again_after_a_trouble() -> None:
    now_ms = [0]
    worker = joined_worker(context_at(now_ms))
    worker._take_records()
    worker._publish()
    assert (worker.view.state, worker.view.ready) == ("waiting_for_broker", False)
    for now_ms[0] in range(1_000, 3_000, 1_000):
        worker._turn()
    assert (worker.view.state, worker.view.ready) == ("running", True)


def replaced(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> StreamWorker:
    """The next worker of the same process, after its first turn."""
    edges: Any = SimpleNamespace(
        consumer=EmptyConsumer(), ageing=Ageing(cast("EndProbe", CalmProbe()), 250, context.orders.close)
    )
    edges.close = edges.consumer.pause = lambda *_: None
    monkeypatch.setattr("stream.worker.open_edges", lambda *_, **__: edges)
    worker = StreamWorker(Config(), context)
    worker.stop()
    worker.run()
    return worker


@pytest.mark.parametrize(
    ("action", "mode"), [("pause", Mode.PAUSED), ("drain", Mode.DRAINED), ("resume", Mode.RUNNING)]
)
def test_the_next_worker_obeys_what_was_ordered(action: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_at([0])
    first = joined_worker(context)
    first._edges.consumer.resume = lambda _: None  # type: ignore[method-assign]
    context.commands.put(Command(action))
    first._turn()
    assert replaced(context, monkeypatch)._health.mode is mode


def test_an_order_holds_although_its_commit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_at([0])
    first = joined_worker(context)

    def fenced() -> None:
        raise Fenced("another process took over")

    monkeypatch.setattr(first, "_commit", fenced)
    context.commands.put(Command("pause"))
    with pytest.raises(Fenced):
        first._turn()
    assert replaced(context, monkeypatch)._health.mode is Mode.PAUSED


def test_a_close_reaches_partitions_that_are_waiting() -> None:
    now_ms = [0]
    context = context_at(now_ms)
    worker = joined_worker(context)
    worker._roster.assigned([3])
    worker._open_again_ms = 10**9
    context.commands.put(Command("close", "c1"))
    worker._turn()
    now_ms[0] = 10 * CLOSE_REACHES_MS
    order = context.orders.close
    order.opened(3, watermark_ms=0, now_ms=now_ms[0])
    assert order.owed_by(3, asked_ms=now_ms[0])


def test_a_partition_closes_once_per_order() -> None:
    order = CloseOrder()
    order.came("c1", partitions=[0], now_ms=1_000)
    assert not order.owed_by(0, asked_ms=999), "an answer older than the order"
    assert order.owed_by(0, asked_ms=1_000)
    order.done(0, watermark_ms=5_000)
    order.opened(0, watermark_ms=5_000, now_ms=1_100)
    assert not order.owed_by(0, asked_ms=2_000), "its close is committed"
    order.opened(1, watermark_ms=0, now_ms=1_100)
    assert order.owed_by(1, asked_ms=2_000), "a partition that comes soon after the order"
    order.opened(2, watermark_ms=0, now_ms=1_000 + CLOSE_REACHES_MS)
    assert not order.owed_by(2, asked_ms=40_000)
    order.came("c2", partitions=[0], now_ms=50_000)
    assert order.owed_by(0, asked_ms=50_000), "another order"


def test_a_close_that_was_not_committed_is_owed_however_long_it_takes() -> None:
    order = CloseOrder()
    order.came("c1", partitions=[0], now_ms=1_000)
    order.done(0, watermark_ms=5_000)
    order.opened(0, watermark_ms=4_000, now_ms=1_000 + 10 * CLOSE_REACHES_MS)
    assert order.owed_by(0, asked_ms=1_000 + 10 * CLOSE_REACHES_MS)
