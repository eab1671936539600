"""`recd archive`: what is asked for on the command line, what there is, a report."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dedup_cache import Batch
from recd.sources import stop_on_signals
from recd.times import show_time
from stream.archive.errors import ArchiveError
from stream.archive.formats import RecordFiles, SampleFiles
from stream.archive.leftovers import Leftovers, find_leftovers
from stream.archive.manifest import FileRecord, read_manifest
from stream.archive.place import spellings
from stream.archive.request import ArchiveReport, ArchiveRequest, Format, log_of
from stream.archive.run import Archiver
from stream.archive.spool import Log
from stream.archive.store import ArchiveStore
from stream.columns import batch_schema
from stream.compiled import warm
from stream.config import Config
from stream.context import Clock
from stream.kafka import topic_id

EVENTS, SAMPLES = "events", "samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveOptions:
    """As they stand on the command line."""

    what: tuple[str, ...]
    until_end: bool
    accept_gap: bool


@dataclass(frozen=True, slots=True)
class Reported:
    """What was archived of one kind."""

    what: str
    report: ArchiveReport

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"what": self.what, **asdict(self.report)}


@dataclass(frozen=True, slots=True)
class Holding:
    """What the archive holds of one partition of one log."""

    url: str
    kind: str
    topic: str
    partition: int
    files: int
    rows: int
    bytes: int
    first_offset: int
    next_offset: int
    first_ms: int
    last_ms: int

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def run_archive(config: Config, options: ArchiveOptions) -> list[Reported]:
    """Archive until the end, or until Ctrl-C, which closes and lists what was read.

    Raises ArchiveError, UnresolvedReference, KafkaError.
    """
    warm.start()
    stop = stop_on_signals()
    archivers = {what: make_archiver(config, options, what=what, stop=stop) for what in dict.fromkeys(options.what)}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("archiving", total=None)

        def show() -> None:
            rows = sum(archiver.report.rows for archiver in archivers.values())
            files = sum(archiver.report.files for archiver in archivers.values())
            progress.update(task, description=f"{rows:,} rows in {files:,} files -> {config.archive.url}")

        _run_all(archivers.values(), stop=stop, on_progress=show)
    return [Reported(what, archiver.report) for what, archiver in archivers.items()]


def list_files(config: Config) -> list[Holding]:
    """What there is, by archive, log and partition. Raises ArchiveError, KafkaError."""
    parts: dict[tuple[str, str, str, int], list[FileRecord]] = {}
    listed = read_manifest(config.kafka, config.topics.archive)
    spelled = spellings(file.url for file in listed)
    for file in listed:
        parts.setdefault((spelled[file.url], file.kind, file.topic, file.partition), []).append(file)
    return [_holding(*key, files) for key, files in sorted(parts.items())]


def clean_up(config: Config, *, delete: bool) -> Leftovers:
    """Files below archive.url that a crash left and no manifest lists; with `delete` they go. Raises ArchiveError."""
    store = ArchiveStore(config.archive.url)
    listed = read_manifest(config.kafka, config.topics.archive)
    if not listed:
        return Leftovers()
    manifest_id = topic_id(config.kafka, config.topics.archive)
    leftovers = find_leftovers(store, listed, manifest_id=manifest_id, now_ms=time.time_ns() // 1_000_000)
    for leftover in leftovers.files if delete else ():
        store.delete(leftover.path)
    return leftovers


def format_leftovers(leftovers: Leftovers, *, url: str, deleted: bool) -> str:
    """For people."""
    if leftovers.files:
        said = "deleted" if deleted else "in no manifest (a crash left them, nothing reads them); --clean deletes them"
        lines = [f"{url}: {len(leftovers.files)} files {said}"]
    else:
        lines = [f"{url}: the manifest lists every file of its own that is older than a day."]
    lines += [f"  {one.path}  {one.bytes:,} bytes, {show_time(one.modified_ms)}" for one in leftovers.files]
    if leftovers.of_another:
        lines.append(
            f"  {leftovers.of_another} more files are of another manifest (another cluster, or this one made again), "
            "or of a version that did not say of which: they stay"
        )
    return "\n".join(lines)


def format_archive(reports: Iterable[Reported]) -> str:
    """For people."""
    lines = []
    for one in reports:
        report = one.report
        factor = f", {report.source_bytes / report.bytes:.1f} times less" if report.bytes else ""
        lines.append(
            f"Archived {one.what} to {report.url} in {report.wall_s:.1f} s: {report.rows:,} rows of {report.records:,} "
            f"records in {report.files:,} files, {report.bytes:,} bytes{factor} than the records' own"
        )
        lines += [f"  missing: {gap}" for gap in report.gaps]
    return "\n".join(lines)


def format_files(holdings: Sequence[Holding]) -> str:
    """For people."""
    if not holdings:
        return "Nothing is archived yet: `recd archive` does it."
    lines = []
    for url in sorted({one.url for one in holdings}):
        lines.append(url)
        lines.append(
            f"  {'what':8} {'partition':32} {'files':>6} {'rows':>12} {'bytes':>14}  {'offsets':24} arrived between"
        )
        lines += [_line(one) for one in holdings if one.url == url]
    return "\n".join(lines)


def _line(one: Holding) -> str:
    place = f"{one.topic}[{one.partition}]"
    offsets = f"[{one.first_offset}, {one.next_offset})"
    times = f"{show_time(one.first_ms)} and {show_time(one.last_ms)}"
    return f"  {one.kind:8} {place:32} {one.files:6,} {one.rows:12,} {one.bytes:14,}  {offsets:24} {times}"


def _holding(url: str, kind: str, topic: str, partition: int, files: Sequence[FileRecord]) -> Holding:
    return Holding(
        url=url,
        kind=kind,
        topic=topic,
        partition=partition,
        files=len(files),
        rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        first_offset=min(file.first_offset for file in files),
        next_offset=max(file.next_offset for file in files),
        first_ms=min(file.min_timestamp_ms for file in files),
        last_ms=max(file.max_timestamp_ms for file in files),
    )


def make_archiver(
    config: Config,
    options: ArchiveOptions,
    *,
    what: str,
    stop: Event,
    crash_point: Callable[[str], object] = lambda _: None,
) -> Archiver:
    """The archive of one kind. Raises TopicMissing, ArchiveError."""
    request = ArchiveRequest(
        what, _formats(config, what=what), until_end=options.until_end, accept_gap=options.accept_gap
    )
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000)
    return Archiver(config, request, clock=clock, stop=stop, crash_point=crash_point)


def _formats(config: Config, *, what: str) -> dict[Log, Format]:
    topics = config.topics
    if what == EVENTS:
        return {
            log_of(config, "events", topics.interactions): RecordFiles(),
            log_of(config, "journal", topics.journal): RecordFiles(),
        }
    from dedup_cache import RedisStore
    from trainer.resolver import Resolver, UnresolvedReference, ValuesLog

    schema = batch_schema(config)
    store = RedisStore(config.redis.url, namespace=config.redis.namespace, timeout_ms=config.redis.timeout_ms)
    resolver = Resolver(schema, store=store, log=ValuesLog(config.kafka, topic=topics.values))

    def resolve(batch: Batch) -> Batch:
        try:
            return resolver.resolve(batch)
        except UnresolvedReference as error:
            place = f"batch of {batch.meta.source_topic}[{batch.meta.source_partition}], sample {batch.meta.seq}"
            raise ArchiveError(f"{place}: {error}; values must outlive the batches that name them") from None

    return {log_of(config, "samples", topics.batches): SampleFiles(schema, resolve=resolve)}


def _run_all(archivers: Iterable[Archiver], *, stop: Event, on_progress: Any) -> None:
    """Each in a thread; the first error stops all, and is raised."""
    errors: list[BaseException] = []

    def run(archiver: Archiver) -> None:
        try:
            archiver.run(on_progress=on_progress)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(archiver,), name="archive") for archiver in archivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
    if errors:
        raise errors[0]
