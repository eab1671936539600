"""What a transaction leaves behind besides its output: a journal record and a commit metadata per source partition.

The journal record makes the samples a function of log and journal; the metadata, at most 4 KB, is where a rebuild
begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import xxhash

from stream.config import Config, KafkaConfig, SessionConfig
from stream.kafka import Reader, begin_offsets
from stream.snapshot_format import SnapshotRef

FORMAT_VERSION = 1
POLL_MS = 100
_T = TypeVar("_T")


class JournalError(Exception):
    """A journal record or commit metadata cannot be understood; the message says where it stands."""


class Advance(msgspec.Struct, frozen=True, array_like=True):
    """The watermark was raised although no event said so, when every record before `position` had been processed."""

    position: int
    watermark_ms: int


class SessionParameters(msgspec.Struct, frozen=True):
    """What decides which session an event belongs to."""

    gap_ms: int
    out_of_orderness_ms: int
    max_duration_ms: int
    max_events: int
    max_ahead_ms: int
    keep_negatives: float = 1.0

    @staticmethod
    def of(session: SessionConfig) -> SessionParameters:
        """The part of the section that a rebuild depends on."""
        return SessionParameters(*(getattr(session, name) for name in SessionParameters.__struct_fields__))


class Parameters(msgspec.Struct, frozen=True):
    """What a rebuild depends on besides the log: it must be the same as when the open sessions began."""

    session: SessionParameters
    schema: str
    """Digest of what the sections `events`, `features`, `labels` and `derived` say besides defaults: a key that a later
    version adds changes nothing until somebody sets it."""

    @staticmethod
    def of(config: Config) -> Parameters:
        """The parameters of a configuration."""
        sections = {"events": config.events, "features": config.features, "labels": config.labels}
        if config.derived:
            sections["derived"] = config.derived
        text = msgspec.json.encode(_set(sections), order="deterministic")
        return Parameters(SessionParameters.of(config.session), xxhash.xxh3_128_hexdigest(text))


class JournalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One source partition in one transaction."""

    version: int = FORMAT_VERSION
    topic: str
    topic_id: str
    partition: int
    partitions: int
    """Partitions that the source topic had."""
    commit: int
    """Number of this commit of the partition, from 1."""
    offset: int
    """C: the oldest offset that an open session still needs."""
    watermark_ms: int
    """W before C."""
    resume: int
    """Every record before this offset was processed."""
    seq: int
    """Samples of the partition emitted since its beginning."""
    advances: tuple[Advance, ...] = ()
    """Since the last record, in order."""
    parameters: Parameters
    note: str = ""
    """`start`, or what an operator accepted."""
    snapshot: SnapshotRef | None = None
    """Of the open sessions at this commit; most records have none."""


class CommitMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed beside the offset C."""

    v: int = FORMAT_VERSION
    commit: int
    resume: int
    watermark_ms: int
    seq: int
    journal: int
    """Journal records from this offset on cover everything from C."""
    journal_id: str = ""
    """The broker's id of the journal topic: another one after it was deleted and made again."""
    partitions: int


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A journal record and where it stands."""

    offset: int
    record: JournalRecord


@dataclass(frozen=True, slots=True)
class JournalPart:
    """Committed entries of one source partition, and the journal offset behind all that was read."""

    entries: list[JournalEntry]
    next_offset: int


@dataclass(slots=True)
class JournalMarks:
    """Knows from which journal offset on the records cover a source offset.

    The offset of a record that is about to be written is not known yet; the one behind its predecessor is a bound.
    """

    next_offset: int = 0
    _marks: deque[tuple[int, int]] = field(default_factory=deque)

    def wrote(self, *, resume: int) -> None:
        """A record that processes up to `resume` is being written at `next_offset` or later."""
        self._marks.append((resume, self.next_offset))

    def covering(self, offset: int) -> int:
        """A journal offset from which on the records cover `offset`; forgets what is older."""
        while len(self._marks) > 1 and self._marks[0][0] < offset:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else self.next_offset

    @staticmethod
    def of(entries: Iterable[JournalEntry], *, next_offset: int) -> JournalMarks:
        """After a rebuild: what was read."""
        return JournalMarks(next_offset, deque((entry.record.resume, entry.offset) for entry in entries))


def encode_record(record: JournalRecord) -> bytes:
    """One JSON object."""
    return msgspec.json.encode(record)


def decode_record(data: bytes, *, place: str) -> JournalRecord:
    """Raises JournalError, naming `place`."""
    record = _decode(data, JournalRecord, place=place)
    _check_version(record.version, place=place)
    return record


def encode_metadata(metadata: CommitMetadata) -> str:
    """One line of JSON."""
    return msgspec.json.encode(metadata).decode()


def decode_metadata(text: str, *, place: str) -> CommitMetadata:
    """Raises JournalError, naming `place`."""
    metadata = _decode(text.encode(), CommitMetadata, place=place)
    _check_version(metadata.v, place=place)
    return metadata


def read_journals(
    kafka: KafkaConfig,
    topic: str,
    *,
    journal_partitions: int,
    starts: Mapping[int, int | None],
    on_wait: Callable[[], object] = lambda: None,
) -> dict[int, JournalPart]:
    """The journals of some source partitions, read in one pass: each from its offset in `starts` (None: the beginning).

    `on_wait` is called between polls and may raise to give up.

    Raises JournalError, OffsetOutOfRange (one of them was cut), TopicMissing.
    """
    begins = begin_offsets(kafka, topic) if None in starts.values() else {}
    place = {source: source % journal_partitions for source in starts}
    first = {source: begins[place[source]] if start is None else start for source, start in starts.items()}
    positions = {p: min(first[s] for s in starts if place[s] == p) for p in place.values()}
    entries: dict[int, list[JournalEntry]] = {source: [] for source in starts}
    sources = {str(source).encode(): source for source in starts}
    with Reader(kafka, topic=topic, positions=positions) as reader:
        while not reader.at_end:
            on_wait()
            for message in reader.poll(max_messages=10_000, timeout_ms=POLL_MS):
                source = sources.get(message.key or b"")
                if source is not None and message.offset >= first[source]:
                    where = f"{topic}[{message.partition}]@{message.offset}"
                    record = decode_record(message.value or b"", place=where)
                    entries[source].append(JournalEntry(message.offset, record))
        ends = reader.positions()
    return {source: JournalPart(entries[source], ends[place[source]]) for source in starts}


def entry_at(entries: Sequence[JournalEntry], position: int) -> JournalEntry | None:
    """The entry with the greatest `resume` not above `position`, where a replay to there starts; None without one.

    The state at its `resume` is rebuilt from its `offset` and `watermark_ms` with the advances of all entries up to
    it that lie at or behind its `offset`; later entries hold the advances behind its `resume`.
    """
    known = [entry for entry in entries if entry.record.resume <= position]
    return max(known, key=lambda entry: (entry.record.resume, entry.offset), default=None)


def _set(config: object) -> object:
    """The keys that are not at their default, as plain mappings and lists; a tagged kind keeps its tag."""
    if isinstance(config, dict):
        return {key: _set(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_set(one) for one in config]
    if not isinstance(config, msgspec.Struct):
        return config
    values = ((field, getattr(config, field.name)) for field in msgspec.structs.fields(config))
    given = {field.name: _set(value) for field, value in values if value != _default(field)}
    return given | {"": config.__struct_config__.tag}


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _decode(data: bytes, kind: type[_T], *, place: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise JournalError(f"{place}: not what a stream worker writes: {error}") from None


def _check_version(version: int, *, place: str) -> None:
    if version != FORMAT_VERSION:
        raise JournalError(f"{place}: format version {version}, this worker knows {FORMAT_VERSION}: use a newer one")
