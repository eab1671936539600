"""The transactional producer: what one transaction holds becomes visible at once, or never."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import confluent_kafka as ck

from stream.config import KafkaConfig
from stream.kafka.client import MAX_RECORD_BYTES, connected, settings
from stream.kafka.errors import BrokerUnavailable, DeliveryFailed, Fenced, TransactionAborted, is_unavailable, named
from stream.kafka.group import Committed, GroupMetadata
from stream.kafka.writer import Headers

ATTEMPT_S = 1.0
HUNG_AFTER_S = 2.0
"""How much longer than a transaction may last a call is waited for."""
SAME_ID = "another process uses the same stream.worker_id"
OnWait = Callable[[str], object]


class TransactionalWriter:
    """One producer with one transactional id; a second one with the same id fences the first."""

    def __init__(
        self, kafka: KafkaConfig, *, transactional_id: str, timeout_ms: int, compression: str, max_batch_bytes: int
    ) -> None:
        self._kafka = kafka
        self._in_transaction = False
        self._abandoned = False
        self._hung_after_s = timeout_ms / 1000 + HUNG_AFTER_S
        required = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": timeout_ms,
            "compression.type": compression,
            "linger.ms": 5,
            "message.max.bytes": MAX_RECORD_BYTES,
            "batch.size": max_batch_bytes,
        }
        self._producer = connected(ck.Producer, kafka, settings(kafka, required=required))

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._in_transaction

    def init(self, *, on_wait: OnWait) -> None:
        """Fence and abort what an earlier process with this id left; waits for the broker.

        `on_wait` hears of every attempt that failed and may raise to give up. Raises Fenced, KafkaError.
        """
        self._insist(lambda: self._producer.init_transactions(ATTEMPT_S), doing="starting", on_wait=on_wait)

    def begin(self) -> None:
        """Open a transaction."""
        self._insist(self._producer.begin_transaction, doing="beginning", on_wait=_never)
        self._in_transaction = True

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None,
        headers: Headers = (),
        on_offset: Callable[[int], None] | None = None,
    ) -> None:
        """Add one record; without `partition` its key decides. `on_offset` hears where it was written.

        Raises TransactionAborted, Fenced.
        """

        place = -1 if partition is None else partition
        more: dict[str, Any] = {} if on_offset is None else {"on_delivery": _heard(on_offset)}
        while True:
            try:
                self._producer.produce(topic, value, key, place, headers=list(headers) or None, **more)
            except BufferError:
                self._producer.poll(0.05)
            except ck.KafkaException as error:
                named_error = named(error, doing=f"sending to '{topic}'", kafka=self._kafka)
                raise _abortable(named_error) from None
            else:
                return

    def send_offsets(
        self, topic: str, offsets: Mapping[int, Committed], *, metadata: GroupMetadata, on_wait: OnWait
    ) -> None:
        """Add the source offsets. Raises TransactionAborted (the group moved on), Fenced."""
        positions = [
            ck.TopicPartition(topic, p, committed.offset, metadata=committed.metadata)
            for p, committed in offsets.items()
        ]

        def send() -> None:
            self._producer.send_offsets_to_transaction(positions, metadata.handle, ATTEMPT_S)

        silence = (
            f"no broker answers at {self._kafka.bootstrap}; start one or set kafka.bootstrap "
            "(adding the source offsets to a transaction)"
        )

        def guarded() -> None:
            if not returns_within(send, seconds=self._hung_after_s, on_wait=lambda: on_wait(silence)):
                self._abandoned = True
                raise Fenced(
                    f"adding the source offsets to a transaction: no answer in {self._hung_after_s:.0f} s although the "
                    f"transaction is over by now (librdkafka #5456), or {SAME_ID}: a new producer takes its place"
                )

        self._insist(guarded, doing="adding the source offsets to", on_wait=on_wait)

    def commit(self, *, on_wait: OnWait) -> None:
        """Commit, and come back only when the outcome is known.

        Raises TransactionAborted (nothing was committed, `abort` must follow) or Fenced (the outcome stands in the
        log: start anew and read it there).
        """
        self._insist(lambda: self._producer.commit_transaction(ATTEMPT_S), doing="committing", on_wait=on_wait)
        self._in_transaction = False
        self._producer.poll(0)

    def abort(self, *, on_wait: OnWait) -> None:
        """Abort what is open. Raises Fenced, also where only a new producer can: its `init` aborts what this one left.

        After an outage librdkafka's connection to the coordinator may stay down for good (like #3779; seen on 2.16: an
        abort that timed out every ten seconds, on a broker that answered everything else).
        """
        give_up_s = time.monotonic() + self._hung_after_s

        def waiting(message: str) -> None:
            on_wait(message)
            if time.monotonic() > give_up_s and self._broker_answers():
                self._abandoned = True
                raise Fenced(
                    f"aborting a transaction: not done in {self._hung_after_s:.0f} s although the broker answers: "
                    "a new producer takes its place"
                )

        if self._in_transaction:
            self._producer.purge()
            self._insist(lambda: self._producer.abort_transaction(ATTEMPT_S), doing="aborting", on_wait=waiting)
            self._in_transaction = False
            self._producer.poll(0)

    def close(self) -> None:
        """Release the connection; what is open stays open until it times out or another process fences it."""
        if self._abandoned:
            return
        with suppress(ck.KafkaException):  # a fenced producer has nothing to lose
            self._producer.purge()
            self._producer.flush(0.5)

    def _broker_answers(self) -> bool:
        try:
            self._producer.list_topics(timeout=ATTEMPT_S)
        except ck.KafkaException:
            return False
        return True

    def _insist(self, call: Callable[[], object], *, doing: str, on_wait: OnWait) -> None:
        while True:
            try:
                call()
            except ck.KafkaException as error:
                cause = error.args[0]
                named_error = named(error, doing=f"{doing} a transaction", kafka=self._kafka)
                if cause.txn_requires_abort():
                    raise _abortable(named_error) from None
                if cause.fatal() or not (cause.retriable() or is_unavailable(cause)):
                    raise _fatal(named_error) from None
                on_wait(str(named_error))
            else:
                return


def _heard(on_offset: Callable[[int], None]) -> Callable[[ck.KafkaError | None, ck.Message], None]:
    def delivered(error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is None and (offset := message.offset()) is not None:
            on_offset(offset)

    return delivered


def returns_within(call: Callable[[], object], *, seconds: float, on_wait: Callable[[], object]) -> bool:
    """Whether `call` returned in time; raises what it raises. A call that did not is left alone in its thread."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, name="send-offsets", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(1.0)
        if thread.is_alive():
            on_wait()
    if outcome and outcome[0] is not None:
        raise outcome[0]
    return bool(outcome)


def _never(message: str) -> None:
    raise BrokerUnavailable(message)


def _abortable(error: Exception) -> Exception:
    if isinstance(error, Fenced):
        return error
    return error if isinstance(error, (TransactionAborted, DeliveryFailed)) else TransactionAborted(str(error))


def _fatal(error: Exception) -> Exception:
    return error if isinstance(error, Fenced) else Fenced(f"{error}; perhaps {SAME_ID}")
