"""The data path: partitions of `interactions` in, transactions out. The only place where the pipeline meets Kafka.

The log is the state: whatever goes wrong, the worker aborts, goes back to what is committed and rebuilds. A crash at
any point leaves every impression in the committed output exactly once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from stream.compiled import warm
from stream.config import Config
from stream.context import CLOSE, DRAIN, PAUSE, RESUME, WorkerContext
from stream.edges import Edges, open_edges
from stream.health import Health
from stream.kafka import BrokerUnavailable, TransactionAborted
from stream.partition import OwnedPartition, Source
from stream.records import PipelineOutput
from stream.roster import Roster
from stream.status import Mode, WorkerView

logger = logging.getLogger("stream.worker")

POLL_MS = 50
REOPEN_MS = 250
STOP_PATIENCE_MS = 5_000


class StopRequestedError(Exception):
    """The worker was told to stop and the broker gives no answer: what is open stays undecided, and is no loss."""


class StreamWorker:
    """One member of the group. `run` blocks until `stop`, or until something ends it; then make a new one."""

    def __init__(self, config: Config, context: WorkerContext) -> None:
        self._config = config
        self._context = context
        self._clock = context.clock
        self._counters = context.counters
        self._stop = threading.Event()
        self._stop_by_ms: int | None = None
        self._roster = Roster()
        self._health = Health()
        self._joined = False
        self._dying = False
        self._open_again_ms = 0
        self._dirty_since_ms: int | None = None
        self._source = Source(config.topics.interactions, "", 0)
        self._edges: Edges
        self.view = WorkerView(Mode.STARTING, at_ms=self._clock.monotonic_ms())
        """What `/status` shows; replaced as a whole, so any thread may read it."""

    def stop(self) -> None:
        """From any thread: finish the transaction, leave the group, return from `run`."""
        self._stop_by_ms = self._clock.monotonic_ms() + STOP_PATIENCE_MS
        self._stop.set()

    def run(self) -> None:
        """Until `stop`. Raises KafkaError (make a new worker) or RecoveryError (an operator must decide)."""
        warm.start()
        try:
            self._edges = open_edges(self._config, self._context, rebalance=self, on_wait=self._on_wait)
            self._joined = True
            self._health.mode = self._context.orders.mode
            while not self._stop.is_set():
                self._turn()
            self._finish()
        except StopRequestedError as error:
            self._dying = True
            logger.warning("stopped without an answer of the broker", extra={"reason": str(error)})
        except BaseException:
            self._dying = True
            raise
        finally:
            if self._joined:
                self._edges.close()

    def _turn(self) -> None:
        """One round. A crash between two steps loses nothing: only step 5 makes anything visible, all at once."""
        try:
            # 1. Orders from the control topic.
            self._obey()
            # 2. Partitions that were assigned: find where they go on.
            self._open_assigned()
            # 3. Records, through the pipeline, into batches.
            self._take_records()
            # 4. Silence: the end of a partition, proven by the broker, lets its watermark grow.
            self._let_age()
            # 5. Output, journal and offsets, in one transaction.
            self._commit_when_due()
        except TransactionAborted as error:
            self._start_over(error)
        self._publish()

    def _finish(self) -> None:
        """Commit what is there; what cannot be committed is made again by the next worker."""
        try:
            self._commit()
        except TransactionAborted as error:
            self._start_over(error)

    # Rebalance: called by the consumer from inside `poll` and `close`.

    def assigned(self, partitions: list[int]) -> None:
        """New partitions: they are opened by the next turn."""
        self._context.crash_point("assigned")
        logger.info("assigned", extra={"partitions": partitions})
        self._roster.assigned(partitions)

    def revoked(self, partitions: list[int]) -> None:
        """Commit what is there, or abort it, before somebody else begins."""
        self._context.crash_point("revoked")
        logger.info("revoked", extra={"partitions": partitions})
        if not self._dying:
            try:
                self._commit()
            except TransactionAborted as error:
                self._start_over(error)
        self._roster.forget(partitions)

    def lost(self, partitions: list[int]) -> None:
        """Somebody else may have them already: nothing of them may be committed."""
        logger.warning("lost", extra={"partitions": partitions})
        if not self._dying:
            self._start_over(TransactionAborted(f"partitions {partitions} were lost"))
        self._roster.forget(partitions)

    # The steps of a turn.

    def _obey(self) -> None:
        """Each order is noted where the next worker finds it, before it takes effect."""
        orders = self._context.orders
        while not self._context.commands.empty():
            command = self._context.commands.get()
            now_ms = self._clock.monotonic_ms()
            logger.info("control", extra={"action": command.action, "id": command.id})
            if command.action in (PAUSE, DRAIN):
                orders.mode = Mode.PAUSED if command.action == PAUSE else Mode.DRAINED
                self._health.mode = Mode.PAUSED if command.action == PAUSE else Mode.DRAINING
                self._edges.consumer.pause(self._roster.owned)
                try:
                    self._commit()
                finally:
                    self._health.mode = orders.mode
            elif command.action == RESUME:
                orders.mode = self._health.mode = Mode.RUNNING
                self._edges.consumer.resume(self._roster.owned)
            elif command.action == CLOSE:
                orders.close.came(command.id, partitions=self._roster.going_on, now_ms=now_ms)
            self._roster.break_silence(now_ms)

    def _open_assigned(self) -> None:
        if not self._roster.waiting or self._health.mode is not Mode.RUNNING:
            return
        if self._clock.monotonic_ms() < self._open_again_ms:
            return
        self._commit()
        began_ms = self._clock.monotonic_ms()
        try:
            taken = self._edges.takeover.take(
                self._edges.consumer, sorted(self._roster.waiting), on_wait=self._while_taking
            )
        except BrokerUnavailable as error:
            self._health.trouble(error)
            self._open_again_ms = self._clock.monotonic_ms() + REOPEN_MS
            return
        self._source = taken.source
        for partition in taken.partitions:
            self._adopt(partition)
        for reason in taken.later.values():
            self._health.trouble(reason)
        self._roster.postponed(taken.later, now_ms=self._clock.monotonic_ms())
        self._open_again_ms = self._clock.monotonic_ms() + REOPEN_MS
        for number, refusal in taken.refused.items():
            logger.error("partition stopped", extra={"partition": number, "reason": str(refusal)})
            self._health.last_error = str(refusal)
        self._roster.refuse(taken.refused)
        fields = {"partitions": len(taken.partitions), "ms": self._clock.monotonic_ms() - began_ms}
        logger.info("taken over", extra=fields)
        self._commit()

    def _adopt(self, partition: OwnedPartition) -> None:
        self._roster.opened(partition)
        self._edges.consumer.start(partition.number, offset=partition.pipeline.position)
        self._counters.rebuilds += partition.rebuilding
        self._counters.restores += partition.pipeline.position > partition.plan.start.offset
        plan = partition.plan
        offsets = {"start": plan.start.offset, "position": partition.pipeline.position, "resume": plan.resume}
        fields = {"partition": partition.number, **offsets, "seq": plan.seq, "note": plan.note}
        logger.info("partition opened", extra=fields)
        self._context.crash_point("opened")
        self._close_before_change(partition)
        now_ms = self._clock.monotonic_ms()
        self._context.orders.close.opened(partition.number, watermark_ms=plan.start.watermark_ms, now_ms=now_ms)
        partition.silence.broken(now_ms)

    def _take_records(self) -> None:
        polled = self._edges.consumer.poll(max_records=self._config.stream.max_poll_records, timeout_ms=POLL_MS)
        now_ms = self._clock.monotonic_ms()
        if polled.errors:
            self._counters.kafka_errors += len(polled.errors)
            hint = f"no broker answers at {self._config.kafka.bootstrap}; start one or set kafka.bootstrap"
            self._health.silent(BrokerUnavailable(f"{hint} ({polled.errors[-1]})"))
            self._roster.break_silence(now_ms)
        for block in polled.blocks:
            if (partition := self._roster.owned.get(block.partition)) is not None:
                partition.silence.broken(now_ms)
                self._emit(partition, partition.feed(block))
                self._close_before_change(partition)
        for number, end in polled.ends.items():
            if (partition := self._roster.owned.get(number)) is not None:
                partition.reached_end(end)
                self._close_before_change(partition)
        if polled.failed:
            self._commit()
            self._reopen(polled.failed)

    def _let_age(self) -> None:
        owned = self._roster.owned
        ends = self._edges.ageing.ask(owned, now_ms=self._clock.monotonic_ms())
        if ends is None or not ends.offsets:
            return
        self._health.broker_answers = True
        if self._health.mode is Mode.RUNNING:
            for partition, watermark_ms in self._edges.ageing.advances(ends, owned):
                if watermark_ms > partition.pipeline.watermark_ms:
                    self._emit(partition, partition.advance(watermark_ms))

    def _commit_when_due(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if not self._roster.dirty():
            self._dirty_since_ms = None
        elif self._dirty_since_ms is None:
            self._dirty_since_ms = now_ms
        elif now_ms - self._dirty_since_ms >= self._config.batch.max_wait_ms - POLL_MS:
            self._commit()

    # What they are made of.

    def _emit(self, partition: OwnedPartition, output: PipelineOutput) -> None:
        self._edges.transaction.add(partition, output, now_ms=self._clock.wall_ms())

    def _commit(self) -> None:
        """Everything that is new since the last commit. Raises TransactionAborted, Fenced."""
        if not (dirty := self._roster.dirty()):
            return
        done = self._edges.transaction.commit(
            dirty, source=self._source, now_ms=self._clock.wall_ms(), on_wait=self._on_wait
        )
        self._dirty_since_ms = None
        self._context.overrides.committed(dirty)
        self._counters.add(done.counters)
        self._counters.commits += 1
        self._health.broker_answers = True
        for event_times_ms in done.event_times_ms:
            self._context.ages.observe(event_times_ms, now_ms=self._clock.wall_ms())
        self._count_near_cache()

    def _close_before_change(self, partition: OwnedPartition) -> None:
        """Rebuilt under parameters that the operator changed: close every session, commit, go on under the new ones."""
        if not partition.must_close_all:
            return
        self._emit(partition, partition.advance(partition.pipeline.close_all_watermark_ms()))
        self._commit()
        self._edges.takeover.closed(partition)
        self._edges.consumer.start(partition.number, offset=partition.resume)

    def _count_near_cache(self) -> None:
        store, indexer = self._context.store, self._edges.indexer
        self._counters.near_hits, self._counters.near_misses = store.hits, store.misses
        self._counters.redis_wait_ms, self._counters.redis_refused = store.waits.waited_ms, store.waits.refused
        self._counters.redis_errors += (errors := indexer.take_errors())
        now_ms = self._clock.monotonic_ms()
        self._context.index_watch.saw(errors, reason=indexer.last_error, waits=store.waits, now_ms=now_ms)

    def _start_over(self, error: TransactionAborted) -> None:
        """An abort is not a crash: what was in the transaction is dropped here as well, and made again from the log.

        Every partition is opened anew: records of any of them may have been on their way when it happened.
        """
        self._counters.aborts += 1
        self._health.trouble(error)
        self._edges.transaction.abort(on_wait=self._on_wait)
        self._dirty_since_ms = None
        self._reopen(dict.fromkeys(self._roster.owned, error))

    def _reopen(self, failed: Mapping[int, Exception]) -> None:
        """Drop the state of these partitions; the next turns find where they go on."""
        for number in (numbers := self._roster.reopen(failed)):
            self._health.trouble(failed[number])
        self._edges.consumer.pause(numbers)
        self._open_again_ms = self._clock.monotonic_ms() + REOPEN_MS

    def _on_wait(self, message: str) -> None:
        """Called while the broker is waited for."""
        self._health.silent(BrokerUnavailable(message))
        self._publish()
        self._look_for_stop(message)

    def _while_taking(self, doing: str) -> None:
        self._context.crash_point(doing)
        self._look_for_stop(f"stopped while {doing}")

    def _look_for_stop(self, message: str) -> None:
        if self._stop_by_ms is not None and self._clock.monotonic_ms() > self._stop_by_ms:
            raise StopRequestedError(message)

    def _publish(self) -> None:
        member = self._joined and not self._dying and self._edges.consumer.group_metadata().generation >= 0
        self.view = self._health.view(self._roster, member=member, at_ms=self._clock.monotonic_ms())
