"""Rows that a batch names by reference: from memory, then Redis, then the `values` topic."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from dedup_cache import (
    Batch,
    BatchSchema,
    Group,
    GroupSchema,
    ReferenceMismatch,
    RowError,
    StoreUnavailable,
    ValueKey,
    check_bits,
    decode_rows,
    fingerprints,
    resolve,
)
from dedup_cache.arrays import Int64, UInt32
from stream.config import KafkaConfig
from stream.kafka import BrokerUnavailable, Reader, begin_offsets, end_offsets

MEMORY_BYTES = 256 << 20
RETRY_S = 0.25
STORE_PAUSES_S = (0.01, 0.05)
"""A worker tells the store of a value right after the commit that shows it: the store may be a moment behind."""


class UnresolvedReference(Exception):
    """A batch names a row that is nowhere, or another one stands in its place."""


class Stopping(Exception):
    """Told to stop before the rows were found; says nothing about the batch."""


class Store(Protocol):
    """Where values are fetched first: RedisStore, MemoryStore."""

    def fetch(self, group: str, ids: Int64, checks: UInt32, *, generation: str | None = None) -> list[bytes | None]:
        """See dedup_cache.assign.IndexStore."""


class ValuesLog:
    """The `values` topic, read when nothing else has a value."""

    def __init__(self, kafka: KafkaConfig, *, topic: str, stopping: Callable[[], bool] = lambda: False) -> None:
        self._kafka = kafka
        self._topic = topic
        self._stopping = stopping
        self._positions: dict[int, int] = {}

    def find(self, wanted: set[ValueKey], *, remember: Callable[[ValueKey, bytes], object]) -> dict[ValueKey, bytes]:
        """The values among `wanted` that stand below the end of the topic as it is now.

        Goes on from where the last search ended, then from the beginning. Every value that passes by is handed to
        `remember`. Waits while no broker answers, and for transactions that are open below that
        end: of another worker, or of the very one that wrote the batch, whose outcome reaches partition by partition.
        Raises Stopping where it was told to stop before all was found.
        """
        found: dict[ValueKey, bytes] = {}
        ends, begins = self._patiently(_high_watermarks), self._patiently(begin_offsets)
        starts = {p: max(self._positions.get(p, begin), begin) for p, begin in begins.items()}
        for positions in [starts, begins] if starts != begins else [begins]:
            for reference, blob in self._scan(positions, ends=ends):
                remember(reference, blob)
                if reference in wanted:
                    found[reference] = blob
            if len(found) == len(wanted):
                break
            if self._stopping():
                raise Stopping
        self._positions = ends
        return found

    def _scan(self, positions: dict[int, int], *, ends: dict[int, int]) -> Iterable[tuple[ValueKey, bytes]]:
        open_ends = {p: end for p, end in ends.items() if positions[p] < end}
        if not open_ends:
            return
        with Reader(self._kafka, topic=self._topic, positions={p: positions[p] for p in open_ends}) as reader:
            while any(reader.positions()[p] < end for p, end in open_ends.items()) and not self._stopping():
                for message in reader.poll(max_messages=1000, timeout_ms=100):
                    reference = ValueKey.decode(message.key)
                    if reference is not None and message.value is not None:
                        yield reference, message.value

    def _patiently(self, ask: Callable[[KafkaConfig, str], dict[int, int]]) -> dict[int, int]:
        while not self._stopping():
            try:
                return ask(self._kafka, self._topic)
            except BrokerUnavailable:
                time.sleep(RETRY_S)
        raise Stopping


class Resolver:
    """Makes batches whole. Remembers values up to `memory_bytes`; one thread at a time."""

    def __init__(self, schema: BatchSchema, *, store: Store, log: ValuesLog, memory_bytes: int = MEMORY_BYTES) -> None:
        self._groups = {group.name: group for group in schema.groups}
        self._salts = {group.name: schema.group_salt(group) for group in schema.groups}
        self._store = store
        self._log = log
        self._memory: OrderedDict[ValueKey, bytes] = OrderedDict()
        self._memory_bytes = memory_bytes
        self._used_bytes = 0
        self.from_memory = self.from_store = self.from_log = self.store_failures = 0

    def resolve(self, batch: Batch) -> Batch:
        """The batch with every row inline. UnresolvedReference names the row that cannot be had; Stopping."""
        groups = {
            name: self._resolve_group(group, schema=self._groups[name], generation=batch.meta.generation)
            for name, group in batch.groups.items()
        }
        if all(groups[name] is batch.groups[name] for name in groups):
            return batch
        return Batch(
            labels=batch.labels,
            weights=batch.weights,
            scores=batch.scores,
            sample_ids=batch.sample_ids,
            event_times_ms=batch.event_times_ms,
            append_times_ms=batch.append_times_ms,
            groups=groups,
            meta=batch.meta,
        )

    def _resolve_group(self, group: Group, *, schema: GroupSchema, generation: str) -> Group:
        missing = group.missing()
        if not missing.size or group.ids is None or group.checks is None:
            return group
        references = [ValueKey(generation, schema.name, row_id) for row_id in group.ids[missing].tolist()]
        blobs = self._find(references, checks=group.checks[missing])
        try:
            rows = decode_rows(blobs, schema)
        except RowError as error:
            raise UnresolvedReference(f"generation {generation}: {error}") from None
        wrong = check_bits(fingerprints(rows, salt=self._salts[schema.name])) != group.checks[missing]
        if wrong.any():
            raise UnresolvedReference(f"{references[int(np.argmax(wrong))]}: another value stands in its place")
        return resolve(group, rows, missing)

    def _find(self, references: list[ValueKey], *, checks: UInt32) -> list[bytes]:
        """Blobs of references of one group, in their order."""
        found = {reference: blob for reference in references if (blob := self._recall(reference)) is not None}
        self.from_memory += len(found)
        for pause_s in (0.0, *STORE_PAUSES_S):
            absent = [i for i, reference in enumerate(references) if reference not in found]
            if not absent:
                break
            time.sleep(pause_s)
            fetched = self._fetch([references[i] for i in absent], checks=checks[absent])
            if fetched is None:
                break
            self.from_store += len(fetched)
            found |= fetched
        unknown = {reference for reference in references if reference not in found}
        if unknown:
            logged = self._log.find(unknown, remember=self._remember)
            self.from_log += len(logged)
            found |= logged
        for reference in references:
            if reference not in found:
                raise UnresolvedReference(f"{reference}: neither in Redis nor in the `values` topic")
        return [found[reference] for reference in references]

    def _fetch(self, references: list[ValueKey], *, checks: UInt32) -> dict[ValueKey, bytes] | None:
        """What the store has; None where it does not answer."""
        generation, group, _ = references[0]
        ids = np.array([reference.row_id for reference in references], dtype=np.int64)
        try:
            blobs = self._store.fetch(group, ids, checks, generation=generation)
        except StoreUnavailable:
            self.store_failures += 1
            return None
        except ReferenceMismatch as error:
            raise UnresolvedReference(str(error)) from None
        fetched = {ref: blob for ref, blob in zip(references, blobs, strict=True) if blob is not None}
        for reference, blob in fetched.items():
            self._remember(reference, blob)
        return fetched

    def _recall(self, reference: ValueKey) -> bytes | None:
        blob = self._memory.get(reference)
        if blob is not None:
            self._memory.move_to_end(reference)
        return blob

    def _remember(self, reference: ValueKey, blob: bytes) -> None:
        self._used_bytes += len(blob) - len(self._memory.pop(reference, b""))
        self._memory[reference] = blob
        while self._used_bytes > self._memory_bytes and len(self._memory) > 1:
            _, dropped = self._memory.popitem(last=False)
            self._used_bytes -= len(dropped)


def _high_watermarks(kafka: KafkaConfig, topic: str) -> dict[int, int]:
    return end_offsets(kafka, topic, committed=False)
